"""What a half-precision graph computes, on a runtime that has no half precision.

ONNX Runtime's CPU provider computes an FP16 graph in FP32 and removes the roundings between two such nodes (its
"precision-free" casts), and knows BF16 hardly at all: what it answers for a half-precision graph proves little. Here
every tensor that the graph declares to be half is FP32, rounded to half after the node that makes it, in arithmetic
that no optimiser may simplify.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lifedeploy.errors import ExportError
from lifedeploy.exporters import passes
from lifedeploy.exporters.precision import HALF

# Veltkamp's splitting constant 2^s + 1: x rounded to 24 - s bits is c - (c - x) with c = (2^s + 1) x.
_SPLIT = {HALF["fp16"]: 2.0**13 + 1, HALF["bf16"]: 2.0**16 + 1}
# Operators that only move numbers: what goes in rounded comes out rounded.
_MOVES = {
    *("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "GatherElements", "GatherND", "Concat"),
    *("Expand", "Split", "Identity", "TopK", "Flatten"),
    # A scale is applied to the sum of a product in 8 bits, in FP32: what DQ gives exists nowhere.
    "DequantizeLinear",
}


def emulate(model: ir.Model) -> int:
    """Turn a half-precision graph into an FP32 one that rounds where the former would, in place.

    Products are accumulated in FP32, as tensor cores do. FP16's overflow and its loss of small numbers are not
    emulated: an overflowing tensor would come out right here and infinite there, so look at the range of activations
    as well (:func:`lifedeploy.exporters.precision.to_half` refuses weights that overflow).

    Returns:
        The number of roundings.

    Raises:
        ExportError: nothing in the graph is half.
    """
    rounded = 0
    halves = {value: _SPLIT[value.dtype] for value in _values(model) if value.dtype in _SPLIT}
    if not halves:
        raise ExportError("nothing in this graph is in half precision: there is nothing to emulate")
    for value in list(model.graph.initializers.values()):
        if value in halves:
            full = value.const_value.numpy().astype(np.float32)  # type: ignore[union-attr]  # an initializer has one
            value.const_value, value.dtype = ir.tensor(full, name=value.name), ir.DataType.FLOAT
    splits: dict[float, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in _SPLIT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            if value not in halves:
                continue
            value.dtype = ir.DataType.FLOAT
            if node.op_type in _MOVES:
                continue
            split = halves[value]
            if split not in splits:
                splits[split] = _constant(model, split)
            _round_after(model, node, value, splits[split])
            rounded += 1
    passes.clean(model)
    return rounded


def _round_after(model: ir.Model, node: ir.Node, value: ir.Value, split: ir.Value) -> None:
    scaled = ir.node("Mul", [value, split], name=f"{value.name}/scaled")
    rest = ir.node("Sub", [scaled.outputs[0], value], name=f"{value.name}/rest")
    result = ir.node("Sub", [scaled.outputs[0], rest.outputs[0]], name=f"{value.name}/rounded")
    for made in (scaled, rest, result):
        made.outputs[0].name, made.outputs[0].dtype = made.name, ir.DataType.FLOAT
    users = [use for use in value.uses() if use.node is not scaled and use.node is not rest]
    for user, index in users:
        user.replace_input_with(index, result.outputs[0])
    model.graph.insert_after(node, [scaled, rest, result])


def _constant(model: ir.Model, number: float) -> ir.Value:
    name = f"split_{number:.0f}"
    tensor = ir.tensor(np.array(number, dtype=np.float32), name=name)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *model.graph.initializers.values(), *(v for node in model.graph for v in node.outputs)]
