"""Attention as ONNX Runtime's own operator: the same answer, nothing moved, and what has another form left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.errors import ExportError, UsageError
from lifedeploy.exporters import attention, emulation, forms, inspect, precision
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest, load
from lifedeploy.spec import ATTENTIONS, GraphForm
from tests.conftest import TINY, TINY_SIZE, make_tiny

DINOV2 = {"img_size": 56, "patch_size": 14, "init_values": 0.1, "reg_tokens": 4, "no_embed_class": True}
# name → model, form of the drops, batch
EXPORTS = {
    "test_vit": (TINY, "order-once", None),
    "deit": ({}, "order-once", 2),
    "deit, per-stage": ({"qkv_bias": False}, "per-stage", None),
    "dinov2": (DINOV2, "order-once", None),
}
METHODS = ("dense", "life", "first-k")
CASES = [(name, method) for name in EXPORTS for method in METHODS if "per-stage" not in name or method == "life"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tracing_once):
    """FP32 graphs of models of several kinds, by three methods."""
    made = tmp_path_factory.mktemp("attention")
    for name, (options, form, batch) in EXPORTS.items():
        if options == TINY:
            request = ModelRequest(backbone=TINY, keep_rate=0.7, weights="random", image_size=TINY_SIZE)
            loaded = load(request, Workspace(made), ordering=form)
            model, spec = loaded.model, loaded.spec
        else:
            model, spec = make_tiny(ordering=form, **options)
        graph = tracing_once(model, spec, GraphOptions(ordering=form, batch_size=batch))
        if form == "order-once":
            for method in ("dense", "first-k"):
                exporter.save(
                    exporter.derive(graph, spec, methods.get(method)), made / f"{name}-{method}.onnx", metadata={}
                )
        exporter.save(graph, made / f"{name}-life.onnx", metadata={})
    return made


def ask(path):
    """Answers to noise, at the graph's batch or 2; the ranking too, where there is one."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2]
    torch.manual_seed(0)
    return session.run(None, {"images": torch.randn(2, 3, size, size).numpy()})


def kinds(model):
    return Counter(node.op_type for node in model.graph)


def depth(model):
    return kinds(model)["Softmax"]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_it_answers_the_same_and_moves_less(folder, tmp_path, name, method):
    source = folder / f"{name}-{method}.onnx"
    original = ir.load(source)
    layers, before = depth(original), kinds(original)
    form = {kind: GraphForm(attention=kind, with_order=True) for kind in ATTENTIONS}
    reports = {kind: forms.prepare(source, form[kind], tmp_path / f"{kind}.onnx") for kind in ATTENTIONS}
    assert (reports["contrib"].attentions, reports["products"].attentions) == (layers, 0)
    onnx.checker.check_model(str(tmp_path / "contrib.onnx"), full_check=True)
    facts = inspect.facts(inspect.load(tmp_path / "contrib.onnx"))
    assert facts.operators["MultiHeadAttention"] == facts.operators["Split"] == layers
    assert facts.opset == inspect.facts(inspect.load(source)).opset
    fused = [node for node in ir.load(tmp_path / "contrib.onnx").graph if attention.is_contrib(node)]
    assert {len(node.outputs[0].shape) for node in fused} == {3}  # ONNX could not infer them anew
    # Of every block: the one of all heads, that of the keys, and the one back.
    assert facts.operators.get("Transpose", 0) == before["Transpose"] - 3 * layers
    for gone in ("Reshape", "Slice", "Squeeze"):
        assert facts.operators.get(gone, 0) == before[gone] - {"Reshape": 2, "Slice": 3, "Squeeze": 3}[gone] * layers
    reference = ask(tmp_path / "products.onnx")
    for kind in ("operator", "contrib"):
        for ours, theirs in zip(ask(tmp_path / f"{kind}.onnx"), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(reference) == (2 if method == "life" else 1)


@pytest.mark.parametrize(("to", "allowed"), [("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize(("name", "method"), [("deit", "dense"), ("deit, per-stage", "life"), ("dinov2", "first-k")])
def test_it_is_converted_to_half_precision(folder, tmp_path, name, method, to, allowed):
    source = folder / f"{name}-{method}.onnx"
    report = forms.prepare(source, GraphForm(precision=to, attention="contrib"), tmp_path / "half.onnx")
    assert report.opset == (attention.OPSET if to == "bf16" else ir.load(source).graph.opset_imports[""])
    model = ir.load(tmp_path / "half.onnx")
    nodes = [node for node in model.graph if attention.is_contrib(node)]
    assert len(nodes) == 4
    assert {value.dtype for node in nodes for value in (*node.inputs, *node.outputs)} == {precision.HALF[to]}
    emulation.emulate(model)
    ir.save(model, tmp_path / "emulated.onnx")
    (found,), (reference,) = ask(tmp_path / "emulated.onnx"), ask(source)
    assert 0 < np.abs(found - reference).max() / np.abs(reference).max() < allowed


def test_a_cast_around_it_is_found_and_other_foreign_operators_are_refused(folder):
    model = ir.load(folder / "deit-dense.onnx")
    assert attention.fuse_contrib(model) == 4 == attention.count(model)
    island = precision.Island("one", lambda graph: {node for node in graph.graph if attention.is_contrib(node)})
    precision.to_half(model, "fp16", (island,))
    with pytest.raises(ExportError, match="casts inside an attention: no runtime will fuse it"):
        precision.require_half(model, "fp16", (island,))
    model = ir.load(folder / "deit-dense.onnx")
    attention.fuse_contrib(model)
    next(node for node in model.graph if attention.is_contrib(node)).domain = "com.example"
    with pytest.raises(ExportError, match=r"is a com.example::MultiHeadAttention, and how it is converted is not"):
        precision.to_half(model, "fp16")


def first(model, operator):
    return next(node for node in model.graph if node.op_type == operator and "attn" in node.name)


def parts(model):
    return [node for node in model.graph if node.op_type == "Slice" and node.name.startswith("blocks.0.attn")]


def swap_keys_and_values(model):
    _, keys, values = parts(model)
    for index in (1, 2):
        one, other = keys.inputs[index], values.inputs[index]
        keys.replace_input_with(index, other)
        values.replace_input_with(index, one)


def transpose_otherwise(model):
    first(model, "Transpose").attributes["perm"] = ir.AttrInt64s("perm", [2, 0, 3, 1, 4][::-1])


def put_something_between(model):
    """As a norm of queries would be."""
    squeeze = first(model, "Squeeze")
    node = ir.node("Neg", [squeeze.outputs[0]], name="norm")
    users = list(squeeze.outputs[0].uses())
    model.graph.insert_after(squeeze, node)
    for user, index in users:
        if user is not node:
            user.replace_input_with(index, node.outputs[0])


def use_it_elsewhere(model):
    """Heads that something else reads cannot go."""
    heads = first(model, "Softmax").outputs[0].uses()[0].node.outputs[0]
    heads.name = "heads"
    model.graph.outputs.append(heads)
    node = ir.node("Neg", [heads], name="reader")
    node.outputs[0].name = "read"
    model.graph.append(node)


@pytest.mark.parametrize("change", [swap_keys_and_values, transpose_otherwise, put_something_between, use_it_elsewhere])
def test_what_has_another_form_stays_as_it_is(folder, change):
    model = ir.load(folder / "deit-dense.onnx")
    change(model)
    before = kinds(model)
    assert attention.fuse_contrib(model) == 3
    assert kinds(model)["Softmax"] == before["Softmax"] - 3


def test_queries_and_keys_with_a_norm_are_refused_with_the_way_out(tmp_path):
    model, spec = make_tiny(method="dense", qk_norm=True)
    exporter.save(exporter.trace(model, spec, GraphOptions()), tmp_path / "dense.onnx", metadata={})
    with pytest.raises(ExportError, match=r"4 of 4 attentions in .* cannot become 'contrib'") as caught:
        forms.prepare(tmp_path / "dense.onnx", GraphForm(attention="contrib"), tmp_path / "out.onnx")
    assert caught.value.hint == "--attention products; --attention operator"
    report = forms.prepare(tmp_path / "dense.onnx", GraphForm(attention="operator"), tmp_path / "out.onnx")
    assert report.attentions == 4
    with pytest.raises(UsageError, match="'flash' is unknown; there are: products, operator, contrib"):
        forms.prepare(tmp_path / "dense.onnx", GraphForm(attention="flash"), tmp_path / "out.onnx")


def test_the_ranking_can_be_told_of_it(folder, tmp_path):
    forms.prepare(
        folder / "deit-life.onnx",
        GraphForm(precision="fp16", attention="contrib", with_order=True),
        tmp_path / "half.onnx",
    )
    assert [value.name for value in ir.load(tmp_path / "half.onnx").graph.outputs] == ["logits", "kept_2"]
