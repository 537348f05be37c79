"""Export as a whole: what it leaves behind, and that it leaves nothing when it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.errors import ParityError, UsageError
from lifedeploy.exporters import onnx as exporter
from lifedeploy.model import checkpoint
from lifedeploy.model.weights import ModelRequest, load
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.output import require_usable
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE

pytestmark = pytest.mark.usefixtures("traced_once")


def test_an_export_holds_the_model_its_baselines_and_the_evidence(exported: Path):
    artifact = Workspace(exported).latest_export()
    names = {path.name for path in artifact.folder.iterdir() if path.is_file()}
    assert names == {
        *("model.onnx", "model.json", "dense.onnx", "dense.json", "first-k.onnx", "first-k.json"),
        *("weights.safetensors", "reference.npz"),
    }
    for method in ("life", "dense", "first-k"):
        member = artifact.sibling(method)
        member.check()
        assert member.manifest.spec.method == method
        assert member.manifest.parity.passed
        assert [(case.kind, case.batch) for case in member.manifest.parity.cases] == [
            ("photographs", 1),
            ("noise", 1),
            ("photographs", 3),
            ("noise", 3),
        ]
    assert artifact.manifest.parity.overlap == 1.0
    assert artifact.manifest.parity.max_rel < 1e-4


def test_the_manifest_says_what_a_reader_needs(exported: Path):
    artifact = Workspace(exported).latest_export()
    data = json.loads(artifact.manifest_path.read_text())
    assert (data["schema"], data["kind"], data["method"], data["weights"]) == (1, "model", "life", "file")
    assert data["spec"]["schedule"]["tokens"] == [16, 16, 11, 11, 8, 5]
    assert data["spec"]["provenance"]["source"] == "mine.safetensors"
    assert data["spec"]["classes"] == ["cat", "cup", "rocket"]
    assert data["macs"]["total"] < data["macs"]["dense"]
    assert data["macs"]["total"] == pytest.approx(data["macs"]["dense"] / data["macs"]["speedup_bound"])
    assert {"torch", "timm", "onnx", "lifedeploy"} <= set(data["versions"])


def test_the_onnx_file_carries_the_facts_itself(exported: Path):
    import onnx

    artifact = Workspace(exported).latest_export()
    metadata = {entry.key: entry.value for entry in onnx.load(artifact.path).metadata_props}
    assert metadata["lifedeploy.method"] == "life"
    assert json.loads(metadata["lifedeploy.tokens"])[-1] == 5
    assert json.loads(metadata["preprocess"])["image_size"] == list(TINY_SIZE)
    assert json.loads(metadata["classes"]) == ["cat", "cup", "rocket"]


def request(weights_file: Path, **changes: object) -> ExportRequest:
    return ExportRequest(ModelRequest(backbone=TINY, weights=str(weights_file), image_size=TINY_SIZE), **changes)


def test_a_graph_that_computes_something_else_does_not_get_its_name(tmp_path, weights_file, monkeypatch):
    save = exporter.save

    def damaged(graph, path, *, metadata):
        weight = graph.graph.initializers["model.backbone.head.weight"]
        weight.const_value = ir.tensor(np.asarray(weight.const_value.numpy()) * 1.5, name=weight.name)
        save(graph, path, metadata=metadata)

    monkeypatch.setattr(exporter, "save", damaged)
    with pytest.raises(ParityError, match=r"model\.onnx in ONNX Runtime does not compute what PyTorch does"):
        export(request(weights_file), Workspace(tmp_path / "artifacts"))
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_an_export_never_replaces_what_is_not_an_export(tmp_path, weights_file, monkeypatch):
    monkeypatch.setattr(exporter, "trace", lambda *_: pytest.fail("it should have been refused by now"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"precious/ holds thesis\.tex, which no export made"):
        export(request(weights_file, output=tmp_path / "precious"), Workspace(tmp_path))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for above in (Path(), Path("..")):
        with pytest.raises(UsageError, match="it is the current folder or above it"):
            export(request(weights_file, output=above), Workspace(tmp_path))
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_an_export_never_replaces_a_whole_workspace(workspace, weights_file):
    with pytest.raises(UsageError, match="which no export made and which would be lost"):
        export(request(weights_file, output=workspace), Workspace(workspace))
    assert Workspace(workspace).exports()


def saved(folder: Path, **asked: object) -> Path:
    """The checkpoint that an export of that request would hold."""
    loaded = load(ModelRequest(backbone=TINY, image_size=TINY_SIZE, **asked), Workspace(folder), ordering="order-once")
    checkpoint.save(folder / "weights.safetensors", loaded.model, loaded.spec)
    return folder / "weights.safetensors"


def loaded_spec(path: Path, **asked: object) -> ModelSpec:
    request = ModelRequest(backbone=TINY, weights=str(path), **asked)
    return load(request, Workspace(path.parent), ordering="order-once").spec


def test_random_weights_stay_random_in_a_file(tmp_path):
    assert loaded_spec(saved(tmp_path, weights="random")).provenance.weights == "random"


def test_a_checkpoint_brings_its_own_schedule_and_an_explicit_one_wins(tmp_path, weights_file):
    path = saved(tmp_path, weights=str(weights_file), counts=(10, 5, 2))
    assert loaded_spec(path).schedule.counts == (10, 5, 2)
    assert loaded_spec(path, keep_rate=0.5).schedule.counts == (8, 4, 2)


def test_an_export_takes_the_place_of_an_older_one_and_its_engines(workspace, weights_file):
    before = Workspace(workspace).latest_export()
    export(request(weights_file, output=before.folder, check_parity=False), Workspace(workspace))
    after = Workspace(workspace).latest_export()
    assert after.folder == before.folder
    assert after.manifest.parity is None
    assert Workspace(workspace).engines() == []


def test_an_interruption_leaves_the_previous_export_as_it_was(workspace, weights_file, monkeypatch):
    before = Workspace(workspace).latest_export()
    content = before.manifest_path.read_text()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "trace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(request(weights_file, output=before.folder), Workspace(workspace))
    assert before.manifest_path.read_text() == content
    assert [path.name for path in workspace.iterdir()] == [before.folder.name]
    Artifact.read(before.manifest_path).check()


def test_what_a_killed_command_left_is_no_reason_to_refuse_and_is_swept(workspace):
    """Neither from a build, which leaves it in the export's folder, nor of an export, which leaves it beside it."""
    folder = next(path for path in workspace.iterdir() if path.is_dir())
    gone = 2**22 + 1  # beyond the numbers that processes get
    left = [
        folder / f".openvino-fp32.elsewhere-{gone}.0123abcd.lifedeploy-tmp",
        folder / f".model.json.elsewhere-{gone}.0123abcd.lifedeploy-tmp",
    ]
    left[0].mkdir()
    (left[0] / "model.xml").touch()
    left[1].touch()
    require_usable(folder)
    assert not any(path.exists() for path in left)
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds notes\.txt, which no export made"):
        require_usable(folder)


@pytest.mark.parametrize("size", [0, -1, 2**40, 10**26, 1.5, float("nan"), float("inf")])
def test_a_batch_size_is_a_number_with_a_range(size):
    with pytest.raises(UsageError, match="images per batch are not allowed"):
        exporter.GraphOptions(batch_size=size)


def test_a_folder_that_is_no_utf8_is_exported_to_and_built_in(tmp_path):
    """ONNX Runtime takes paths as text; a name is bytes."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    asked = ModelRequest(backbone=TINY, weights="random", image_size=TINY_SIZE)
    export(ExportRequest(asked, output=folder), Workspace(tmp_path))
    assert build(BuildRequest(model=folder, engine="onnxruntime"), Workspace(tmp_path)).engine.path.is_file()


@pytest.mark.parametrize("name", ["reference.npz", "model.onnx"])
def test_a_full_disk_names_the_file_that_did_not_fit(tmp_path, weights_file, name):
    """A child may write 100 bytes to a file, and no more, from that file on."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from lifedeploy import files, writing
from lifedeploy.cli.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saving, atomic_file = writing.saving, writing.atomic_file
import lifedeploy.exporters.onnx, lifedeploy.workflows.export

def limit(path):
    if path.name == {name!r}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

def limited(function):
    def call(path):
        limit(path)
        return function(path)
    return call

for module in (lifedeploy.exporters.onnx, lifedeploy.workflows.export, files):
    for name, function in (("saving", saving), ("atomic_file", atomic_file)):
        if hasattr(module, name):
            setattr(module, name, limited(function))
sys.argv[1:] = ["export", "-b", {TINY!r}, "--weights", {str(weights_file)!r}, "--img-size", "64", "-o", "out"]
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.search(rf"error: out/{re.escape(name)}: File too large", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []
