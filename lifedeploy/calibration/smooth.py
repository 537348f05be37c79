"""SmoothQuant: what is hard to quantise in an activation is moved into the weights, which are quantised per channel.

A LayerNormalization in front of linear layers ends in a multiplication per channel. Dividing its weight and bias by
s_j and multiplying row j of the following weights by s_j computes the same, with channels of the activation that
reach equally far. G. Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration.policy import Product

ALPHA = 0.5
_SMALLEST = 1e-5


@dataclass(frozen=True)
class Seam:
    """A LayerNormalization and the linear layers that alone use what it gives."""

    norm: ir.Node
    layers: tuple[Product, ...]

    @property
    def activation(self) -> str:
        """The tensor between them."""
        return self.norm.outputs[0].name or ""


def seams(products: Sequence[Product]) -> tuple[Seam, ...]:
    """Where a scale can move: all users of a LayerNormalization's output are among ``products``, with weights."""
    by_node = {product.node: product for product in products if product.weight is not None}
    found: dict[ir.Node, None] = {}
    for product in by_node.values():
        norm = product.node.inputs[0].producer() if product.node.inputs[0] is not None else None
        if norm is not None and norm.op_type == "LayerNormalization" and len(norm.inputs) > 1:
            found[norm] = None
    made = []
    for norm in found:
        users = [use.node for use in norm.outputs[0].uses()]
        parameters = [value for value in norm.inputs[1:] if value is not None]
        shared = any(len(value.uses()) > 1 or value.const_value is None for value in parameters)
        weights = [by_node[node].weight for node in users if node in by_node]
        own = all(weight is not None and len(weight.uses()) == 1 for weight in weights)
        if len(weights) == len(users) and own and not shared:
            made.append(Seam(norm, tuple(by_node[node] for node in users)))
    return tuple(made)


def smooth(found: Sequence[Seam], channels: Mapping[str, NDArray[np.float32]], alpha: float = ALPHA) -> int:
    """Move scales, in place; ``channels`` is the largest |x| of every channel of the seams' activations.

    Returns:
        The number of seams.
    """
    for seam in found:
        reach = np.maximum(channels[seam.activation].astype(np.float64), _SMALLEST)
        weights = np.concatenate([_rows(layer) for layer in seam.layers], axis=1)
        weight_reach = np.maximum(np.abs(weights).max(axis=1), _SMALLEST)
        scale = reach**alpha / weight_reach ** (1 - alpha)
        for parameter in seam.norm.inputs[1:]:
            if parameter is not None:
                _replace(parameter, _numbers(parameter) / scale)
        for layer in seam.layers:
            assert layer.weight is not None  # a seam has weights only
            rows = scale[:, None] if layer.channel_axis == 1 else scale[None, :]
            _replace(layer.weight, _numbers(layer.weight) * rows)
    return len(found)


def _rows(layer: Product) -> NDArray[np.float64]:
    """The weight as (inputs, outputs)."""
    assert layer.weight is not None
    numbers = _numbers(layer.weight)
    return numbers if layer.channel_axis == 1 else numbers.T


def _numbers(value: ir.Value) -> NDArray[np.float64]:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _replace(value: ir.Value, numbers: NDArray[np.float64]) -> None:
    value.const_value = ir.tensor(numbers.astype(np.float32), name=value.name)
