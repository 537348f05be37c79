"""Attention with a bias on its keys: the same answer in every form, and layers without a bias as they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from lifedeploy.calibration import policy
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.openvino import OpenVino
from lifedeploy.errors import ExportError
from lifedeploy.exporters import attention, emulation, forms, precision
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.reducers import Reducer, Tokens
from lifedeploy.model.vit import SlimViT
from lifedeploy.spec import ATTENTIONS, GraphForm
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging

DEPTH = 4
MERGES = (1, 3)  # layer 1 has no bias, 2 and 3 have the same
BIASED = (1, 2, 3)  # blocks
OPERATOR = {"operator": "Attention", "contrib": "MultiHeadAttention"}
PLACE = {"operator": 3, "contrib": 5}
MASKED = -30000.0  # finite in FP16 too


class Halting(Reducer):
    """A-ViT's mask: from layer 2 on nobody sees the four patches of the lowest score, which stay where they are."""

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer != 2:
            return tokens
        scores = tokens.x[..., 0]  # (B, P + n)
        lowest = scores[:, tokens.prefix :].topk(4, dim=1, largest=False).values.amax(dim=1, keepdim=True)
        halted = torch.cat((torch.zeros_like(scores[:, : tokens.prefix]), scores[:, tokens.prefix :] <= lowest), dim=1)
        return tokens.but(key_bias=(halted * MASKED)[:, None, None, :])


class Leaning(Reducer):
    """The scores that decide are the bias too: from layer 3 on, over the tokens that stay."""

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer not in self.schedule.drop_layers:
            return tokens
        scores = tokens.x.mean(dim=-1)  # (B, P + n)
        best = scores[:, tokens.prefix :].topk(self.schedule.after(layer), dim=1).indices
        return tokens.but(key_bias=scores[:, None, None, :]).take(best)


def other(kind: type[Reducer]):
    model, spec = make_tiny()
    schedule = replace(spec.schedule, tokens=(16,) * DEPTH, drop_layers=()) if kind is Halting else spec.schedule
    method = "dense" if kind is Halting else "topk"
    return SlimViT(model.backbone, kind(schedule)).eval(), replace(spec, method=method, schedule=schedule, options={})


MODELS = {
    "merging": lambda: with_merging(*make_tiny(), 3, MERGES),
    "halting": lambda: other(Halting),
    "leaning": lambda: other(Leaning),
}


def pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FP32 graphs, for any batch, beside PyTorch's logits."""
    graphs = tmp_path_factory.mktemp("biased")
    for name, make in MODELS.items():
        model, spec = make()
        exporter.save(exporter.trace(model, spec, GraphOptions()), graphs / f"{name}.onnx", metadata={})
        with torch.no_grad():
            np.save(graphs / f"{name}.npy", model(pixels()).logits.numpy())
    return graphs


def ask(path):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels().numpy()})


def operators(model, kind):
    return [node for node in model.graph if node.op_type == OPERATOR[kind] and attention.is_operator(node)]


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_form_answers_what_pytorch_does(folder, tmp_path, name, kind):
    forms.prepare(folder / f"{name}.onnx", GraphForm(attention=kind, with_order=True), tmp_path / "form.onnx")
    onnx.checker.check_model(str(tmp_path / "form.onnx"), full_check=True)
    logits, *kept = ask(tmp_path / "form.onnx")
    np.testing.assert_allclose(logits, np.load(folder / f"{name}.npy"), rtol=1e-5, atol=1e-5)
    assert len(kept) == {"merging": 2, "halting": 0, "leaning": 2}[name]
    forms.prepare(folder / f"{name}.onnx", GraphForm(with_order=True), tmp_path / "products.onnx")
    for ours, theirs in zip(kept, ask(tmp_path / "products.onnx")[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_bias_matters(folder):
    """Or no test here would say anything: without it the answers are others."""
    for name in MODELS:
        model = ir.load(folder / f"{name}.onnx")
        for node in list(model.graph):
            if node.op_type == "Add" and node.outputs[0].uses()[0].node.op_type == "Softmax":
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        ir.save(model, folder / "without.onnx")
        assert np.abs(ask(folder / "without.onnx")[0] - np.load(folder / f"{name}.npy")).max() > 1e-3


@pytest.mark.parametrize("kind", OPERATOR)
def test_layers_without_a_bias_stay_without(folder, tmp_path, kind):
    report = forms.prepare(folder / "merging.onnx", GraphForm(attention=kind), tmp_path / "form.onnx")
    assert report.attentions == DEPTH
    model = ir.load(tmp_path / "form.onnx")
    nodes = operators(model, kind)
    biases = [node.inputs[PLACE[kind]] if len(node.inputs) > PLACE[kind] else None for node in nodes]
    assert [bias is not None for bias in biases] == [block in BIASED for block in range(DEPTH)]
    assert biases[1] is biases[2]  # expanded once
    expansions = [node for node in model.graph if node.name.endswith(".attn/Expand")]
    assert [node.name for node in expansions] == ["blocks.1.attn/Expand", "blocks.3.attn/Expand"]
    assert [tuple(bias.shape)[1:] for bias in biases if bias] == [(1, 14, 14), (1, 14, 14), (1, 11, 11)]
    assert not any(node.op_type == "Softmax" for node in model.graph)


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize(("to", "allowed"), [("fp16", 1e-2), ("bf16", 6e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_has_the_bias_in_its_own_type_and_finite(folder, tmp_path, name, to, allowed, kind):
    half = precision.HALF[to]
    forms.prepare(folder / f"{name}.onnx", GraphForm(precision=to, attention=kind), tmp_path / "half.onnx")
    model = ir.load(tmp_path / "half.onnx")
    products = [n for n in model.graph if ".attn/" in n.name and n.op_type in ("MatMul", "Add", "Softmax")]
    around = operators(model, kind) if kind in OPERATOR else products
    assert len(around) == (DEPTH if kind in OPERATOR else 3 * DEPTH + {"merging": 3, "halting": 3, "leaning": 2}[name])
    values = [value for node in around for value in (*node.inputs, *node.outputs) if value is not None]
    assert {value.dtype for value in values} == {half}
    emulation.emulate(model, watch=True)
    ir.save(model, tmp_path / "emulated.onnx")
    logits, *largest = ask(tmp_path / "emulated.onnx")
    reference = np.load(folder / f"{name}.npy")
    assert 0 < np.abs(logits - reference).max() / np.abs(reference).max() < allowed
    assert np.isfinite(largest).all()
    if name == "halting":
        assert max(largest) >= 29900  # the mask is among them


def test_a_bias_of_the_ranking_is_cast_where_it_leaves_it(folder):
    """Scores that decide stay FP32, and attention does not become so with them."""
    model = ir.load(folder / "leaning.onnx")
    attention.fuse(model)
    done = precision.to_half(model, "fp16")
    precision.require_half(model, "fp16")
    ranking = precision.RANKING.nodes(model)
    left = {use.node.name for node in ranking for value in node.outputs for use in value.uses()}
    borders = [node.name for node in model.graph if node.op_type == "Cast" and node.name in left]
    assert borders == [f"reducer/ReduceMean{number}_output_0/Cast_fp16" for number in ("", "_1")]  # one for each drop
    assert not {node.op_type for node in ranking} & {"Attention", "Expand", "Softmax"}
    assert set(done.islands) == {"ranking"}


def test_a_cast_in_front_of_a_bias_is_outside_of_attention(folder):
    model = ir.load(folder / "merging.onnx")
    attention.fuse(model)
    node = operators(model, "operator")[1]
    for index, refused in ((3, False), (0, True)):
        source = node.inputs[index]
        cast = ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT16)}, name="odd/Cast")
        cast.outputs[0].dtype = ir.DataType.FLOAT16
        model.graph.insert_before(node, cast)
        node.replace_input_with(index, cast.outputs[0])
        everything = precision.Island("all", lambda graph: set(graph.graph))
        if refused:
            with pytest.raises(ExportError, match="odd/Cast casts inside an attention"):
                precision.require_half(model, "fp16", (everything,))
        else:
            precision.require_half(model, "fp16", (everything,))


def added(model, block=1):
    return next(node for node in model.graph if node.name == f"blocks.{block}.attn/Add")


def swap_the_terms(model):
    node = added(model)
    product, bias = node.inputs
    node.replace_input_with(0, bias)
    node.replace_input_with(1, product)


def bias_of(model, *sizes):
    """Another one: a constant of these sizes."""
    numbers = np.linspace(-2, 2, int(np.prod(sizes)), dtype=np.float32).reshape(sizes)
    value = ir.Value(
        name="b", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(sizes), const_value=ir.tensor(numbers)
    )
    model.graph.register_initializer(value)
    added(model).replace_input_with(1, value)


def read_elsewhere(model):
    node = ir.node("Neg", [added(model).outputs[0]], name="reader")
    model.graph.append(node)


CHANGES = {
    "swapped": (swap_the_terms, True),
    "of every head": (lambda model: bias_of(model, 1, 2, 1, 14), True),
    "of every query": (lambda model: bias_of(model, 1, 1, 14, 14), True),
    "of every pair": (lambda model: bias_of(model, 1, 2, 14, 14), True),
    "of queries alone": (lambda model: bias_of(model, 1, 1, 14, 1), False),
    "of too few axes": (lambda model: bias_of(model, 14), False),
    "read elsewhere": (read_elsewhere, False),
}


@pytest.mark.parametrize("fuse", [attention.fuse, attention.fuse_contrib])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_a_bias(folder, tmp_path, change, fuse):
    alter, taken = CHANGES[change]
    model = ir.load(folder / "merging.onnx")
    alter(model)
    ir.save(model, tmp_path / "before.onnx")
    assert fuse(model) == DEPTH - (not taken)
    ir.save(model, tmp_path / "after.onnx")
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["Softmax"] == int(not taken)
    for ours, theirs in zip(ask(tmp_path / "after.onnx"), ask(tmp_path / "before.onnx"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_same_products_are_quantised_with_and_without(folder, tmp_path):
    model, spec = with_merging(*make_tiny(), 3, MERGES, weigh=False)
    exporter.save(exporter.trace(model, spec, GraphOptions()), tmp_path / "plain.onnx", metadata={})
    parts = [
        {(product.name, product.part) for product in policy.products_in(path)}
        for path in (folder / "merging.onnx", tmp_path / "plain.onnx")
    ]
    assert parts[0] == parts[1]
    assert Counter(part for _, part in parts[0])["attention"] == 2 * DEPTH


@pytest.mark.parametrize("kind", ["products", "operator"])
@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVino])
def test_engines_of_cpus_answer_the_same(folder, tmp_path, engine, kind):
    forms.prepare(folder / "merging.onnx", GraphForm(attention=kind), tmp_path / "form.onnx")
    with engine(tmp_path / "form.onnx", EngineOptions()) as opened:
        logits = opened.run({"images": pixels().numpy()})["logits"]
    np.testing.assert_allclose(logits, np.load(folder / "merging.npy"), rtol=1e-4, atol=2e-5)
