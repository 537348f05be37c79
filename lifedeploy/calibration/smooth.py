"""SmoothQuant: what is hard to quantise in an activation is moved into the weights, which are quantised per channel.

Dividing channel j of an activation by s_j and multiplying row j of the following weights by s_j computes the same, with
channels that reach equally far. G. Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.
Behind a LayerNormalization this is free: its multiplication per channel takes the division in. Behind a GELU it is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration.policy import Product
from lifedeploy.exporters import passes

ALPHA = 0.6  # measured best of 0.5, 0.6 and 0.7 (benchmarks/quantization)
_SMALLEST = 1e-5
_PARAMETERS = ("input", "scale", "bias")  # of a LayerNormalization


@dataclass(frozen=True)
class Migration:
    """Where scales migrate: from a LayerNormalization or GELU into the linear layers that alone use its output."""

    node: ir.Node
    layers: tuple[Product, ...]

    @property
    def activation(self) -> str:
        """The tensor between them."""
        return self.node.outputs[0].name or ""

    @property
    def free(self) -> bool:
        """Whether the division disappears in constants."""
        return self.node.op_type == "LayerNormalization"


def migrations_of(products: Sequence[Product]) -> tuple[Migration, ...]:
    """Where a scale can move: all users of an activation are among ``products``, with weights of their own."""
    by_node = {product.node: product for product in products if product.weight is not None}
    before = [product.node.inputs[0].producer() for product in by_node.values() if product.node.inputs[0] is not None]
    makers = dict.fromkeys(node for node in before if node is not None and _movable(node))
    migrations = []
    for node in makers:
        users = [use.node for use in node.outputs[0].uses()]
        weights = [by_node[user].weight for user in users if user in by_node]
        if len(weights) == len(users) and all(weight is not None and len(weight.uses()) == 1 for weight in weights):
            migrations.append(Migration(node, tuple(by_node[user] for user in users)))
    return tuple(migrations)


def _movable(node: ir.Node) -> bool:
    if node.op_type != "LayerNormalization":
        return node.op_type == "Gelu"
    parameters = [value for value in node.inputs[1:] if value is not None]
    return bool(parameters) and all(value.const_value is not None for value in parameters)


def smooth(
    model: ir.Model, migrations: Sequence[Migration], channels: Mapping[str, NDArray[np.float32]], alpha: float
) -> None:
    """Move scales, in place; ``channels`` is the largest |x| of every channel of their activations."""
    for migration in migrations:
        scale = _scale(migration, channels[migration.activation], alpha)
        if migration.free:
            for index, parameter in enumerate(migration.node.inputs[1:], start=1):
                if parameter is not None:
                    _replace(_unshared(model, migration.node, index, parameter), _numbers(parameter) / scale)
        else:
            _divide(model, migration, scale)
        for layer in migration.layers:
            assert layer.weight is not None  # a migration has weights only
            rows = scale[:, None] if layer.channel_axis == 1 else scale[None, :]
            _replace(layer.weight, _numbers(layer.weight) * rows)


def _scale(migration: Migration, channels: NDArray[np.float32], alpha: float) -> NDArray[np.float64]:
    reach = np.maximum(channels.astype(np.float64), _SMALLEST)
    weights = np.concatenate([_rows(layer) for layer in migration.layers], axis=1)
    weight_reach = np.maximum(np.abs(weights).max(axis=1), _SMALLEST)
    scale = reach**alpha / weight_reach ** (1 - alpha)
    # A common factor changes nothing but the numbers.
    return np.asarray(scale / np.exp(np.log(scale).mean()), dtype=np.float64)


def _unshared(model: ir.Model, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
    """The constant as this place's alone: exporters share equal ones, such as the ones and zeros of untrained norms.

    A norm may share them with itself: its copies are named by their place.
    """
    if len(value.uses()) == 1:
        return value
    name = f"{node.name}/{_PARAMETERS[index]}"
    copy = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    model.graph.register_initializer(copy)
    node.replace_input_with(index, copy)
    return copy


def _divide(model: ir.Model, migration: Migration, scale: NDArray[np.float64]) -> None:
    """Put a multiplication by 1 / ``scale`` between the norm or GELU and its layers."""
    value = migration.node.outputs[0]
    factor = passes.constant(model, f"{value.name}_smoothing", (1 / scale).astype(np.float32))
    node = ir.node("Mul", [value, factor], name=f"{value.name}/Smoothing")
    smoothed = node.outputs[0]
    smoothed.name, smoothed.type, smoothed.shape = f"{value.name}_smoothed", value.type, value.shape
    model.graph.insert_after(migration.node, node)
    for layer in migration.layers:
        layer.node.replace_input_with(0, smoothed)


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
