"""What version 0.1 exported, before there were other methods: it is built, checked, measured and drawn as before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import cuda, registry
from lifedeploy.engines.base import Availability, EngineOptions
from lifedeploy.exporters import inspect
from lifedeploy.files import compact_json, sha256
from lifedeploy.model import checkpoint
from lifedeploy.model.raw import read_header, read_tensors, write_tensors
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.evaluate import EvaluateRequest, evaluate
from tests.workflows.test_evaluate import make_images
from tests.workflows.test_visualize import drawn_by

FILES = ("model.onnx", "dense.onnx", "first-k.onnx", "weights.safetensors", "reference.npz")


def write_older(export: Path, folder: Path) -> None:
    """A copy of an export as version 0.1 wrote it: other names in the graph, fewer facts in the manifests."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes((export / name).read_bytes())
    graph = onnx.load(folder / "model.onnx")
    (kept,) = {name for node in graph.graph.node for name in node.output if name.startswith("kept_")}
    for names in (names for node in graph.graph.node for names in (node.input, node.output)):
        names[:] = ["life_order" if name == kept else name for name in names]
    next(value for value in graph.graph.value_info if value.name == kept).name = "life_order"
    onnx.save(graph, folder / "model.onnx")
    for stem in ("model", "dense", "first-k"):
        manifest = json.loads((export / f"{stem}.json").read_text())
        del manifest["graph"]["kept"], manifest["graph"]["scores"]
        del manifest["macs"]["attention_tokens"], manifest["macs"]["mlp_tokens"], manifest["spec"]["options"]
        manifest["spec"]["temperature"] = 1.25
        manifest["sha256"] = sha256(folder / f"{stem}.onnx")
        (folder / f"{stem}.json").write_text(json.dumps(manifest))
    weights = folder / "weights.safetensors"
    header = read_header(weights)
    spec = json.loads(header["lifedeploy.spec"])
    del spec["options"]
    header["lifedeploy.spec"] = compact_json(spec | {"temperature": 1.25})
    write_tensors(weights, read_tensors(weights), header)


@pytest.fixture(scope="module")
def older(exported, tmp_path_factory) -> Path:
    """The folder of such an export, and beside its files engines that were built of it."""
    folder = tmp_path_factory.mktemp("older") / "artifacts" / "older"
    write_older(Workspace(exported).latest_export().folder, folder)
    for engine in ("onnxruntime", "openvino"):
        build(BuildRequest(model=folder, engine=engine), Workspace(folder.parent))
    return folder


def test_its_files_are_read_for_what_they_are(older):
    for stem, options in (("model", {"temperature": 1.25}), ("dense", {}), ("first-k", {})):
        manifest = Artifact.read(older / f"{stem}.json").manifest
        assert manifest.spec.options == options
        assert manifest.kept.taps == (("life_order",) if stem == "model" else ())
        assert manifest.predicts_lives == (stem == "model")
    assert checkpoint.read_spec(older / "weights.safetensors").options == {"temperature": 1.25}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_of_it_are_checked_and_say_what_they_kept(older, engine):
    manifest = Artifact.read(older / f"{engine}-fp32" / "model.json").manifest
    assert manifest.parity.passed
    assert {case.overlap for case in manifest.parity.cases} == {1.0}
    assert manifest.kept.taps == ("life_order",)
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    answers = []
    for path, taps in ((older / f"{engine}-fp32", ("life_order",)), (older, ("life_order", "life_scores"))):
        artifact = Artifact.read(path / "model.json")
        running = registry.get(engine if artifact.manifest.engine else "onnxruntime")
        with running(artifact.path, EngineOptions()) as plain:
            assert [output.name for output in plain.outputs] == ["logits"]
        with running(artifact.path, EngineOptions(taps=taps)) as tapped:
            answers.append(tapped.run({"images": images}))
    ours, graphs = answers
    ranked = np.argsort(-graphs["life_scores"], axis=1)
    for layer, left in ((2, 11), (4, 8), (5, 5)):
        assert np.array_equal(manifest.kept.after(layer, ours), ranked[:, :left])


def test_tensorrt_is_built_of_it_in_half_precision(older, monkeypatch):
    monkeypatch.setattr(cuda, "availability", lambda: Availability(False, "no CUDA driver"))
    if not os.environ.get("CI") and not registry.examine(registry.get("tensorrt-rtx"), to_build=True).ok:
        pytest.skip("tensorrt-rtx is not installed")
    record = build(BuildRequest(model=older, engine="tensorrt-rtx"), Workspace(older.parent)).record
    assert (record.precision, record.pending) == ("fp16", "no CUDA driver")
    assert record.details.fusion.topk == 1
    assert record.graph.islands == {"ranking": ("MatMul", "Slice", "Squeeze", "TopK", "Transpose")}
    assert record.graph.parity.passed
    assert record.graph.parity.overlap is not None  # it was asked what it kept
    half = inspect.facts(inspect.load(older / "tensorrt-rtx-fp16" / "model.fp16.onnx"))
    assert [output.name for output in half.outputs] == ["logits", "life_order"]


def test_it_is_evaluated_beside_a_later_export_of_the_same_weights(older, exported, tmp_path):
    data = make_images(tmp_path / "data", count=3)
    later = Workspace(exported).latest_export().folder
    models = (later, older, older / "onnxruntime-fp32", older / "openvino-fp32", older / "weights.safetensors")
    report = evaluate(
        EvaluateRequest(models=models, data=str(data), batch=4, threads=1, workers=2), Workspace(exported)
    )
    assert len(report.pairs) == 10
    assert {(pair.agreement, pair.overlap) for pair in report.pairs} == {(1.0, 1.0)}


def test_it_is_drawn_as_a_later_export_of_the_same_weights(older, exported, tmp_path, monkeypatch):
    reference = drawn_by(monkeypatch, Workspace(exported).latest_export().folder, tmp_path / "x.png")
    for form in (older, older / "openvino-fp32", older / "weights.safetensors"):
        for one, other in zip(drawn_by(monkeypatch, form, tmp_path / "x.png"), reference, strict=True):
            assert np.allclose(one.life, other.life, atol=1e-2)
            assert list(one.alive) == [2, 4, 5]
            assert all(np.array_equal(one.alive[layer], other.alive[layer]) for layer in other.alive)
