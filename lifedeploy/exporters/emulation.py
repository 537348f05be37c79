"""What a half-precision graph computes, on a runtime that has no half precision.

ONNX Runtime's CPU provider computes an FP16 graph in FP32 and removes the roundings between two such nodes (its
"precision-free" casts), and knows BF16 hardly at all: what it answers for a half-precision graph proves little. Here
every tensor that the graph declares to be half is FP32, rounded to half after the node that makes it, in arithmetic
that no optimiser may simplify. What the type cannot hold becomes infinite, as it would there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.errors import ExportError
from lifedeploy.exporters import passes
from lifedeploy.exporters.precision import HALF

LARGEST = "/largest"  # behind a tensor's name: an output that gives its largest magnitude


@dataclass(frozen=True, kw_only=True)
class _Half:
    """How FP32 numbers are rounded to a type: Veltkamp's splitting, and the end of its range.

    With c = (2^s + 1) x, c - (c - x) is x rounded to 24 - s bits. BF16 reaches as far as FP32, where c would not be
    finite, so there x is scaled down before and up after.
    """

    name: str
    split: float
    infinite: float  # the smallest number that rounds to more than the type's largest: half a step beyond
    down: float = 1.0

    @property
    def constants(self) -> dict[str, NDArray[np.float32]]:
        """What the arithmetic needs besides x."""
        numbers = {"split": self.split, "infinite": self.infinite, "down": self.down, "up": 1 / self.down}
        return {name: np.array(number, dtype=np.float32) for name, number in numbers.items()}


_HALVES = {
    HALF["fp16"]: _Half(name="fp16", split=2.0**13 + 1, infinite=65520.0),
    HALF["bf16"]: _Half(name="bf16", split=2.0**16 + 1, infinite=2.0**128 - 2.0**119, down=2.0**-24),
}
# Operators that only move numbers: what goes in rounded comes out rounded.
_MOVES = {
    *("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "GatherElements", "GatherND", "Concat"),
    *("Expand", "Split", "Identity", "TopK", "Flatten", "ReduceMax"),
    # A scale is applied to the sum of a product in 8 bits, in FP32: what DQ gives exists nowhere.
    "DequantizeLinear",
}


def emulate(model: ir.Model, *, watch: bool = False) -> int:
    """Turn a half-precision graph into an FP32 one that rounds where the former would, in place.

    Products are accumulated in FP32, as tensor cores do. What rounds to more than the type can hold becomes infinite:
    beyond 65,504 in FP16, 3.39e38 in BF16. FP8 needs no help: QuantizeLinear saturates at its largest number, 448 of
    E4M3, as ONNX defines it and hardware does. Not emulated: FP16's loss of numbers below 6e-5. What an attention
    operator keeps to itself is FP32 here, as in fused kernels; as products its scores are tensors like all others.

    Args:
        model: a graph of :func:`lifedeploy.exporters.precision.to_half`.
        watch: give the largest magnitude of every rounded tensor as a further output, called as the tensor with
            :data:`LARGEST` behind; in the order in which they are computed.

    Returns:
        The number of roundings.

    Raises:
        ExportError: nothing in the graph is half.
    """
    rounded = 0
    halves = {value: _HALVES[value.dtype] for value in passes.values(model) if value.dtype in _HALVES}
    if not halves:
        raise ExportError("nothing in this graph is in half precision: there is nothing to emulate")
    for value in list(model.graph.initializers.values()):
        if value in halves:
            full = value.const_value.numpy().astype(np.float32)  # type: ignore[union-attr]  # an initializer has one
            value.const_value, value.dtype = ir.tensor(full, name=value.name), ir.DataType.FLOAT
    for node in list(model.graph):
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in _HALVES:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for value in node.outputs:
            if value not in halves:
                continue
            value.dtype = ir.DataType.FLOAT
            if node.op_type in _MOVES:
                continue
            _round_after(model, node, value, halves[value], watch=watch)
            rounded += 1
    passes.clean(model)
    return rounded


def _round_after(model: ir.Model, node: ir.Node, value: ir.Value, half: _Half, *, watch: bool) -> None:
    constants = {name: passes.constant(model, f"{half.name}_{name}", number) for name, number in half.constants.items()}
    users = list(value.uses())
    steps: list[ir.Node] = []

    def compute(operator: str, inputs: list[ir.Value], what: str, **attributes: int) -> ir.Value:
        step = ir.node(operator, inputs, attributes, name=f"{value.name}/{what}")
        step.outputs[0].name = step.name
        step.outputs[0].dtype = ir.DataType.BOOL if operator == "GreaterOrEqual" else ir.DataType.FLOAT
        steps.append(step)
        return step.outputs[0]

    small = compute("Mul", [value, constants["down"]], "down") if half.down != 1 else value
    scaled = compute("Mul", [small, constants["split"]], "scaled")
    rest = compute("Sub", [scaled, small], "rest")
    nearest = compute("Sub", [scaled, rest], "nearest")
    size = compute("Abs", [value], "size")  # of x itself: what was infinite before stays so
    beyond = compute("GreaterOrEqual", [size, constants["infinite"]], "beyond")
    infinite = compute("Mul", [value, passes.constant(model, "huge", np.array(np.finfo(np.float32).max))], "infinite")
    finite = compute("Mul", [nearest, constants["up"]], "up") if half.down != 1 else nearest
    result = compute("Where", [beyond, infinite, finite], "rounded")
    if watch:
        reach = compute("ReduceMax", [size], "reach", keepdims=0)
        reach.name, reach.shape = f"{value.name}{LARGEST}", ir.Shape([])
        model.graph.outputs.append(reach)
    for user, index in users:
        user.replace_input_with(index, result)
    model.graph.insert_after(node, steps)
