"""What a manifest may claim: every fact has a type and a range, every file is one of the artifact's own."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy import methods, typed
from lifedeploy.artifact import Artifact, EngineRecord, Manifest, read_manifest
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, UnsupportedModelError, UsageError
from lifedeploy.files import readable_json, sha256
from lifedeploy.records import (
    DataRecord,
    DetailsRecord,
    EightBitsRecord,
    FormedRecord,
    FusionRecord,
    GraphRecord,
    MacsRecord,
    ParityRecord,
    QuantizationRecord,
)
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec
from lifedeploy.training.config import Policy
from tests.foundation.test_artifact import MANIFEST, SPEC, manifest_beside
from tests.plugins import entry

ENGINE = EngineRecord(
    name="openvino",
    precision="fp32",
    requested="fp32",
    source="../model.onnx",
    files={"model.bin": "11" * 32},
)
FULL = replace(
    MANIFEST,
    kind="engine",
    engine=replace(
        ENGINE,
        details=DetailsRecord(fusion=FusionRecord(attention=None, topk=1)),
        graph=FormedRecord(parity=ParityRecord(passed=True)),
    ),
    graph=GraphRecord(
        form="order-once", batch_size=None, with_preprocess=False, operators={"Add": 3}, kept=(4,), scores=True
    ),
    parity=ParityRecord(passed=True, max_abs=0.0, max_rel=0.0, top1=1.0, overlap=None, cases=(), failures=()),
    quantization=QuantizationRecord(precision="int8", data=DataRecord(source="x", images=1, seed=0, sha256="22" * 32)),
    reference="../reference.npz",
    checkpoint="../weights.safetensors",
)


def plain(manifest: Manifest = FULL) -> dict:
    return json.loads(readable_json(manifest.to_dict()))


def places(data: object, here: tuple = ()) -> list[tuple]:
    """Every place in JSON."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [here, *(place for key, value in inner for place in places(value, (*here, key)))]


def put(data: dict, place: tuple, value: object) -> None:
    for key in place[:-1]:
        data = data[key]
    data[place[-1]] = value


def refusal(data: dict) -> str:
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_dict(data)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_full_manifest_comes_back_as_it_was(tmp_path):
    FULL.write(tmp_path / "model.json")
    assert read_manifest(tmp_path / "model.json") == FULL


PLACES = [place for place in places(plain()) if place and place[0] not in ("method", "weights")]
JUNK = [None, True, -1, 0, 10**30, 1e308, "", "\x1b[2J", "a\0b", "../../x", "/etc/passwd", "x" * 100_000, [], {}, [[]]]


@given(st.sampled_from(PLACES), st.sampled_from(JUNK))
def test_whatever_stands_anywhere_is_read_or_refused_in_one_line(place, value):
    data = plain()
    put(data, place, copy.deepcopy(value))
    try:
        found = Manifest.from_dict(data)
    except ArtifactError as error:
        assert error.message.isprintable() and len(error.message) <= 600
        return
    written = json.loads(json.dumps(found.to_dict()))
    for section in ("graph", "macs", "parity", "quantization"):  # as it was, whatever it lacks
        assert written[section] == (data[section] if data[section] is not None or section == "parity" else {})
    assert len(found.kept.taps) == len(set(found.kept.taps)) and found.predicts_lives in (True, False)
    assert isinstance(found.file, str) and isinstance(found.macs, MacsRecord) and isinstance(found.spec, ModelSpec)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("file",), 0, r"the manifest is wrong at \$\.file: 0; expected str, got int"),
        (("spec", "preprocess", "crop_pct"), 0, r"\$\.preprocess\.crop_pct: 0; expected float >= 0\.05"),
        (("spec", "preprocess", "std"), [0, 1, 1], r"\$\.preprocess\.std\[0\]: 0; expected float >= 1e-06"),
        (("spec", "preprocess", "crop_mode"), "border", r"crop_mode: 'border'; there are: center, squash"),
        (("spec", "preprocess", "image_size"), [10**9, 8], r"image_size\[0\]: 1000000000; expected int <= 8192"),
        (("spec", "preprocess", "image_size"), [8, 8], "196 patches of an image of 8x8 px"),
        (("spec", "num_classes"), 10**9, r"\$\.num_classes: 1000000000; expected int <= 1000000"),
        (("spec", "num_classes"), 4, "3 names for 4 classes"),
        (("spec", "schedule", "tokens"), [196] * 3, "drop layer 4 is out of range"),
        (("spec",), [], "the model's description is wrong: expected object, got array"),
        (("graph", "batch_size"), 0, r"\$\.graph\.batch_size: 0; expected int >= 1"),
        (("graph", "batch_size"), 60_000, "batch 60000 of 224x192 px is larger than any model takes"),
        (("graph", "kept"), [4, 5], r"wrong at \$\.graph\.kept: 5 is none of its drop layers"),
        (("graph", "kept"), [0], r"\$\.graph\.kept\[0\]: 0; expected int >= 1"),
        (("graph", "kept"), 4, r"\$\.graph\.kept: 4; expected array, got int"),
        (("graph", "scores"), "life_scores", r"\$\.graph\.scores: 'life_scores'; expected bool, got str"),
        (("macs", "mlp_tokens"), [1.5], r"\$\.macs\.mlp_tokens\[0\]: 1\.5; expected int, got float"),
        (("spec", "options"), [], r"\$\.options: \[\]; expected object, got array"),
        (("spec", "options"), {"temperature": [1]}, r"\$\.options\[\.\.\.\]: .*expected .*, got array"),
        (("spec", "method"), "a b", r"\$\.method: 'a b'; expected str matching"),
        (("graph", "form"), "spiral", r"\$\.graph\.form: 'spiral'; there are: order-once, per-stage"),
        (("inputs",), [{"name": "i", "dtype": "object", "shape": []}], r"dtype: 'object'; there are: bool"),
        (("inputs",), [{"name": "i", "dtype": "float32", "shape": [None, 3, 8, 8]}], r"\(batch, 3, 8, 8\) is no"),
        (("outputs",), [{"name": "o", "dtype": "float32", "shape": [None, 9]}], "is no output for 3 classes"),
        (("macs", "total"), "many", r"\$\.macs\.total: 'many'; expected int, got str"),
        (("parity",), 1, r"\$\.parity: 1; expected object \| null, got int"),
        (("parity", "max_rel"), "0.1", r"\$\.parity\.max_rel: '0\.1'; expected float, got str"),
        (("engine", "precision"), "fp4", r"\$\.engine\.precision: 'fp4'; there are: fp32, fp16, bf16, int8, fp8"),
        (("engine", "options"), {"batch": [1, 2]}, r"options\.batch: \[1, 2\]; expected array of length >= 3"),
        (("engine", "details"), {"fusion": {}}, r"'(attention|topk)' is missing at \$\.engine\.details\.fusion"),
        (("engine", "details"), {"eight_bits": {"of": 3}}, r"'products' is missing at \$\.engine\.details\.eight_bits"),
        (("quantization", "layers"), [{"name": 1}], r"\$\.quantization\.layers\[0\]"),
        (("sha256",), "0" * 63, r"\$\.sha256: '0+'; expected str matching"),
        (("schema",), True, "manifest schema True is unknown; this version reads 1"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_fact_of_another_kind_or_size_is_refused_with_its_place(place, value, said):
    data = plain()
    put(data, place, value)
    found = refusal(data)
    assert re.search(said, found), found


@pytest.mark.parametrize("place", [(), ("engine",), ("spec",)])
def test_a_key_of_a_later_version_breaks_nothing(place):
    data = plain()
    put(data, (*place, "colour"), {"red": [1]})
    assert Manifest.from_dict(data) == Manifest.from_dict(plain())


@pytest.mark.parametrize(
    "place",
    [
        ("graph",),
        ("parity",),
        ("macs",),
        ("quantization",),
        ("quantization", "data"),
        ("engine", "options"),
        ("engine", "graph"),
        ("engine", "graph", "parity"),
        ("engine", "details"),
        ("engine", "details", "fusion"),
    ],
    ids=".".join,
)
def test_a_key_of_a_later_version_is_kept_in_the_sections_whatever_else_changes(place):
    data = plain()
    put(data, (*place, "colour"), {"red": [1]})
    found = Manifest.from_dict(data)
    assert plain(found) == data
    changed = replace(
        found,
        quantization=found.quantization.but(layers=None, precision="fp8"),
        engine=replace(found.engine, details=found.engine.details.but(eight_bits=EightBitsRecord(products=1, of=2))),
    )
    data["quantization"]["precision"] = "fp8"
    data["engine"]["details"]["eight_bits"] = {"products": 1, "of": 2}
    assert plain(changed) == data


def test_a_section_says_what_it_was_given_and_nothing_else():
    assert not MacsRecord() and MacsRecord().to_dict() == {}
    assert MacsRecord().missing() == ["total", "dense", "per_layer", "embed", "predictor", "head", "speedup_bound"]
    graph = GraphRecord(batch_size=None, kept=())
    assert graph.to_dict() == {"batch_size": None, "kept": []}  # null and empty are facts
    assert (graph.with_preprocess, graph.scores, graph.operators) == (False, None, {})
    assert graph.but(kept=None, scores=True).to_dict() == {"batch_size": None, "scores": True}
    with pytest.raises(ArtifactError, match=r"the graph is wrong at \$\.opset: -1; expected int >= 0"):
        GraphRecord.read({"opset": -1}, "the graph")


@pytest.mark.parametrize("part", ["preprocess", "provenance"])
def test_what_would_change_answers_or_origin_unread_is_refused(part):
    data = plain()
    data["spec"][part]["colour"] = "red"
    assert f"the model's description ({part}) is wrong: 'colour' is unknown" in refusal(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": NaN}', "JSON is malformed"),
        (b'{"a":' * 100_000, "it is nested too deep"),
        (b"[" * 100_000, "it is nested too deep"),
        (b'{"schema": 1, "kind": "\xff"}', "cannot be read"),
        (b'"' + b"x" * 100, "truncated"),
    ],
)
def test_text_that_is_no_json_is_no_manifest(tmp_path, text, said):
    path = tmp_path / "model.json"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match="is not a manifest: ") as caught:
        read_manifest(path)
    assert said in caught.value.message


def test_a_byte_order_mark_is_no_part_of_it_and_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "model.json").write_bytes(b"\xef\xbb\xbf" + readable_json(FULL.to_dict()).encode())
    assert read_manifest(tmp_path / "model.json") == FULL
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ArtifactError, match="is a pipe; expected a regular file"):
        read_manifest(tmp_path / "pipe.json")


def test_a_spec_is_read_from_json_text_with_the_place_of_what_is_wrong():
    text = json.dumps(SPEC.to_dict())
    assert ModelSpec.from_json(text, "x.safetensors") == SPEC
    # Of a method that is not installed here: its options are read as they stand.
    other = replace(SPEC, method="of-somebody", options={"fuse": True, "merged": 4, "rate": 0.5, "by": "mean"})
    assert ModelSpec.from_json(json.dumps(other.to_dict()), "x.safetensors") == other
    for wrong, said in (
        (text.replace('"life"', '"Life!"'), r"\$\.method: 'Life!'; expected str matching"),
        ("[1", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=rf"x\.safetensors.*{said}"):
            ModelSpec.from_json(wrong, "x.safetensors")


# --- from before methods had options ----------------------------------------------------------------------------


def earlier(method: str, **schedule: object) -> dict:
    """A manifest as version 0.1 wrote it: U of eq. 7 stands by itself, and nothing is said of kept tokens."""
    data = plain(replace(MANIFEST, spec=replace(SPEC, method=method, **schedule)))
    del data["spec"]["options"], data["graph"]["kept"], data["graph"]["scores"]
    data["spec"]["temperature"] = 2.5  # whatever the method
    return data


@pytest.mark.parametrize(
    ("method", "options", "names", "lives"),
    [("life", {"temperature": 2.5}, {4: "life_order"}, True), ("dense", {}, {}, False), ("first-k", {}, {}, False)],
)
def test_a_manifest_from_before_methods_had_options_is_read(method, options, names, lives):
    found = Manifest.from_dict(earlier(method))
    assert found.spec == replace(SPEC, method=method, options=options)
    assert found.kept.names == names
    assert found.kept.taps == found.kept.last_tap == tuple(names.values())
    assert found.predicts_lives is lives
    assert "temperature" not in found.to_dict()["spec"]
    assert Manifest.from_dict(plain(found)).spec == found.spec  # written anew, and read again
    if names:
        order = np.arange(137)[None]
        assert [found.kept.after(layer, {"life_order": order}).shape[1] for layer in (4, 7, 10)] == [137, 96, 67]


def test_an_earlier_model_that_drops_nothing_kept_no_order():
    found = Manifest.from_dict(earlier("life", schedule=Schedule.from_keep_rate(196, 12, 1.0)))
    assert (found.kept.names, found.predicts_lives) == ({}, False)


@pytest.mark.parametrize(
    ("graph", "names", "counts", "lives"),
    [
        ({"kept": [4], "scores": True}, {4: "kept_4"}, {4: 137, 7: 96, 10: 67}, True),
        ({"kept": [4], "scores": False}, {4: "kept_4"}, {4: 137, 7: 96, 10: 67}, False),
        (
            {"kept": [4, 7, 10]},
            {4: "kept_4", 7: "kept_7", 10: "kept_10"},
            {4: 137, 7: 96, 10: 67},
            False,
        ),
        ({"kept": []}, {}, {}, False),
    ],
)
@pytest.mark.parametrize("method", ["life", "of-somebody"])
def test_a_manifest_says_where_its_graph_says_what_it_kept(method, graph, names, counts, lives):
    found = Manifest.from_dict(plain(replace(FULL, spec=replace(SPEC, method=method), graph=GraphRecord(**graph))))
    assert (found.kept.names, found.kept.counts, found.predicts_lives) == (names, counts, lives)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),  # from before U could be set: at its usual value
        ({"temperature": 2.5}, {"temperature": 2.5}),
        ({"temperature": 2.5, "options": {"temperature": 3.5}}, {"temperature": 3.5}),
    ],
)
def test_options_go_over_what_stood_in_their_place(given, options):
    data = SPEC.to_dict()
    del data["options"]
    found = ModelSpec.from_dict(data | given)
    assert found.options == options
    assert methods.get("life").settle(found.options).temperature == options.get("temperature", 1.5)


def test_a_spec_under_another_method_has_the_usual_options_of_that_one(plugged):
    plugged(entry("tests.plugins:OTHER"), entry("tests.plugins:INSIDE", "inside"))
    assert SPEC.under("life") is SPEC
    assert SPEC.under("dense") == replace(SPEC, method="dense", options={})
    other = SPEC.under("other")
    assert other.options == {"merged": 8, "fuse": True, "pooled_by": "mean", "sharpness": 2.0}
    assert other.under("life").options == {"temperature": 1.5}
    assert SPEC.under("first-k").options == other.under("first-k").options == {"inside": False}
    assert SPEC.under("inside").under("first-k").options == {"inside": True}  # its bound
    with pytest.raises(UsageError, match=r"'death' is unknown; there are: life, .*, first-k, inside, other"):
        SPEC.under("death")
    with pytest.raises(UnsupportedModelError, match=r"other protects 2 tokens .*, and deit_s has 5"):
        replace(SPEC, prefix_tokens=5).under("other")


# --- files ------------------------------------------------------------------------------------------------------

OUTSIDE = [
    "../x.onnx",
    "../../x",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\\b",
    "c:x",
    "x\0",
    "x\x1b[2J",
    "../int4/x",
    "y" * 999,
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["file", "siblings", "engine.files"])
def test_a_file_of_the_artifact_is_a_plain_name(place, name):
    data = plain()
    if place == "engine.files":
        data["engine"]["files"] = {name: "11" * 32}
    else:
        data[place] = {"dense": name} if place == "siblings" else name
    refusal(data)


@pytest.mark.parametrize("kind", ["model", "calibrated", "engine"])
@pytest.mark.parametrize("place", ["reference", "checkpoint", "engine.source"])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("x.npz", ("model", "calibrated", "engine")),
        ("../x.npz", ("calibrated", "engine")),
        ("../int8/x.npz", ("calibrated", "engine")),
        ("../int4/x.npz", ()),
        ("../../x.npz", ()),
        ("../../int8/x.npz", ()),
        ("../int8/../x.npz", ()),
        ("../other/x.npz", ()),
        ("/x.npz", ()),
        ("..", ()),
        ("../", ()),
        ("../int8/", ()),
    ],
)
def test_only_what_was_made_of_an_export_names_files_of_it(kind, place, name, kinds):
    data = plain()
    data |= {"kind": kind, "reference": "", "checkpoint": ""}
    data["engine"]["source"] = ""
    put(data, tuple(place.split(".")), name)
    allowed = kind in kinds and not (place == "reference" and kind == "calibrated" and name.startswith(".."))
    if allowed:
        Manifest.from_dict(data)
    else:
        assert f"$.{place}" in refusal(data)


def test_the_hash_of_the_file_is_that_of_sha256_whatever_else_is_said():
    data = plain()
    data["engine"]["files"]["model.onnx"] = "33" * 32
    assert "engine.files has another SHA-256 of model.onnx than sha256" in refusal(data)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    artifact = manifest_beside(tmp_path / "export")
    (tmp_path / "elsewhere.onnx").write_bytes(artifact.path.read_bytes())  # of the same content
    artifact.path.unlink()
    artifact.path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match="is a link that leads out of"):
        artifact.check()
    artifact.path.unlink()
    (tmp_path / "export" / "inside.onnx").write_bytes(b"graph")
    artifact.path.symlink_to("inside.onnx")
    artifact.check()
    (tmp_path / "export").rename(tmp_path / "moved")
    (tmp_path / "export").symlink_to("moved")  # the folder itself may be a link
    artifact.check()


def test_a_sibling_is_of_the_method_that_it_is_named_for(tmp_path):
    artifact = manifest_beside(tmp_path, siblings={"dense": "dense.json"})
    artifact.manifest.write(tmp_path / "dense.json")
    with pytest.raises(ArtifactError, match=r"dense\.json is of method life, expected dense"):
        artifact.sibling("dense")


def test_the_reader_says_what_is_verified(tmp_path):
    (tmp_path / "model.xml").write_bytes(b"<net/>")
    (tmp_path / "model.bin").write_bytes(b"weights")
    digests = {name: sha256(tmp_path / name) for name in ("model.xml", "model.bin")}
    settings = {"kind": "engine", "file": "model.xml", "sha256": digests["model.xml"]}

    def with_files(**files: str) -> Artifact:
        return manifest_beside(tmp_path, engine=replace(ENGINE, files=files), **settings)

    registry.verify(with_files(**digests))
    for files in ({}, {"model.xml": digests["model.xml"]}):
        with pytest.raises(ArtifactError, match=r"model\.bin would be read with model\.xml.*has no SHA-256 of it"):
            registry.verify(with_files(**files))
    (tmp_path / "model.bin").write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match=r"model\.bin is not the file that model\.json was written for"):
        registry.verify(with_files(**digests))
    for kind, engine in (("model", replace(ENGINE, source="")), ("engine", None)):
        with pytest.raises(ArtifactError, match="no engine belongs to it"):
            registry.verify(manifest_beside(tmp_path, kind=kind, engine=engine, file="model.onnx"))


@pytest.mark.parametrize(
    ("engine", "name"),
    [("openvino", "m.pb"), ("onnxruntime", "m.plan"), ("tensorrt", "m.onnx"), ("torch", "m.pt"), ("fake", "m.json")],
)
def test_an_engine_opens_what_it_has_built_and_nothing_else(tmp_path, engine, name):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ArtifactError, match=f"is nothing that {engine} opens; expected "):
        registry.get(engine).files(tmp_path / name)


def test_weights_in_another_file_have_to_be_vouched_for_too(tmp_path):
    weight = onnx.numpy_helper.from_array(np.arange(4.0, dtype=np.float32), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight])
    model = onnx.helper.make_model(graph)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert registry.get("onnxruntime").files(path) == (path,)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert registry.get("openvino").files(path) == (path, tmp_path / "w.data")
    manifest = replace(MANIFEST, engine=None, sha256=sha256(path))
    manifest.write(tmp_path / "model.json")
    with pytest.raises(ArtifactError, match=r"w\.data would be read with model\.onnx"):
        registry.verify(Artifact.read(tmp_path / "model.json"))


def test_what_needs_all_facts_says_which_one_is_missing(tmp_path):
    complete = MacsRecord(total=9, dense=9, per_layer=(1,) * 12, embed=1, predictor=0, head=1, speedup_bound=1.0)
    for changes, said in (
        ({}, ""),
        ({"macs": MacsRecord()}, r"'total' is missing at \$\.macs"),
        ({"macs": complete.but(per_layer=(1, 2))}, "MACs of 2 of 12 layers"),
        ({"parity": ParityRecord(passed=True)}, r"'max_abs' is missing at \$\.parity"),
        ({"kind": "calibrated"}, r"'precision' is missing at \$\.quantization"),
        (
            {"engine": replace(ENGINE, source="", graph=FormedRecord(parity=ParityRecord()))},
            r"'passed' is missing at \$\.engine\.graph\.parity",
        ),
        ({"kind": "engine"}, "describes no engine"),
    ):
        settings = {"macs": complete, "parity": None, "engine": None, "quantization": QuantizationRecord()}
        artifact = manifest_beside(tmp_path, **(settings | changes))
        if not said:
            artifact.require_complete()
            continue
        with pytest.raises(ArtifactError, match=said):
            artifact.require_complete()


@pytest.mark.parametrize(
    ("kind", "text"),
    [(typed.MethodName, "life"), (typed.Digest, "0" * 64), (typed.MaybeDigest, "0" * 64), (typed.MaybeDigest, ""),
     (Policy, "rand-m9-mstd0.5")],
)  # fmt: skip
def test_a_pattern_ends_where_the_text_does(kind, text):
    assert msgspec.convert(text, kind) == text
    for ending in ("\n", "\n\n", "\nx"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text + ending, kind)


# --- schemas ----------------------------------------------------------------------------------------------------


def test_the_schemas_in_the_documentation_are_those_of_the_types():
    folder = Path(__file__).parents[2] / "docs" / "schemas"
    made = runpy.run_path(str(folder / "generate.py"))["schemas"]()
    committed = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert committed == json.loads(readable_json(made)), "python docs/schemas/generate.py"


def test_kept_tokens_are_named_from_the_first_drop_on():
    late = plain(replace(FULL, graph=GraphRecord(kept=(7, 10))))
    with pytest.raises(ArtifactError, match=r"\$\.graph\.kept: tokens leave after layer 4 already"):
        Manifest.from_dict(late)
    schedule = Schedule.from_counts(196, 12, (196, 96, 67))  # nothing leaves after layer 4
    found = Manifest.from_dict(
        plain(replace(FULL, spec=replace(SPEC, schedule=schedule), graph=GraphRecord(kept=(7, 10))))
    )
    assert (found.kept.names, found.kept.counts) == ({7: "kept_7", 10: "kept_10"}, {7: 96, 10: 67})
