"""Other forms of the graph, at toy size on a CPU: what is wrong gets no time."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.gpu import rewrites, variants
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ExportError, ParityError
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest
from lifedeploy.optional import installed
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE


@pytest.fixture(scope="module")
def model(tmp_path_factory, tracing_once) -> Path:
    """A tiny export, ordered once."""
    folder = tmp_path_factory.mktemp("variants")
    asked = ModelRequest(backbone=TINY, keep_rate=0.7, weights="random", image_size=TINY_SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", tracing_once)
        export(ExportRequest(asked, GraphOptions(), folder / "tiny", check_parity=False), Workspace(folder))
    return folder / "tiny" / "model.onnx"


def test_every_variant_of_the_graph_computes_the_same(model, tmp_path):
    spec = Artifact.read(model.with_suffix(".json")).manifest.spec
    facts = rewrites.prove(model, spec, tmp_path, "fp16", rewrites.VARIANTS)
    assert list(facts) == list(rewrites.VARIANTS)
    assert all(row["error_fp32"] <= rewrites.SAME and row["kept_emulated"] >= 0.95 for row in facts.values())
    for variant in rewrites.VARIANTS.values():
        rewrites.write(model, variant, "fp16", tmp_path / "variant.onnx")
        nodes = list(ir.load(tmp_path / "variant.onnx").graph)
        ranked = {node.op_type for node in nodes if "Gather" in node.op_type and rewrites._ranked(node.inputs[1])}
        assert ranked == {variant.gather}
        sort = next(node for node in nodes if node.op_type == "TopK")
        assert sort.inputs[0].dtype == (ir.DataType.FLOAT16 if variant.ranking == "fp16" else ir.DataType.FLOAT)
        attentions = sum(node.op_type == "Attention" for node in nodes)
        # That of the last block, of a single query, stays products.
        assert attentions == (spec.schedule.depth - 1 if variant.attention == "operator" else 0)


def wrongly(gathers):
    """A Gather that takes another token in CLS's place."""

    def gather(model, tokens, index):
        moved = ir.node("Max", [index, rewrites.constant(model, "one", [1])])
        return [moved, *gathers(model, tokens, moved.outputs[0])]

    return gather


@pytest.mark.parametrize("gather", ["GatherElements", "GatherND"])
def test_a_wrong_rewriting_is_caught(model, tmp_path, monkeypatch, gather):
    spec = Artifact.read(model.with_suffix(".json")).manifest.spec
    monkeypatch.setitem(rewrites.GATHERS, gather, wrongly(rewrites.GATHERS[gather]))
    with pytest.raises(ParityError, match=f"{gather} in FP32 is off by"):
        rewrites.prove(model, spec, tmp_path, "fp16", rewrites.VARIANTS)


def test_a_graph_without_a_ranked_gather_is_refused(model, tmp_path):
    with pytest.raises(ExportError, match="no flat Gather of ranked tokens that GatherND could replace"):
        rewrites.write(model.with_name("dense.onnx"), rewrites.Variant(gather="GatherND"), "", tmp_path / "out.onnx")


def test_a_contest_times_what_answers_the_same(model, tmp_path, monkeypatch):
    counts = Artifact.read(model.with_suffix(".json")).manifest.spec.schedule.counts
    rewrites.write(model, rewrites.Variant(), "", tmp_path / "deployed.onnx")
    rewrites.write(model, rewrites.Variant(gather="GatherND"), "", tmp_path / "nd.onnx")
    monkeypatch.setitem(rewrites.GATHERS, "GatherND", wrongly(rewrites.GATHERS["GatherND"]))
    rewrites.write(model, rewrites.Variant(gather="GatherND"), "", tmp_path / "wrong.onnx")
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(OnnxRuntime(tmp_path / f"{name}.onnx", EngineOptions(threads=1)))
            for name in ("deployed", "nd", "wrong")
        }
        found = variants.contest(engines, 2, 0.1, counts, "fp32")
    assert found["nd"]["ms"] > 0 and found["nd"]["kept"] == 1 and np.isfinite(found["nd"]["ratio"])
    assert "wrong is off by" in found["wrong"]["reason"] and "ms" not in found["wrong"]


@pytest.mark.skipif(
    not installed("tensorrt_rtx") and not os.environ.get("CI"), reason="TensorRT for RTX is not installed"
)
def test_kernels_are_counted_and_times_are_not_made_up(model, tmp_path, monkeypatch):
    some = {name: rewrites.VARIANTS[name] for name in (rewrites.DEPLOYED, "attention as products")}
    monkeypatch.setattr(variants, "VARIANTS", some)
    variants.main(
        [str(model), "--out", str(tmp_path), "--engine", "tensorrt-rtx", "--batches", "2,1", "--minutes", "0"]
    )
    found = json.loads((tmp_path / "variants.json").read_text())
    deployed, products = found["rows"]
    assert deployed["kernels"] < products["kernels"] and deployed["attention"] == products["attention"] == 6
    assert deployed["topk"] == products["topk"] == 1 and deployed["times"] == []
    text = (tmp_path / "VARIANTS.md").read_text()
    assert found["not_timed"]["tensorrt-rtx"] in text and "MODEL.onnx" in text
