"""Explicit quantisation: QuantizeLinear and DequantizeLinear around the products that are to be computed in 8 bits.

Symmetric throughout (zero point 0), activations per tensor, weights per output channel, biases in floating point: what
TensorRT takes (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html) and
ONNX Runtime and OpenVINO too. An activation is quantised once, whoever uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration.policy import Product
from lifedeploy.exporters import passes

OPSET = 19  # the first with FP8, and with scales in half precision


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that an 8-bit type has, times a scale."""

    precision: str
    type: ir.DataType
    numpy: np.dtype[np.generic]
    largest: float
    half_step: float  # what lies beyond the largest number by no more still rounds to it

    def scale(self, reach: NDArray[np.floating]) -> NDArray[np.float32]:
        """The scale that lets ``reach`` just fit, rounded up to a number that FP16 and BF16 have too.

        So the same 8-bit weights are right whatever the rest of the graph is turned into. BF16 has 8 significant bits,
        FP16 its smallest normal number at 2⁻¹⁴.
        """
        wanted = np.maximum(np.asarray(reach, dtype=np.float64) / self.largest, 2.0**-14)
        mantissa, exponent = np.frexp(wanted)
        rounded: NDArray[np.float32] = np.ldexp(np.ceil(mantissa * 2**8) / 2**8, exponent).astype(np.float32)
        return rounded

    def quantize(self, values: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.generic]:
        """Nearest numbers of the grid; what lies beyond becomes the largest one."""
        scaled: NDArray[Any] = np.clip(np.asarray(values, dtype=np.float32) / scale, -self.largest, self.largest)
        if self.precision == "int8":
            scaled = np.rint(scaled)
        return scaled.astype(self.numpy)

    def rounded(self, values: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is left of ``values`` after Q and DQ."""
        return self.quantize(values, scale).astype(np.float32) * scale


GRIDS = {
    "int8": Grid(precision="int8", type=ir.DataType.INT8, numpy=np.dtype(np.int8), largest=127.0, half_step=0.5),
    "fp8": Grid(
        precision="fp8",
        type=ir.DataType.FLOAT8E4M3FN,
        numpy=np.dtype(ml_dtypes.float8_e4m3fn),
        largest=448.0,
        half_step=16.0,
    ),
}


def insert(
    model: ir.Model,
    products: Sequence[Product],
    scales: Mapping[str, NDArray[np.float32]],
    precision: str,
    *,
    per_channel: bool = True,
) -> None:
    """Put Q and DQ in front of ``products``, in place.

    Args:
        model: a float graph.
        products: products of it.
        scales: name of an activation → its scale, a scalar.
        precision: ``int8`` or ``fp8``.
        per_channel: a scale per output channel of a weight; else one per weight.
    """
    grid = GRIDS[precision]
    model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports.get("", 0))
    dequantized: dict[ir.Value, ir.Value] = {}
    zero = passes.constant(model, f"zero_{precision}", np.zeros((), dtype=grid.numpy))
    for product in products:
        for index, value in enumerate(product.node.inputs[:2]):
            if value is None:
                continue
            if value not in dequantized:
                if value.const_value is not None:
                    dequantized[value] = _weight(model, product, value, grid, zero, per_channel=per_channel)
                else:
                    dequantized[value] = _activation(model, product, value, scales[value.name or ""], grid, zero)
            product.node.replace_input_with(index, dequantized[value])
    for value in dequantized:
        name = value.name or ""
        if value.const_value is not None and not value.uses() and name in model.graph.initializers:
            del model.graph.initializers[name]


def weight_scale(product: Product, grid: Grid, *, per_channel: bool) -> NDArray[np.float32]:
    """Scales of a product's weight: (channels,), or a scalar."""
    assert product.weight is not None and product.weight.const_value is not None
    magnitudes = np.abs(product.weight.const_value.numpy())
    if not per_channel:
        return grid.scale(magnitudes.max())
    others = tuple(axis for axis in range(magnitudes.ndim) if axis != product.channel_axis)
    return grid.scale(magnitudes.max(axis=others))


def along(scale: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    """A scale per channel, shaped to be multiplied with a weight of ``rank`` axes."""
    return scale if scale.ndim == 0 else scale.reshape([-1 if other == axis else 1 for other in range(rank)])


def _weight(
    model: ir.Model, product: Product, value: ir.Value, grid: Grid, zero: ir.Value, *, per_channel: bool
) -> ir.Value:
    """An 8-bit initializer and its DequantizeLinear."""
    assert value.const_value is not None
    numbers = value.const_value.numpy()
    scale = weight_scale(product, grid, per_channel=per_channel)
    small = grid.quantize(numbers, along(scale, product.channel_axis, numbers.ndim))
    name = value.name or product.name
    stored = passes.constant(model, f"{name}_{grid.precision}", small)
    scales = passes.constant(model, f"{name}_scale", scale)
    zeros = zero
    if per_channel:
        zeros = passes.constant(model, f"{name}_zero", np.zeros(scale.shape, dtype=grid.numpy))
    node = ir.node(
        "DequantizeLinear",
        [stored, scales, zeros],
        {"axis": product.channel_axis} if per_channel else {},
        name=f"{name}/DequantizeLinear",
    )
    _describe(node.outputs[0], f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
    model.graph.insert_before(product.node, node)
    return node.outputs[0]


def _activation(
    model: ir.Model, product: Product, value: ir.Value, scale: NDArray[np.float32], grid: Grid, zero: ir.Value
) -> ir.Value:
    """Q and DQ directly behind the node that makes the tensor; of an input, in front of the product."""
    producer = value.producer()
    name = value.name or product.name
    scales = passes.constant(model, f"{name}_scale", scale)
    quantize = ir.node("QuantizeLinear", [value, scales, zero], name=f"{name}/QuantizeLinear")
    _describe(quantize.outputs[0], f"{name}_{grid.precision}", grid.type, value.shape)
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scales, zero], name=f"{name}/DequantizeLinear")
    _describe(dequantize.outputs[0], f"{name}_dequantized", ir.DataType.FLOAT, value.shape)
    if producer is not None:
        model.graph.insert_after(producer, [quantize, dequantize])
    else:
        model.graph.insert_before(product.node, [quantize, dequantize])
    return dequantize.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape
