"""The quantised graph: what is in it, what it computes, and that the rest of it can be turned into half precision."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lifedeploy.calibration import compare, policy, qdq
from lifedeploy.calibration.quantize import Recipe, write
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import UsageError
from lifedeploy.exporters import attention, precision
from tests.calibration.conftest import operators

INT8, FP8 = qdq.GRIDS["int8"], qdq.GRIDS["fp8"]
DEPTH = 4


@pytest.mark.parametrize("grid", [INT8, FP8])
def test_scales_are_numbers_of_fp16_and_bf16_and_the_range_fits(grid):
    reach = np.geomspace(1e-9, 3e4, 500)
    scale = grid.scale(reach)
    for half in (np.float16, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(scale.astype(half).astype(np.float32), scale)
    assert (scale.astype(np.float64) * grid.largest >= reach).all()
    ordinary = reach / grid.largest > 2.0**-13
    assert (scale[ordinary] * grid.largest <= 1.008 * reach[ordinary]).all()


def test_int8_rounds_to_even_and_saturates():
    values, scale = np.array([0.5, 1.5, -2.5, 126.6, 300, -300], np.float32), np.float32(1)
    assert INT8.quantize(values, scale).tolist() == [0, 2, -2, 127, 127, -127]


def test_fp8_is_e4m3():
    values = np.array([1.0625, 17, 500, -1000, 2.0**-10], np.float32)
    assert FP8.rounded(values, np.float32(1)).tolist() == [1.0, 16.0, 448.0, -448.0, 0.0]


def test_the_graph_has_a_pair_per_activation_and_int8_weights_per_channel(prepared, tmp_path):
    write(prepared(), tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (4 * DEPTH, 8 * DEPTH)
    ranking = precision.RANKING.nodes(model)
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert node not in ranking
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "QuantizeLinear":
            assert node.inputs[1].const_value.numpy().shape == ()  # activations per tensor
            assert len(node.outputs[0].uses()) == 1
    weight = model.graph.initializers["blocks.0.mlp.fc1.weight_t_int8"].const_value.numpy()
    assert weight.dtype == np.int8
    assert (np.abs(weight.astype(int)).max(axis=0) >= 126).all()  # every output channel uses its whole grid
    assert "blocks.0.mlp.fc1.weight_t" not in model.graph.initializers
    assert {node.op_type for node in model.graph if node.name.startswith("head")} == {"Gemm"}


def test_weights_per_tensor_have_one_scale(prepared, tmp_path):
    write(prepared(Recipe(per_channel=False)), tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    scales = [value for name, value in model.graph.initializers.items() if name.endswith("weight_t_scale")]
    assert len(scales) == 4 * DEPTH
    assert {value.const_value.numpy().shape for value in scales} == {()}


def test_it_computes_what_its_integers_say(prepared, batches, tmp_path):
    """A layer's output from the file's own integers, by hand."""
    made = prepared()
    write(made, tmp_path / "q.onnx")
    name = "blocks.0.mlp.fc1/MatMul"
    model = ir.load(tmp_path / "q.onnx")
    product = next(node for node in model.graph if node.name == name)
    quantized = product.inputs[0].producer().inputs[0].name
    scale = product.inputs[0].producer().inputs[1].const_value.numpy()
    stored, scales = (value.const_value.numpy() for value in product.inputs[1].producer().inputs[:2])
    taps = (quantized, product.outputs[0].name)
    with OnnxRuntime(tmp_path / "q.onnx", EngineOptions(taps=taps, literal=True)) as engine:
        results = engine.run({"images": next(iter(batches))[0]})
    sums = results[quantized].astype(np.int64) @ stored.astype(np.int64)
    np.testing.assert_allclose(results[taps[1]], sums * scale * scales, rtol=1e-4, atol=1e-5)


def test_quantising_costs_little_and_something(prepared, check, tmp_path):
    made = prepared()
    write(made, tmp_path / "q.onnx")
    theirs = check.ask(tmp_path / "q.onnx", check.batches)
    assert 1e-7 < compare.noise(check.answers, theirs) < 0.02


def test_onnxruntime_computes_it_in_integers(prepared, check, tmp_path):
    write(prepared(), tmp_path / "q.onnx")
    images, _ = next(iter(check.batches))
    with OnnxRuntime(tmp_path / "q.onnx", EngineOptions(precision="int8")) as engine:
        layers = Counter(layer.kind for layer in engine.profile({"images": images}, runs=1))
    assert layers["MatMulIntegerToFloat"] + layers["DynamicQuantizeMatMul"] == 4 * DEPTH


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_the_remainder_becomes_half_and_the_integers_stay(prepared, tmp_path, to):
    write(prepared(), tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    before = {
        name: value.const_value.numpy().astype(np.float32)
        for name, value in model.graph.initializers.items()
        if name.endswith(("_int8", "_scale"))
    }
    attention.raise_opset(model)
    assert attention.fuse(model) == DEPTH
    precision.to_half(model, to)
    precision.require_half(model, to)
    half = precision.HALF[to]
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            assert node.outputs[0].dtype == half
            stored, scale = node.inputs[:2]
            for value in (stored, scale):
                if value.const_value is not None:
                    original = before[value.name.removesuffix(f"_{to}")]
                    np.testing.assert_array_equal(value.const_value.numpy().astype(np.float32), original)
    onnx.checker.check_model(ir.to_proto(model))


def test_fp8_quantises_attention_with_the_softmax_scale_known(prepared, check, tmp_path):
    made = prepared(Recipe(precision="fp8"))
    write(made, tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    quantized = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert (len(made.names), len(quantized)) == (6 * DEPTH, 8 * DEPTH)
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    for node in softmaxes:
        (use,) = node.outputs[0].uses()
        assert use.node.op_type == "QuantizeLinear"
        assert use.node.inputs[1].const_value.numpy() == pytest.approx(1 / 448)
        assert use.node.inputs[2].dtype == ir.DataType.FLOAT8E4M3FN
    assert len(softmaxes) == DEPTH
    # ONNX Runtime computes E4M3 as ml_dtypes does, so what it says of the graph is what the graph says.
    theirs = check.ask(tmp_path / "q.onnx", check.batches)
    assert 1e-6 < compare.noise(check.answers, theirs) < 0.05


def test_parts_and_products_can_be_chosen(prepared, tmp_path, life):
    made = prepared(Recipe(parts=("linear", "attention"), keep=("blocks.0.*", "*.fc2/MatMul")))
    assert not any(name.startswith("blocks.0.") or "fc2" in name for name in made.names)
    write(made, tmp_path / "q.onnx", leave=[made.names[0]])
    quantized = operators(tmp_path / "q.onnx").count("QuantizeLinear")
    # Three of four layers: qkv, Q, K, P, V, proj and fc1 each; the one that is left out is the first qkv.
    assert quantized == 3 * 7 - 1
    with pytest.raises(UsageError, match="--keep 'nothing' fits no product"):
        prepared(Recipe(keep=("nothing",)))
    with pytest.raises(UsageError, match=r"--keep \* leaves nothing of .*life\.onnx to quantise"):
        prepared(Recipe(keep=("*",)))
    assert len(policy.products_in(life[0])) == 6 * DEPTH + 4


def test_every_part_that_may_be_quantised_can_be(prepared, check, tmp_path):
    made = prepared(Recipe(parts=("linear", "attention", "embedding", "head")))
    write(made, tmp_path / "q.onnx")
    kinds = Counter(operators(tmp_path / "q.onnx"))
    weights = kinds["DequantizeLinear"] - kinds["QuantizeLinear"]
    assert (len(made.names), weights) == (6 * DEPTH + 2, 4 * DEPTH + 2)
    theirs = check.ask(tmp_path / "q.onnx", check.batches)
    assert 1e-6 < compare.noise(check.answers, theirs) < 0.05
    report = compare.report(made, tmp_path / "q.onnx", check)
    assert {layer.part for layer in report.layers} == {"linear", "attention", "embedding", "head"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"precision": "fp16"}, "precision 'fp16' needs no calibration; there are: int8, fp8"),
        ({"ranges": "mean"}, "method 'mean' is unknown; there are: minmax, percentile, entropy"),
        ({"smoothing": 1.0}, r"smoothing 1 is not allowed: it must be in \[0, 1\)"),
        ({"parts": ("ranking",)}, "is never quantised"),
    ],
)
def test_recipes_that_cannot_be_meant(recipe, said):
    with pytest.raises(UsageError, match=said):
        Recipe(**recipe)
