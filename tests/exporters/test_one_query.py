"""Attention of the last block, where prefix tokens alone attend: one query, or a few, over all keys."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from lifedeploy import methods
from lifedeploy.exporters import attention, forms
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.spec import ATTENTIONS, GraphForm
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging

DEPTH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FP32 graphs: CLS alone, CLS and registers, and CLS with a bias on keys; dense and life of the first."""
    made = tmp_path_factory.mktemp("one-query")
    for name, options in {"cls": {}, "registers": {"reg_tokens": 4}}.items():
        model, spec = make_tiny(**options)
        graph = exporter.trace(model.with_prefix_block(), spec, GraphOptions())
        exporter.save(exporter.derive(graph, spec, methods.baseline()), made / f"{name}-dense.onnx", metadata={})
        exporter.save(graph, made / f"{name}.onnx", metadata={})
    merging, spec = with_merging(*make_tiny(), 3, (1, 3))
    exporter.save(exporter.trace(merging.with_prefix_block(), spec, GraphOptions()), made / "bias.onnx", metadata={})
    return made


def answers(path):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    return session.run(["logits"], {"images": torch.randn(2, 3, 32, 32).numpy()})[0]


@pytest.mark.parametrize("name", ["cls", "cls-dense", "registers", "registers-dense", "bias"])
def test_every_form_answers_the_same(folder, tmp_path, name):
    one = not name.startswith("registers")
    reference = answers(folder / f"{name}.onnx")
    for kind, least in product(ATTENTIONS, (1, 2)):
        form = GraphForm(attention=kind, least_queries=least)
        report = forms.prepare(folder / f"{name}.onnx", form, tmp_path / "form.onnx")
        fused = DEPTH - (one and least == 2)  # a single query may have to stay products
        assert report.attentions == (0 if kind == "products" else fused), form
        assert report.form.least_queries == least
        np.testing.assert_allclose(answers(tmp_path / "form.onnx"), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cls", "bias"])
def test_the_contrib_operator_of_the_last_block_takes_queries_apart_from_keys(folder, tmp_path, name):
    forms.prepare(folder / f"{name}.onnx", GraphForm(attention="contrib"), tmp_path / "contrib.onnx")
    model = ir.load(tmp_path / "contrib.onnx")
    *blocks, last = [node for node in model.graph if attention.is_contrib(node)]
    assert last.name == "blocks.3.attn/MultiHeadAttention"
    query, key, value = last.inputs[:3]
    assert query.producer().op_type == "Add"  # the product with its bias, as it is
    assert key.producer() is value.producer() and key.producer().op_type == "Split"
    assert len(key.producer().outputs) == 2 and [len(node.inputs[0].producer().outputs) for node in blocks] == [3] * 3
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["Split"] == DEPTH and kinds["Softmax"] == (name == "bias" and 0)
    if name == "bias":
        (bias,) = last.inputs[5:]
        assert bias.producer().op_type != "Expand" and tuple(bias.shape)[2] == 1  # one query: it is per query as it is


def test_products_of_other_parts_of_a_tensor_are_not_taken_for_keys_and_values(folder):
    model = ir.load(folder / "cls.onnx")
    keys = next(node for node in model.graph if node.name == "blocks.3.attn/Slice")
    values = next(node for node in model.graph if node.name == "blocks.3.attn/Slice_1")
    begins = keys.inputs[1:3], values.inputs[1:3]
    for node, bounds in ((keys, begins[1]), (values, begins[0])):
        for place, bound in enumerate(bounds, start=1):
            node.replace_input_with(place, bound)
    assert attention.fuse_contrib(model) == DEPTH - 1  # exchanged: they are left as they are


def test_the_traced_graph_has_its_products_by_name(folder):
    model = ir.load(folder / "cls-dense.onnx")
    products = [node.name for node in model.graph if node.op_type == "MatMul" and node.name.startswith("blocks.3.")]
    assert products == [
        *("blocks.3.attn.q/MatMul", "blocks.3.attn.kv/MatMul", "blocks.3.attn/MatMul", "blocks.3.attn/MatMul_1"),
        *("blocks.3.attn.proj/MatMul", "blocks.3.mlp.fc1/MatMul", "blocks.3.mlp.fc2/MatMul"),
    ]
    sizes = {node.name: node.outputs[0].shape[1] for node in model.graph if node.name in products}
    assert (sizes["blocks.3.attn.q/MatMul"], sizes["blocks.3.attn.kv/MatMul"]) == (1, 17)
    assert {sizes[name] for name in products[4:]} == {1}
