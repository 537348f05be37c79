"""Attention and patch embedding in integers: probabilities by rows, and ONNX Runtime's operator for both."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.quantize import Recipe, Source, prepare, write
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines import onnxruntime as engine
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import EngineError, ExportError
from lifedeploy.exporters import forms, integer, integer_attention, integer_embedding
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.machine import fast_int8
from lifedeploy.spec import GraphForm
from tests.calibration.conftest import answers, kinds, off_by
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging

DEPTH = 4
ALL = ("linear", "attention", "embedding")


def form(*, signed=True):
    return GraphForm(attention="contrib", integer="signed" if signed else "unsigned")


def life(**options):
    return make_tiny(**options)


def prefix_block():
    model, spec = make_tiny(reg_tokens=2)
    return model.with_prefix_block(), spec


def narrow():
    return make_tiny(num_heads=4)  # a scale that is no power of two


def fixed():
    model, spec = make_tiny(img_size=(32, 64))
    return model.with_prefix_block(), spec


def merging():
    model, spec = with_merging(*make_tiny(), 3, (1, 3))  # with a bias on keys
    return model.with_prefix_block(), spec


MODELS = {"life": life, "prefix": prefix_block, "merging": merging, "narrow": narrow, "fixed": fixed}
FIXED = GraphOptions(batch_size=4, with_preprocess=True)


@pytest.fixture(scope="module", params=MODELS)
def quantized(request, tmp_path_factory, loose):
    """``quantized(recipe)``: a graph with Q and DQ, and the float graph that it is of."""
    folder = tmp_path_factory.mktemp(request.param)
    model, spec = MODELS[request.param]()
    source = folder / "float.onnx"
    options = FIXED if request.param == "fixed" else GraphOptions()
    exporter.save(exporter.trace(model, spec, options), source, metadata={})
    batches = ImageBatches(
        images=read_unlabelled(str(loose)),
        preprocess=spec.preprocess,
        in_graph=options.with_preprocess,
        batch=options.batch_size or 5,
        fixed=options.batch_size is not None,
    )
    made = {}

    def make(*parts, leave=(), **recipe):
        key = (parts, leave, *recipe.items())
        if key not in made:
            made[key] = folder / f"{len(made)}.onnx"
            prepared = prepare(
                Source(source, "graph", "data", folder / "cache"), Recipe(parts=parts, **recipe), batches, folder
            )
            write(prepared, made[key], leave=leave)
        return made[key], source

    return make


def test_levelled_probabilities_compute_the_same(quantized):
    """The products are left in floating point: what remains of the recipe is exact."""
    path, source = quantized("attention", keep=("blocks.0.attn/MatMul",))
    model = ir.load(path)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            before = node.inputs[0].producer().inputs[0]
            ir.convenience.replace_all_uses_with(node.outputs[0], before)
    ir.save(model, path.with_name("bare.onnx"))
    assert kinds(ir.load(path))["ReduceMax"] >= DEPTH
    assert off_by(answers(path.with_name("bare.onnx")), answers(source)) < 1e-5


def test_levels_end_at_one_whatever_the_images(quantized):
    model = ir.load(quantized(*ALL)[0])
    levels = [node for node in model.graph if node.op_type == "Div" and node.name.endswith(".attn/MatMul_1/Div")]
    assert len(levels) == DEPTH
    for node in levels:
        (quantize,) = (use.node for use in node.outputs[0].uses())
        scale = quantize.inputs[1].const_value.numpy()
        assert 1 / 127 <= scale < 1 / 127 * 1.01  # rounded up to what half precision has too


OVERFLOWS = pytest.mark.skipif(not fast_int8(), reason="without VNNI signed factors overflow")


@pytest.mark.parametrize("signed", [pytest.param(True, marks=OVERFLOWS), False])
def test_the_form_answers_what_q_and_dq_say(quantized, tmp_path, signed):
    path, source = quantized(*ALL)
    forms.prepare(path, form(signed=signed), tmp_path / "form.onnx")
    literal = answers(path, disable_quant_qdq="1")
    entries = {} if signed else {"x64quantprecision": "1"}  # as on processors without VNNI
    assert off_by(answers(tmp_path / "form.onnx", **entries), literal) < 0.02
    assert off_by(literal, answers(source)) < 0.2


def test_every_product_is_an_integer_one(quantized, tmp_path):
    path, _ = quantized(*ALL)
    forms.prepare(path, form(), tmp_path / "form.onnx")
    counts = kinds(ir.load(tmp_path / "form.onnx"))
    assert counts["DequantizeLinear"] == counts["MultiHeadAttention"] == counts["Conv"] == 0
    model = ir.load(tmp_path / "form.onnx")
    # ToMe reads the keys of two layers besides: their projection stays one product.
    splits = [node.name for node in model.graph if node.name.endswith(".attn/Split")]
    assert len(splits) == (2 if path.parent.name.startswith("merging") else 0)
    products = [node for node in model.graph if (node.domain, node.op_type) == integer.OPERATOR]
    names = {node.name for node in products}
    for layer in range(DEPTH):
        assert {f"blocks.{layer}.attn/MatMul", f"blocks.{layer}.attn/MatMul_1"} <= names
    for node in products:
        if node.name.endswith((".attn/MatMul", ".attn/MatMul_1")):
            rows, columns = node.inputs[:2]
            assert (rows.dtype, columns.dtype) == (ir.DataType.UINT8, ir.DataType.INT8)
            moved = columns.producer()
            assert moved.op_type == "Transpose" and moved.inputs[0].producer().op_type == "Reshape"  # 8 bits are moved
    embedding = [node for node in products if node.name.startswith("patch_embed")]
    assert len(embedding) == 1
    assert len(embedding[0].inputs) == 7  # its bias inside


def test_unsigned_factors_where_signed_ones_overflow(quantized, tmp_path):
    path, _ = quantized("attention")
    forms.prepare(path, form(signed=False), tmp_path / "form.onnx")
    model = ir.load(tmp_path / "form.onnx")
    products = [node for node in model.graph if (node.domain, node.op_type) == integer.OPERATOR]
    assert len(products) == 2 * DEPTH
    assert {value.dtype for node in products for value in node.inputs[:2]} == {ir.DataType.UINT8}
    assert {int(value.const_value.numpy()) for node in products for value in node.inputs[4:6]} == {128}


@pytest.mark.parametrize("left", ["MatMul", "MatMul_1"])
def test_attention_with_a_product_in_floating_point_is_left_to_the_runtime(quantized, tmp_path, left):
    path, source = quantized("linear", "attention", leave=(f"blocks.1.attn/{left}",))
    levels = [node.name for node in ir.load(path).graph if node.op_type == "ReduceMax" and ".attn/" in node.name]
    levelled = DEPTH if left == "MatMul" else DEPTH - 1  # what is in floating point needs no levels
    assert len(levels) == levelled
    forms.prepare(path, form(), tmp_path / "form.onnx")
    assert integer_attention.fuse(ir.load(path), signed=True) == DEPTH - 1
    assert off_by(answers(tmp_path / "form.onnx"), answers(path, disable_quant_qdq="1")) < 0.02
    assert off_by(answers(path), answers(source)) < 0.2


def test_attention_that_is_left_in_floating_point_is_one_operator(quantized, tmp_path):
    products = ("blocks.1.attn/MatMul", "blocks.1.attn/MatMul_1")
    path, _ = quantized("linear", "attention", leave=products)
    assert forms.prepare(path, form(), tmp_path / "form.onnx").attentions == 1
    with pytest.raises(ExportError, match=r"3 of 4 attentions in .* are quantised, so they cannot become 'operator'"):
        forms.prepare(path, GraphForm(attention="operator"), tmp_path / "operator.onnx")


def test_an_engine_of_signed_factors_is_refused_where_they_overflow(quantized, tmp_path, monkeypatch):
    path, _ = quantized(*ALL)
    for signed in (True, False):
        forms.prepare(path, form(signed=signed), tmp_path / f"{signed}.onnx")
    monkeypatch.setattr(engine, "fast_int8", lambda: False)
    options = EngineOptions(precision="int8")
    with OnnxRuntime(tmp_path / "False.onnx", options) as opened:
        assert opened.inputs
    with pytest.raises(EngineError, match="built for a processor with VNNI, and this one has none"):
        OnnxRuntime(tmp_path / "True.onnx", options).open()


def share_scores(model):
    product = next(node for node in model.graph if node.name == "blocks.1.attn/MatMul")
    model.graph.outputs.append(product.outputs[0])


def use_probabilities(model):
    softmax = next(node for node in model.graph if node.name == "blocks.1.attn/Softmax")
    again = ir.node("Neg", [softmax.outputs[0]])
    again.outputs[0].name, again.outputs[0].type = "again", softmax.outputs[0].type
    model.graph.append(again)
    model.graph.outputs.append(again.outputs[0])


def shift_keys(model):
    product = next(node for node in model.graph if node.name == "blocks.1.attn/MatMul")
    quantize = product.inputs[1].producer().inputs[0].producer()
    three = ir.Value(name="three", const_value=ir.tensor(np.int8(3), name="three"))
    model.graph.register_initializer(three)
    quantize.replace_input_with(2, three)


def dequantise_otherwise(model):
    product = next(node for node in model.graph if node.name == "blocks.1.attn/MatMul")
    half = ir.Value(name="half", const_value=ir.tensor(np.float32(0.5), name="half"))
    model.graph.register_initializer(half)
    product.inputs[1].producer().replace_input_with(1, half)


@pytest.mark.parametrize("change", [share_scores, use_probabilities, shift_keys, dequantise_otherwise])
def test_attention_of_another_form_stays(quantized, change):
    model = ir.load(quantized("attention")[0])
    change(model)
    assert integer_attention.fuse(model, signed=True) == DEPTH - 1


def pad(model, convolution):
    convolution.attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])


def overlap(model, convolution):
    convolution.attributes["strides"] = ir.AttrInt64s("strides", [2, 2])


def spread(model, convolution):
    convolution.attributes["dilations"] = ir.AttrInt64s("dilations", [2, 2])


def share(model, convolution):
    model.graph.outputs.append(convolution.outputs[0])


@pytest.mark.parametrize("change", [pad, overlap, spread, share])
def test_a_convolution_of_another_form_stays(quantized, change):
    path = quantized("embedding")[0]
    model = ir.load(path)
    assert integer_embedding.fuse(ir.load(path)) == 1
    change(model, next(node for node in model.graph if node.op_type == "Conv"))
    assert integer_embedding.fuse(model) == 0
