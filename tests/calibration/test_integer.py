"""Quantised products as ONNX Runtime's integer operator: the same integers, biases inside, nothing copied apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from lifedeploy.calibration import qdq
from lifedeploy.calibration.quantize import Recipe, write
from lifedeploy.engines import onnxruntime as engine
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.integer_products import integer_products
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ExportError
from lifedeploy.exporters import forms, integer
from lifedeploy.graphs import PART
from lifedeploy.spec import GraphForm
from tests.calibration.conftest import answers, kinds

DEPTH = 4
FORM = GraphForm(attention="contrib", integer="signed")


@pytest.fixture
def quantized(prepared, tmp_path):
    write(prepared(), tmp_path / "q.onnx")
    return tmp_path / "q.onnx"


def products(model):
    return [node for node in model.graph if (node.domain, node.op_type) == integer.OPERATOR]


def fused(path):
    """The graph at ``path`` after the pass, and how many products it found."""
    model = ir.load(path)
    return model, integer.fuse(model)


def test_every_product_is_one_node_with_its_bias_and_the_same_integers(quantized):
    before = ir.load(quantized)
    model, count = fused(quantized)
    assert count == len(products(model)) == 4 * DEPTH
    assert kinds(model)["Add"] == kinds(before)["Add"] - 4 * DEPTH
    assert kinds(model)["DequantizeLinear"] == 0
    assert kinds(model)["QuantizeLinear"] == kinds(before)["QuantizeLinear"]
    for node in products(model):
        activation, weight, _, scale, shift, zero, bias = node.inputs
        name = weight.name
        assert activation.producer().inputs[2] is shift
        assert (shift.const_value.numpy(), zero.const_value.numpy()) == (128, 0)
        np.testing.assert_array_equal(weight.const_value.numpy(), before.graph.initializers[name].const_value.numpy())
        assert scale.const_value.shape == bias.const_value.shape == (weight.shape[1],)
        assert node.outputs[0].shape[-1] == weight.shape[1]


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_form_answers_what_q_and_dq_say(prepared, tmp_path, per_channel):
    write(prepared(Recipe(per_channel=per_channel)), tmp_path / "q.onnx")
    record = forms.prepare(tmp_path / "q.onnx", FORM, tmp_path / "form.onnx")
    assert record.attentions == DEPTH
    assert len(products(ir.load(tmp_path / "form.onnx"))) == 6 * DEPTH
    literal = answers(tmp_path / "q.onnx", disable_quant_qdq="1")
    reach = np.abs(literal).max()
    for precise in ("0", "1"):  # as on processors without VNNI, whose weights are unsigned too
        found = answers(tmp_path / "form.onnx", x64quantprecision=precise)
        assert np.abs(found - literal).max() < 0.01 * reach


def test_queries_keys_and_values_are_products_of_their_own(quantized, tmp_path):
    forms.prepare(quantized, FORM, tmp_path / "form.onnx")
    model, whole = ir.load(tmp_path / "form.onnx"), fused(quantized)[0]
    assert kinds(model)["Split"] == 0
    assert kinds(model)["MultiHeadAttention"] == DEPTH
    parts = [node for node in products(model) if node.name.startswith("blocks.1.attn.qkv/MatMul")]
    assert [node.name.partition(PART)[2] for node in parts] == ["0", "1", "2"]
    (source,) = [node for node in products(whole) if node.name == "blocks.1.attn.qkv/MatMul"]
    for index in (1, 3, 6):
        joined = np.concatenate([node.inputs[index].const_value.numpy() for node in parts], axis=-1)
        np.testing.assert_array_equal(joined, source.inputs[index].const_value.numpy())
    attention = next(node for node in model.graph if node.name == "blocks.1.attn/MultiHeadAttention")
    assert [value.producer() for value in attention.inputs[:3]] == parts
    # Counted as the products that were calibrated.
    assert integer_products(tmp_path / "form.onnx") == {"MatMulIntegerToFloat": 4 * DEPTH}


def shift_an_activation(model, node):
    quantize = node.inputs[0].producer().inputs[0].producer()
    three = ir.Value(name="three", const_value=ir.tensor(np.int8(3), name="three"))
    model.graph.register_initializer(three)
    quantize.replace_input_with(2, three)


def show_a_product(model, node):
    (added,) = node.outputs[0].uses()
    model.graph.outputs.append(added.node.outputs[0])


@pytest.mark.parametrize("change", [shift_an_activation, show_a_product])
def test_what_has_another_form_stays(quantized, change):
    model = ir.load(quantized)
    change(model, next(node for node in model.graph if node.name == "blocks.2.mlp.fc1/MatMul"))
    assert integer.fuse(model) == 4 * DEPTH - 1
    assert any(node.name == "blocks.2.mlp.fc1/MatMul" and node.op_type == "MatMul" for node in model.graph)


def test_what_is_added_to_a_product_that_is_used_without_it_stays_outside(quantized):
    model = ir.load(quantized)
    node = next(node for node in model.graph if node.name == "blocks.2.mlp.fc1/MatMul")
    model.graph.outputs.append(node.outputs[0])
    assert integer.fuse(model) == 4 * DEPTH - 1
    model = ir.load(quantized)
    node = next(node for node in model.graph if node.name == "blocks.2.mlp.fc1/MatMul")
    again = ir.node("Neg", [node.outputs[0]], name="again")
    model.graph.insert_after(node, [again])
    model.graph.outputs.append(again.outputs[0])
    assert integer.fuse(model) == 4 * DEPTH
    assert [len(it.inputs) for it in products(model) if it.name == node.name] == [6]


def test_fp8_stays(prepared, tmp_path):
    write(prepared(Recipe(precision="fp8")), tmp_path / "q.onnx")
    assert qdq.GRIDS["fp8"].type != ir.DataType.INT8
    assert fused(tmp_path / "q.onnx")[1] == 0


def test_an_attention_that_is_not_known_stays_only_where_that_is_no_error(quantized, tmp_path):
    model = ir.load(quantized)
    softmax = next(node for node in model.graph if node.name == "blocks.0.attn/Softmax").outputs[0]
    watched = ir.node("Identity", [softmax])
    watched.outputs[0].name, watched.outputs[0].type = "watched", softmax.type
    watched.outputs[0].shape = softmax.shape
    model.graph.append(watched)
    model.graph.outputs.append(watched.outputs[0])
    ir.save(model, tmp_path / "watched.onnx")
    assert forms.prepare(tmp_path / "watched.onnx", FORM, tmp_path / "form.onnx").attentions == DEPTH - 1
    assert kinds(ir.load(tmp_path / "form.onnx"))["Softmax"] == 1
    with pytest.raises(ExportError, match="1 of 4 attentions"):
        forms.prepare(tmp_path / "watched.onnx", GraphForm(attention="contrib"), tmp_path / "x.onnx")


def test_the_engine_asks_for_it_where_graphs_can_be_taken_apart(monkeypatch):
    for vnni in (True, False):
        monkeypatch.setattr(engine, "fast_int8", lambda vnni=vnni: vnni)
        assert OnnxRuntime.form("int8", BuildOptions()) == replace(FORM, integer="signed" if vnni else "unsigned")
    assert OnnxRuntime.form("int8", BuildOptions(attention="products")) == GraphForm()
    assert OnnxRuntime.form("fp32", BuildOptions()).as_exported
    monkeypatch.setattr(engine, "installed", lambda module: module != "onnx_ir")
    assert OnnxRuntime.form("int8", BuildOptions()).as_exported
