"""Quantised products as ONNX Runtime's integer operator, with what surrounds them: for its CPU provider.

ONNX Runtime finds Q, DQ and MatMul by itself, but leaves the bias a pass of its own over the product, and queries, keys
and values in one tensor that is copied apart. ``MatMulIntegerToFloat`` adds the bias where it scales its sums
(https://github.com/microsoft/onnxruntime/pull/4350), and without a bias GELU is a kernel of its own, in one pass where
there is AVX-512 (https://github.com/microsoft/onnxruntime/pull/27690), which the fused ``BiasGelu`` is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.exporters import passes
from lifedeploy.exporters.attention import CONTRIB, put
from lifedeploy.exporters.attention_patterns import only_user, producer
from lifedeploy.graphs import PART

OPERATOR = (CONTRIB[0], "MatMulIntegerToFloat")
_SHIFT = 128  # from INT8 to UINT8: x64 has fast kernels for unsigned activations and signed weights only
# Inputs of the operator.
_WEIGHT, _WEIGHT_SCALE, _WEIGHT_ZERO, _BIAS = 1, 3, 5, 6
_ZERO = "/zero"  # behind the name of a weight, that of its zero point


def fuse(model: ir.Model) -> int:
    """Put the integer operator in the place of every product of a quantised activation and a quantised weight, and of
    the bias behind it; how many there were.

    Condition: INT8 on both sides with zero point 0, one scale per activation, weights (in, out) that are constants. The
    integers are the same, activations shifted by 128 (as is their zero point): what is computed is what Q and DQ say.
    What has another form stays as it is, and so does a product that is an output of the graph.
    """
    fused = 0
    shifted: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        pair = _quantised(node)
        if pair is None:
            continue
        quantize, weight = pair
        result, bias = _biased(node)
        last = result.producer()
        if last is None or result.is_graph_output():
            continue
        if quantize.outputs[0] not in shifted:
            shifted[quantize.outputs[0]] = _unsigned(model, quantize)
        product = ir.node(
            OPERATOR[1],
            [
                shifted[quantize.outputs[0]],
                weight.inputs[0],
                quantize.inputs[1],
                weight.inputs[1],
                passes.constant(model, "zero_uint8", np.array(_SHIFT, dtype=np.uint8)),
                _zero(model, weight.inputs[0]),
                *([bias] if bias is not None else []),
            ],
            domain=OPERATOR[0],
            name=node.name,
        )
        put(model, [product], before=last, output=result)
        fused += 1
    if fused:
        model.graph.opset_imports[OPERATOR[0]] = 1
        passes.clean(model)
    return fused


def take_apart(model: ir.Model) -> int:
    """Compute the parts of an integer product that a Split takes apart one by one; how many products there were.

    Condition: a Split into equal parts along the last axis, and nothing else uses the product. Its weight, scales and
    bias are split instead, so that no tensor has to be copied; parts are named after the product (:data:`PART`).
    """
    done = 0
    for node in list(model.graph):
        product = producer(node.inputs[0], OPERATOR[1]) if node.op_type == "Split" else None
        if product is None or not _equal_parts(node, product):
            continue
        count = len(node.outputs)
        columns = {index: _columns(model, product, index, count) for index in (_WEIGHT, _WEIGHT_SCALE, _BIAS)}
        for part, value in enumerate(list(node.outputs)):
            inputs = [columns[index][part] if index in columns else it for index, it in enumerate(product.inputs)]
            inputs[_WEIGHT_ZERO] = _zero(model, inputs[_WEIGHT])
            name = f"{product.name}{PART}{part}"
            operator = ir.node(product.op_type, inputs, domain=product.domain, name=name)
            put(model, [operator], before=node, output=value)
        done += 1
    if done:
        passes.clean(model)
    return done


def _quantised(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The QuantizeLinear of a product's activation and the DequantizeLinear of its weight; None of other nodes."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    activation, weight = (producer(value, "DequantizeLinear") for value in node.inputs)
    quantize = producer(activation.inputs[0], "QuantizeLinear") if activation is not None else None
    if quantize is None or weight is None:
        return None
    scale, stored = _numbers(quantize.inputs[1]), _numbers(weight.inputs[0])
    if scale is None or scale.ndim or stored is None or stored.ndim != 2:
        return None
    per = _numbers(weight.inputs[1])
    along = weight.attributes.get("axis")
    per_channel = per is not None and per.ndim == 1 and along is not None and along.as_int() in (1, -1)
    if per is None or not (per.ndim == 0 or per_channel):
        return None
    return (quantize, weight) if _symmetric(quantize) and _symmetric(weight) else None


def _symmetric(node: ir.Node) -> bool:
    """Whether a Q or DQ is of INT8 with zero point 0."""
    zero = _numbers(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero is not None and zero.dtype == np.int8 and not zero.any()


def _unsigned(model: ir.Model, quantize: ir.Node) -> ir.Value:
    """The same activation quantised to UINT8, by a node behind ``quantize``."""
    zero = passes.constant(model, "zero_uint8", np.array(_SHIFT, dtype=np.uint8))
    node = ir.node("QuantizeLinear", [*quantize.inputs[:2], zero], name=f"{quantize.name}/unsigned")
    result, signed = node.outputs[0], quantize.outputs[0]
    result.name, result.dtype, result.shape = f"{signed.name}_unsigned", ir.DataType.UINT8, signed.shape
    model.graph.insert_after(quantize, [node])
    return result


def _zero(model: ir.Model, weight: ir.Value | None) -> ir.Value:
    """The zero point of a weight: one for all its channels, which is less to add up than one for each.

    And one for this weight alone: where ONNX Runtime makes weights unsigned (``session.x64quantprecision``), it gives
    each product's a new zero point under a name made of the old one, and refuses a graph where that comes twice.
    """
    assert weight is not None  # a DequantizeLinear has its input
    return passes.constant(model, f"{weight.name}{_ZERO}", np.zeros((), dtype=np.int8))


def _biased(product: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    """What a product is with its bias, and the bias; the product alone where a constant per channel is not all that is
    added to it, or where it is used without."""
    alone = product.outputs[0]
    added = only_user(alone, "Add") if not alone.is_graph_output() else None
    if added is None:
        return alone, None
    bias = next((value for value in added.inputs if value is not alone), None)
    numbers, shape = _numbers(bias), product.inputs[1].shape if product.inputs[1] is not None else None
    if numbers is None or shape is None or numbers.shape != (shape[1],):
        return alone, None
    return added.outputs[0], bias


def _equal_parts(split: ir.Node, product: ir.Node) -> bool:
    """Whether ``split`` takes all of a product with constant weights apart along its last axis, evenly."""
    weight, value = _numbers(product.inputs[_WEIGHT]), product.outputs[0]
    axis = split.attributes.get("axis")
    if weight is None or value.shape is None or axis is None or len(value.uses()) != 1:
        return False
    if any(it.is_graph_output() for it in (value, *split.outputs)):
        return False
    evenly = len(split.inputs) == 1 and weight.shape[1] % len(split.outputs) == 0
    return evenly and axis.as_int() in (-1, len(value.shape) - 1)


def _columns(model: ir.Model, product: ir.Node, index: int, count: int) -> list[ir.Value | None]:
    """A constant input of a product, split along its columns; as it is, for every part, where it has none."""
    value = product.inputs[index] if index < len(product.inputs) else None
    numbers = _numbers(value)
    if value is None or numbers is None or numbers.ndim == 0:
        return [value] * count
    parts = np.split(numbers, count, axis=-1)
    return [
        passes.constant(model, f"{value.name}{PART}{part}", np.ascontiguousarray(columns))
        for part, columns in enumerate(parts)
    ]


def _numbers(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant's numbers; None where it is no constant."""
    constant = value.const_value if value is not None else None
    return None if constant is None else constant.numpy()
