"""Quantised graphs as TensorRT for RTX compiles them: what is computed in 8 bits is read off the plan."""

from __future__ import annotations

import onnx
import pytest

from lifedeploy.artifact import Workspace
from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.quantize import Recipe, Source, prepare, write
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines.attention_nodes import attention_nodes
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.errors import EngineError
from lifedeploy.exporters import forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest, load
from tests.calibration.conftest import make_loose
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging


def graph(folder, model, spec):
    """``graph(precision, …)``: a life graph, calibrated, in the form TensorRT is given; and its quantised products."""
    source = folder / "life.onnx"
    exporter.save(exporter.trace(model, spec, GraphOptions()), source, metadata={})
    batches = ImageBatches(
        images=read_unlabelled(str(make_loose(folder / "images", 3))),
        preprocess=spec.preprocess,
        in_graph=False,
        batch=3,
    )

    def make(precision, remainder="fp16", keep=()):
        work = folder / f"{precision}-{remainder}-{len(keep)}"
        work.mkdir(exist_ok=True)
        prepared = prepare(
            Source(source, "graph", "data", folder), Recipe(precision=precision, keep=keep), batches, work
        )
        write(prepared, work / "quantized.onnx")
        form = TensorRT.form(precision, BuildOptions(remainder=remainder))
        forms.prepare(work / "quantized.onnx", form, work / "form.onnx")
        return work / "form.onnx", prepared.names

    return make


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Of a small model. It has 144 patches: FP8 attention over few tokens (25, not 45) is not fused."""
    return graph(tmp_path_factory.mktemp("quantized"), *make_tiny(img_size=96, embed_dim=64))


@pytest.mark.parametrize("target", ["sm89", "sm120"])
@pytest.mark.parametrize(("precision", "remainder"), [("int8", "fp16"), ("int8", "bf16"), ("fp8", "fp16")])
def test_8_bits_are_computed_in_8_bits_and_attention_is_one_kernel(rtx, quantized, precision, remainder, target):
    path, names = quantized(precision, remainder)
    report = fusion.of_plan(build_plan(rtx, path, BuildOptions(target=(target,), batch=(1, 2, 4))).data)
    assert (report.record.precision, report.floating) == (precision, remainder)
    assert (report.record.attention, report.record.topk) == (4, 1)
    report.require_eight_bits("it", names, precision)
    assert len(names) == (24 if precision == "fp8" else 16)
    assert report.record.eight_bits == {precision: 28 if precision == "fp8" else 16}  # with softmax, in FP8


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """The same model under ToMe: of four layers the last three have a bias on their keys, over 137, 129 and 121."""
    model, spec = make_tiny(img_size=96, embed_dim=64)
    return graph(tmp_path_factory.mktemp("merging"), *with_merging(model, spec, 8, (1, 2, 3)))


@pytest.mark.parametrize(("precision", "remainder"), [("int8", "fp16"), ("int8", "bf16"), ("fp8", "fp16")])
def test_a_bias_on_keys_changes_nothing_of_that(rtx, merging, precision, remainder):
    path, names = merging(precision, remainder)
    report = fusion.of_plan(build_plan(rtx, path, BuildOptions(target=("sm89",), batch=(1, 2, 4))).data)
    assert (report.record.precision, report.floating) == (precision, remainder)
    assert report.record.attention == 4
    report.require_eight_bits("it", names, precision)
    assert len(names) == (24 if precision == "fp8" else 16)  # none of the method's own products
    nodes = attention_nodes(onnx.load(path))
    assert [node.bias for node in nodes] == [None, 137, 129, 121]
    assert {node.name for node in nodes} <= report.attentions


def test_a_product_that_is_not_in_8_bits_is_found_out(rtx, quantized):
    path, names = quantized("int8", keep=("blocks.2.mlp.fc1/*",))
    report = fusion.of_plan(build_plan(rtx, path, BuildOptions(target=("sm89",), batch=(1, 2, 4))).data)
    report.require_eight_bits("it", names, "int8")
    with pytest.raises(EngineError, match=r"1 of 16 products of it are .* blocks\.2\.mlp\.fc1/MatMul"):
        report.require_eight_bits("it", [*names, "blocks.2.mlp.fc1/MatMul"], "int8")


def test_fp8_attention_over_few_tokens_is_refused_with_the_way_out(rtx, tmp_path):
    make = graph(tmp_path, *make_tiny())  # 16 patches
    path, _ = make("fp8")
    report = fusion.of_plan(build_plan(rtx, path, BuildOptions(target=("sm89",), batch=(1, 2, 4))).data)
    with pytest.raises(EngineError, match="attention is fused in 0 of 4 layers of it") as caught:
        report.require("it", attentions=4, sorts=1, allow_unfused=False)
    assert caught.value.hint.startswith("calibrate --fp8 --parts linear leaves attention in half precision")


def test_fp8_is_not_built_for_a_gpu_without(rtx, quantized):
    path, _ = quantized("fp8")
    with pytest.raises(EngineError, match=r"Cannot compile for target\(s\) sm80"):
        build_plan(rtx, path, BuildOptions(target=("sm80",), batch=(1, 2, 4)))


@pytest.mark.usefixtures("traced_once")
def test_a_real_backbone(rtx, tmp_path):
    request = ModelRequest(backbone="deit_s", keep_rate=0.7, weights="random")
    loaded = load(request, Workspace(tmp_path), ordering="order-once")
    make = graph(tmp_path, loaded.model, loaded.spec)
    for precision, products in (("int8", 48), ("fp8", 72)):
        path, names = make(precision)
        report = fusion.of_plan(build_plan(rtx, path, BuildOptions(target=("sm89", "sm120"))).data)
        found = report.record
        assert (found.attention, found.topk, found.precision) == (12, 1, precision)
        assert len(names) == products
        report.require_eight_bits("deit_s", names, precision)
