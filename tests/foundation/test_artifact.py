"""Files that outlive a command: written whole or not at all, read back as they were, and refused when they are not."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lifedeploy import methods
from lifedeploy.artifact import Artifact, EngineRecord, Manifest, TensorSpec, Workspace, read_manifest
from lifedeploy.errors import ArtifactError
from lifedeploy.files import compact_json, readable_json, sha256, write_json
from lifedeploy.records import GraphRecord, MacsRecord, ParityRecord
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, PreprocessSpec, Provenance, model_name
from lifedeploy.writing import atomic_folder
from tests.plugins import entry

SPEC = ModelSpec(
    backbone="deit_s",
    timm_name="deit_small_patch16_224",
    method="life",
    schedule=Schedule.from_keep_rate(196, 12, 0.7),
    preprocess=PreprocessSpec(image_size=(224, 192), crop_pct=0.875, interpolation="bilinear", mean=(0.5, 0.4, 0.3)),
    num_classes=3,
    prefix_tokens=1,
    provenance=Provenance(weights="file", source="mine [v2].pth", sha256="ab" * 32, predictor="trained"),
    classes=("tabby, cat", "[ odd ]\nname", 'quo"ted ]'),
    options={"temperature": 2.0},
)
MANIFEST = Manifest(
    kind="model",
    file="model.onnx",
    sha256="00" * 32,
    spec=SPEC,
    graph=GraphRecord.read({"form": "order-once", "batch": None, "kept": [4], "scores": True}, "graph"),
    inputs=(TensorSpec("image", "float32", (None, 3, 224, 192)),),
    outputs=(TensorSpec("logits", "float32", (None, 3)), TensorSpec("life", "float32", (None, 196))),
    macs=MacsRecord(total=3_132_536_064, per_layer=(1, 2, 3)),
    parity=ParityRecord.read({"max_abs": 1.5e-6, "images": 8}, "parity"),
    reference="reference.npz",
    checkpoint="weights.safetensors",
    siblings={"dense": "dense.json"},
    engine=EngineRecord(
        name="onnxruntime", precision="fp32", requested="fp16", note="why not", files={"model.ort": "11" * 32}
    ),
    versions={"torch": "2.11"},
    created="2025-01-02T03:04:05+00:00",
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest_beside(path: Path, **changes: object) -> Artifact:
    """A manifest ``model.json`` in ``path`` and the small file it speaks of."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.onnx").write_bytes(b"graph")
    settings = {"sha256": sha256(path / "model.onnx"), "engine": None} | changes
    replace(MANIFEST, **settings).write(path / "model.json")
    return Artifact.read(path / "model.json")


# --- whole or not at all ----------------------------------------------------------------------------------------


# --- readable JSON ----------------------------------------------------------------------------------------------

AWKWARD = [
    "[ spaced ]",
    "[\n 1,\n 2\n]",
    "a [ b",
    "a ] b ]",
    '\\"[ "] ',
    "[]",
    "[ ]",
    "{ [ } ]",
    "a, b,\n c,",
    "\t[\t]",
    "\u2028[\u2028 ] \x85",
    "naïve ✓",
    " leading and trailing ",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_readable_json_keeps_every_string_as_it_is(text):
    data = {"value": text, "list": [text, text, 1], text: [[1, 2], {"inner": [text]}], "empty": [], "none": [None]}
    assert json.loads(readable_json(data)) == data


def test_json_never_holds_what_json_has_no_word_for():
    data = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, np.float64("nan"))], "c": {"d": -math.inf, "e": "NaN"}}
    for text in (readable_json(data), compact_json(data)):
        assert json.loads(text, parse_constant=pytest.fail) == {
            "a": None,
            "b": [1.5, None, [None, None]],
            "c": {"d": None, "e": "NaN"},
        }


def test_readable_json_puts_a_plain_list_on_one_line_and_every_fact_on_its_own():
    text = readable_json({"shape": [1, 3, 224, 224], "deep": {"a": 1}, "names": ["a", "b"], "rows": [{"x": 1}]})
    lines = text.splitlines()
    assert '  "shape": [1, 3, 224, 224],' in lines
    assert '  "names": ["a", "b"],' in lines
    assert '    "a": 1' in lines
    assert '      "x": 1' in lines
    assert text.endswith("}\n")


def test_write_json_is_utf8_and_atomic(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"name": "naïve ✓"})
    assert "naïve ✓" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "naïve ✓"}
    assert listing(tmp_path) == ["facts.json"]


# --- manifests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, engine=None, parity=None, inputs=(), siblings={})])
def test_a_manifest_comes_back_as_it_was(tmp_path, manifest):
    manifest.write(tmp_path / "model.json")
    assert read_manifest(tmp_path / "model.json") == manifest


def test_a_manifest_says_first_what_a_reader_looks_for(tmp_path):
    MANIFEST.write(tmp_path / "model.json")
    data = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert list(data)[:7] == ["schema", "kind", "file", "sha256", "created", "method", "weights"]
    assert (data["schema"], data["method"], data["weights"]) == (1, "life", "file")


def refused(path: Path) -> str:
    """The one line that ``read_manifest`` refuses ``path`` with."""
    with pytest.raises(ArtifactError) as error:
        read_manifest(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message
    return error.value.message


def test_a_missing_manifest_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "model.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"schema": 1,}', b"<html>"])
def test_what_is_not_json_is_refused(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    assert "is not a manifest" in refused(path)


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_json_that_is_no_object_is_refused(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    assert "is not a manifest: expected a JSON object" in refused(path)


@pytest.mark.parametrize(("schema", "found"), [(2, "2"), (0, "0"), ("1", "'1'"), (None, "None")])
def test_another_schema_is_refused_with_the_one_found_and_the_one_read(tmp_path, schema, found):
    path = tmp_path / "model.json"
    write_json(path, MANIFEST.to_dict() | {"schema": schema})
    assert f"manifest schema {found} is unknown; this version reads 1" in refused(path)


TOP_LEVEL = ["kind", "file", "sha256", "spec", "graph", "inputs", "outputs", "macs", "parity", "reference"]


@pytest.mark.parametrize("fact", [*TOP_LEVEL, "checkpoint", "siblings", "versions", "created"])
def test_a_missing_fact_is_named(tmp_path, fact):
    path = tmp_path / "model.json"
    data = MANIFEST.to_dict()
    del data[fact]
    write_json(path, data)
    message = refused(path)
    assert "the manifest is incomplete" in message
    assert f"'{fact}'" in message


@pytest.mark.parametrize(
    "fact", ["backbone", "timm_name", "method", "schedule", "preprocess", "num_classes", "prefix_tokens", "provenance"]
)
def test_a_missing_fact_of_the_model_is_named(tmp_path, fact):
    path = tmp_path / "model.json"
    data = MANIFEST.to_dict()
    del data["spec"][fact]
    write_json(path, data)
    message = refused(path)
    assert "the model's description is incomplete" in message
    assert f"'{fact}'" in message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec",), None),
        (("spec",), "deit_s"),
        (("spec", "preprocess"), "text"),
        (("spec", "schedule"), [1, 2]),
        (("spec", "schedule", "tokens"), 196),
        (("spec", "schedule", "tokens"), [67, 196]),  # a schedule that cannot be
        (("spec", "provenance"), {"weights": "random", "colour": "red"}),
        (("inputs",), [{"name": "image"}]),
        (("inputs",), 3),
        (("graph",), "text"),
        (("siblings",), ["dense"]),
        (("engine",), {"name": "onnxruntime"}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_fact_of_another_kind_is_refused_as_an_artifact_error(tmp_path, place, value):
    path = tmp_path / "model.json"
    data = json.loads(readable_json(MANIFEST.to_dict()))
    *outer, last = place
    inner = data
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(data))
    refused(path)


# --- artifacts --------------------------------------------------------------------------------------------------


def test_an_artifact_whose_files_are_all_there_passes_its_check(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.bin").write_bytes(b"weights")
    digest = sha256(tmp_path / "export" / "model.bin")
    record = EngineRecord(name="fake", precision="fp32", requested="fp32", files={"model.bin": digest})
    artifact = manifest_beside(tmp_path / "export", engine=record)
    artifact.check()
    assert artifact.path.read_bytes() == b"graph"
    assert (artifact.name, artifact.method) == ("export", "life")


@pytest.mark.parametrize("name", ["model.onnx", "model.bin"])
def test_a_changed_or_missing_file_is_named_by_the_check(tmp_path, name):
    (tmp_path / "model.bin").write_bytes(b"weights")
    digest = sha256(tmp_path / "model.bin")
    record = EngineRecord(name="fake", precision="fp32", requested="fp32", files={"model.bin": digest})
    artifact = manifest_beside(tmp_path, engine=record)
    content = (tmp_path / name).read_bytes()

    (tmp_path / name).write_bytes(content[:-1] + b"!")  # of the same length
    with pytest.raises(ArtifactError) as changed:
        artifact.check()
    assert f"{tmp_path / name} is not the file that model.json was written for" in changed.value.message
    assert changed.value.hint == "export or build it again"

    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path / name} is missing, though model.json speaks of it")):
        artifact.check()


def test_siblings_are_found_by_method(tmp_path):
    artifact = manifest_beside(tmp_path, siblings={"dense": "dense.json"})
    dense = replace(artifact.manifest, spec=SPEC.under("dense"), siblings={"life": "model.json"})
    dense.write(tmp_path / "dense.json")
    found = artifact.sibling("dense")
    assert found is not None and found.method == "dense"
    assert artifact.sibling("life") is artifact
    assert artifact.sibling("first-k") is None


@pytest.mark.parametrize(
    ("shape", "text"),
    [((None, 3, 8, 8), "image: uint8 (batch, 3, 8, 8)"), ((1, 3), "image: uint8 (1, 3)")],
)
def test_a_tensor_reads_as_its_name_type_and_shape(shape, text):
    assert str(TensorSpec("image", "uint8", shape)) == text


# --- workspace --------------------------------------------------------------------------------------------------


def aged(path: Path, seconds: int) -> None:
    os.utime(path, (1_700_000_000 + seconds,) * 2)


def test_exports_and_engines_are_listed_newest_first_and_apart(tmp_path):
    for age, name in enumerate(["b", "c", "a"]):
        aged(manifest_beside(tmp_path / name).manifest_path, age)
        aged(manifest_beside(tmp_path / name / "fake-fp32", kind="engine").manifest_path, age)
    workspace = Workspace(tmp_path)
    assert [artifact.name for artifact in workspace.exports()] == ["a", "c", "b"]
    assert [artifact.name for artifact in workspace.engines()] == ["a", "c", "b"]
    assert {artifact.manifest.kind for artifact in workspace.engines()} == {"engine"}
    assert workspace.latest_export().name == "a"


def test_checkpoints_are_found_at_any_depth_newest_first(tmp_path):
    for age, name in enumerate(["run1/last", "run2/deep/best", "top"]):
        path = tmp_path / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        aged(path, -age)
    (tmp_path / "checkpoints" / "notes.txt").write_text("no checkpoint")
    assert [path.stem for path in Workspace(tmp_path).checkpoints()] == ["last", "best", "top"]


def test_unfinished_exports_are_not_listed(tmp_path):
    manifest_beside(tmp_path / "done")
    manifest_beside(tmp_path / ".done.x1y2z3")
    assert [artifact.name for artifact in Workspace(tmp_path).exports()] == ["done"]


def test_unfinished_engines_are_not_listed(tmp_path):
    manifest_beside(tmp_path / "done" / "fake-fp32", kind="engine")
    manifest_beside(tmp_path / "done" / ".fake-fp32.x1y2z3", kind="engine")
    manifest_beside(tmp_path / ".done.x1y2z3" / "fake-fp32", kind="engine")
    assert [artifact.folder.name for artifact in Workspace(tmp_path).engines()] == ["fake-fp32"]


def test_a_folder_that_is_being_written_is_not_listed_until_it_is_done(tmp_path):
    workspace = Workspace(tmp_path)
    with atomic_folder(tmp_path / "export") as temporary:
        manifest_beside(temporary)
        assert workspace.exports() == []
    assert [artifact.name for artifact in workspace.exports()] == ["export"]
    with atomic_folder(tmp_path / "export" / "fake-fp32") as temporary:
        manifest_beside(temporary, kind="engine")
        assert workspace.engines() == []
    assert len(workspace.engines()) == 1


def test_an_empty_workspace_says_what_to_run(tmp_path):
    workspace = Workspace(tmp_path / "nothing")
    assert workspace.exports() == workspace.engines() == workspace.checkpoints() == []
    with pytest.raises(ArtifactError) as refusal:
        workspace.latest_export()
    assert refusal.value.message == f"no exported model in {tmp_path / 'nothing'}/"
    assert refusal.value.hint is not None and "lifedeploy export" in refusal.value.hint


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "options", "name"),
    [
        (Schedule.from_keep_rate(196, 12, 0.7), {}, "deit_s-life-r0.7"),
        (Schedule.from_counts(196, 12, (127, 95, 63)), {}, "deit_s-life-127.95.63"),
        (Schedule.from_keep_rate(196, 12, 0.7, (3, 6)), {}, "deit_s-life-r0.7-after3.6"),
        (Schedule.from_keep_rate(196, 12, 0.7), {"ordering": "per-stage"}, "deit_s-life-r0.7-per-stage"),
        (Schedule.from_keep_rate(196, 12, 0.7), {"batch_size": 8}, "deit_s-life-r0.7-b8"),
        (Schedule.from_keep_rate(196, 12, 0.7), {"image_size": (384, 192)}, "deit_s-life-r0.7-384x192px"),
        (Schedule.dense(196, 12), {}, "deit_s-life"),
    ],
)
def test_an_exports_name_says_what_sets_it_apart(schedule, options, name):
    assert model_name("deit_s", methods.get("life"), schedule, **options) == name


@pytest.mark.parametrize(
    ("method", "rate", "layers", "changes", "name"),
    [
        ("other", 0.7, (3, 6, 9), {}, "deit_s-other-r0.7"),  # its own usual drop layers
        ("other", 0.7, (4, 7, 10), {}, "deit_s-other-r0.7-after4.7.10"),
        ("other", 0.7, (3, 6, 9), {"ordering": "per-stage"}, "deit_s-other-r0.7"),  # its usual form
        ("life", 0.7, (4, 7, 10), {"ordering": "order-once"}, "deit_s-life-r0.7"),
        ("life", 0.7, (4, 7, 10), {"options": {"temperature": 9.0}}, "deit_s-life-r0.7"),  # changes no graph
        (
            "other",
            0.7,
            (3, 6, 9),
            {"options": {"fuse": False, "merged": 4, "pooled_by": "mean", "sharpness": 1.0}, "batch_size": 8},
            "deit_s-other-r0.7-merged4-no-fuse-b8",
        ),
    ],
)
def test_an_exports_name_says_what_is_unusual_for_its_method(plugged, method, rate, layers, changes, name):
    plugged(entry("tests.plugins:OTHER"))
    schedule = Schedule.from_keep_rate(196, 12, rate, layers)
    assert model_name("deit_s", methods.get(method), schedule, **changes) == name
