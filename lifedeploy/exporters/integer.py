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
    for node in list(model.graph):
        pair = _quantised(node)
        if pair is None:
            continue
        quantize, weight = pair
        result, bias = _biased(node)
        last = result.producer()
        if last is None or result.is_graph_output():
            continue
        product = ir.node(
            OPERATOR[1],
            [
                unsigned(model, quantize),
                weight.inputs[0],
                quantize.inputs[1],
                weight.inputs[1],
                zero_point(model),
                zero_of(model, weight.inputs[0]),
                *([bias] if bias is not None else []),
            ],
            domain=OPERATOR[0],
            name=node.name,
        )
        put(model, [product], before=last, output=result)
        fused += 1
    return settled(model, fused)


def settled(model: ir.Model, fused: int) -> int:
    """Finish a graph in which so many places hold the operator; how many."""
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
            inputs[_WEIGHT_ZERO] = zero_of(model, inputs[_WEIGHT])
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
    quantize, weight = quantize_of(node.inputs[0]), weight_of(node.inputs[1], axis=1, rank=2)
    return (quantize, weight) if quantize is not None and weight is not None else None


def quantize_of(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear that an activation comes from, by a DequantizeLinear of the same scale; None but of INT8 with
    zero point 0 and one scale."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
    scale = numbers_of(quantize.inputs[1]) if quantize is not None else None
    if dequantize is None or quantize is None or scale is None or scale.ndim:
        return None
    undone = dequantize.inputs[1] is quantize.inputs[1] and is_symmetric(dequantize)
    return quantize if undone and is_symmetric(quantize) else None


def weight_of(value: ir.Value | None, *, axis: int, rank: int) -> ir.Node | None:
    """The DequantizeLinear of a constant weight of ``rank`` axes: INT8, zero point 0, one scale or one per entry of
    ``axis``; else None."""
    weight = producer(value, "DequantizeLinear")
    stored = numbers_of(weight.inputs[0]) if weight is not None else None
    if weight is None or stored is None or stored.ndim != rank or not is_symmetric(weight):
        return None
    per, along = numbers_of(weight.inputs[1]), weight.attributes.get("axis")
    per_channel = per is not None and per.ndim == 1 and along is not None and along.as_int() in (axis, axis - rank)
    return weight if per is not None and (per.ndim == 0 or per_channel) else None


def is_symmetric(node: ir.Node) -> bool:
    """Whether a Q or DQ is of INT8 with zero point 0."""
    zero = numbers_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return zero is not None and zero.dtype == np.int8 and not zero.any()


def unsigned(model: ir.Model, quantize: ir.Node) -> ir.Value:
    """The same activation quantised to UINT8, by a node behind ``quantize``: one for all that ask."""
    source, signed, name = quantize.inputs[0], quantize.outputs[0], f"{quantize.name}/unsigned"
    users = [use.node for use in source.uses()] if source is not None else []
    known = next((user for user in users if user.name == name), None)
    if known is not None:
        return known.outputs[0]
    node = ir.node("QuantizeLinear", [*quantize.inputs[:2], zero_point(model)], name=name)
    result = node.outputs[0]
    result.name, result.dtype, result.shape = f"{signed.name}_unsigned", ir.DataType.UINT8, signed.shape
    model.graph.insert_after(quantize, [node])
    return result


def zero_point(model: ir.Model) -> ir.Value:
    """The zero point of activations as they are shifted."""
    return passes.constant(model, "zero_uint8", np.array(_SHIFT, dtype=np.uint8))


def zero_of(model: ir.Model, weight: ir.Value | None) -> ir.Value:
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
    added = only_user(alone, "Add")
    if added is None:
        return alone, None
    bias = next((value for value in added.inputs if value is not alone), None)
    numbers, shape = numbers_of(bias), product.inputs[1].shape if product.inputs[1] is not None else None
    if numbers is None or shape is None or numbers.shape != (shape[1],):
        return alone, None
    return added.outputs[0], bias


def _equal_parts(split: ir.Node, product: ir.Node) -> bool:
    """Whether ``split`` takes all of a product with constant weights apart along its last axis, evenly."""
    weight, value = numbers_of(product.inputs[_WEIGHT]), product.outputs[0]
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
    numbers = numbers_of(value)
    if value is None or numbers is None or numbers.ndim == 0:
        return [value] * count
    parts = np.split(numbers, count, axis=-1)
    return [
        passes.constant(model, f"{value.name}{PART}{part}", np.ascontiguousarray(columns))
        for part, columns in enumerate(parts)
    ]


def numbers_of(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant's numbers; None where it is no constant."""
    constant = value.const_value if value is not None else None
    return None if constant is None else constant.numpy()
