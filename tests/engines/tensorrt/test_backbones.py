"""What is promised of all short backbones and DINOv2, at their real size: attention fused, sorted once, vouched for.

Weights are random and the answers are not asked for: both are other tests' matter, and would take minutes.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import cuda
from lifedeploy.engines.base import Availability, BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.exporters import forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest, load
from lifedeploy.records import ParityRecord, ReachRecord
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export

BACKBONES = {"deit_t": None, "deit_s": None, "deit_b": None, "vit_small_patch14_dinov2": (224, 224)}
TWINS = {"deit_t": "vit_t", "deit_s": "vit_s", "deit_b": "vit_b"}  # the same network, trained differently
SORTS = {"order-once": {"dense": 0, "life": 1}, "per-stage": {"life": 3}}
LARGE = (
    "deit_b",
    "vit_small_patch14_dinov2",
)  # their dense graphs are the layers of life before its first drop
STATIC = 8
# A fixed batch changes constants of shapes, and sorting at every drop adds the same nodes, whatever the width.
CASES = [(name, None, tuple(SORTS) if name == "deit_t" else ("order-once",)) for name in BACKBONES]
CASES += [("deit_t", STATIC, ("order-once",))]


@pytest.mark.parametrize(("one", "other"), TWINS.items())
def test_what_is_built_of_one_would_be_built_of_its_twin(tmp_path, one, other):
    made = [
        load(ModelRequest(backbone=name, keep_rate=0.7, weights="random"), Workspace(tmp_path), ordering="order-once")
        for name in (one, other)
    ]
    first, second = (loaded.model for loaded in made)
    assert str(first) == str(second)
    shapes = [[(name, value.shape) for name, value in model.state_dict().items()] for model in (first, second)]
    assert shapes[0] == shapes[1]
    assert made[0].spec.schedule == made[1].spec.schedule


@pytest.mark.parametrize(("backbone", "batch", "orderings"), CASES)
def test_every_attention_is_fused_and_order_once_sorts_once(rtx, tmp_path, tracing_once, backbone, batch, orderings):
    graph, half = tmp_path / "graph.onnx", tmp_path / "half.onnx"
    request = ModelRequest(backbone=backbone, keep_rate=0.7, weights="random", image_size=BACKBONES[backbone])
    for ordering in orderings:
        loaded = load(request, Workspace(tmp_path), ordering=ordering)
        trace = tracing_once if backbone in ("deit_t", "deit_s") else exporter.trace  # which other tests need too
        traced = trace(loaded.model, loaded.spec, GraphOptions(ordering=ordering, batch_size=batch))
        for method, expected in SORTS[ordering].items():  # the traced one last, since saving changes it
            if method == "dense" and backbone in LARGE:
                continue
            made = traced if method == "life" else exporter.derive(traced, loaded.spec, methods.get(method))
            exporter.save(made, graph, metadata={})
            forms.prepare(graph, TensorRT.form("fp16", BuildOptions()), half)
            began = time.process_time()  # not by the clock on the wall: other tests run beside this one
            plan = build_plan(rtx, half, BuildOptions())
            if backbone == "deit_s":
                assert time.process_time() - began < 20
            found = fusion.of_plan(plan.data).record
            assert (found.attention, found.topk) == (loaded.spec.schedule.depth, expected)
            assert found.precision == "fp16"
            sizes = [shape[0] for shape in plan.profile.get("images", ())]
            assert sizes == ([1, 8, 128] if batch is None else [])


@pytest.mark.usefixtures("traced_once")
def test_the_sidecar_of_a_real_backbone(rtx, tmp_path, monkeypatch):
    """No GPU; and neither PyTorch nor ONNX Runtime is asked what the models answer."""
    passed = ParityRecord(passed=True, precision="fp16", max_abs=0.0, max_rel=0.0, top1=1.0, overlap=1.0)
    reach = ReachRecord(tensor="a", largest=1.0, limit=65504.0, sample="noise")
    answer = SimpleNamespace(logits=np.zeros((1, 1)), kept=None)
    monkeypatch.setattr("lifedeploy.workflows.export._torch_answers", lambda *_: [answer])
    monkeypatch.setattr("lifedeploy.evaluation.parity.record", lambda path, *_: path.write_bytes(b""))
    monkeypatch.setattr("lifedeploy.targets.formed.check_graph", lambda *_: (passed, reach))
    monkeypatch.setattr(cuda, "availability", lambda: Availability(False, "no CUDA driver"))
    workspace = Workspace(tmp_path / "artifacts")
    request = ModelRequest(backbone="deit_t", keep_rate=0.7, weights="random")
    folder = export(ExportRequest(request, GraphOptions(), check_parity=False), workspace).folder
    report = build(BuildRequest(model=folder, engine="tensorrt-rtx"), workspace)
    for method, manifest in report.manifests.items():
        stem = "model" if method == "life" else method
        built = Artifact.read(folder / "tensorrt-rtx-fp16" / f"{stem}.json")
        built.check()
        record = manifest.engine
        assert built.manifest.engine.files == record.files
        assert set(record.files) == {f"{stem}.plan", f"{stem}.fp16.onnx"}
        assert (record.name, record.precision, record.pending) == ("tensorrt-rtx", "fp16", "no CUDA driver")
        assert record.runtime == rtx.__version__
        assert record.source_sha256 == Artifact.read(folder / f"{stem}.json").manifest.sha256
        found = record.details.fusion
        assert (found.attention, found.topk, found.precision) == (12, int(method == "life"), "fp16")
        assert record.details.profile["images"] == tuple((size, 3, 224, 224) for size in (1, 8, 128))
