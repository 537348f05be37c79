"""Attention whose products are quantised, as ONNX Runtime's integer operator: for its CPU provider.

As calibrated, heads are taken apart in floating point and quantised then. Here queries, keys and values are quantised
as the projection gives them, and what is moved is a quarter of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lifedeploy.exporters import passes
from lifedeploy.exporters.attention import put, split
from lifedeploy.exporters.attention_patterns import (
    HEADS_BACK,
    MatchedAttention,
    PackedAttention,
    attention_of,
    logits_of,
    only_user,
    packed_of,
)
from lifedeploy.exporters.integer import OPERATOR, numbers_of, quantize_of, settled, unsigned, zero_point
from lifedeploy.exporters.ranking import is_inside
from lifedeploy.exporters.row_levels import restored_of

_KEYS_LAST = (0, 2, 3, 1)  # (B, N, H, D) → (B, H, D, N), as Q·Kᵀ takes keys


@dataclass(frozen=True, kw_only=True)
class _Quantised:
    """An attention with Q and DQ in front of both products."""

    attention: MatchedAttention
    packed: PackedAttention
    products: tuple[ir.Node, ir.Node]  # Q·Kᵀ and P·V
    quantizes: tuple[ir.Node, ir.Node, ir.Node, ir.Node]  # of scaled queries, keys, levels, values


def fuse(model: ir.Model, *, signed: bool) -> int:
    """Put the integer operator in the place of both products of every attention that is quantised; how many there were.

    Condition: INT8 with zero point 0 in front of both products, one scale each; probabilities levelled
    (:func:`row_levels.level`); and the packing that :func:`attention.fuse_contrib` asks for. The integers are those
    that Q and DQ say. What has another form stays as it is.

    Args:
        model: a graph, changed in place.
        signed: keys and values as signed integers, which is twice as fast where there is VNNI, and overflows in silence
            where there is none; else as unsigned ones.
    """
    fused = 0
    for node in list(model.graph):
        quantised = _match(node) if node.op_type == "Softmax" and not is_inside(node) else None
        if quantised is not None:
            _rewrite(model, quantised, signed=signed)
            fused += 1
    return settled(model, fused)


def is_quantized(softmax: ir.Node) -> bool:
    """Whether the product that a Softmax is of has quantised factors."""
    scores, _ = logits_of(softmax)
    return scores is not None and all(quantize_of(value) is not None for value in scores.inputs)


def _match(softmax: ir.Node) -> _Quantised | None:
    (scores, _), mixed = logits_of(softmax), _mixed(softmax)
    if scores is None or mixed is None:
        return None
    quantizes = tuple(quantize_of(value) for value in (*scores.inputs, *mixed.inputs))
    known = tuple(node for node in quantizes if node is not None)
    if len(known) != 4:
        return None
    queries, keys, levels, values = (node.inputs[0] for node in known)
    output = restored_of(mixed, levels)
    attention = attention_of(softmax, (queries, keys), values, output) if output is not None else None
    packed = packed_of(attention) if attention is not None and attention.scale > 0 else None
    if attention is None or packed is None:
        return None
    return _Quantised(attention=attention, packed=packed, products=(scores, mixed), quantizes=known)


def _mixed(softmax: ir.Node) -> ir.Node | None:
    """The product that levelled and quantised probabilities are the first factor of."""
    users = [use.node for use in softmax.outputs[0].uses()]
    node = next((user for user in users if user.op_type == "Div"), None)
    for operator in ("QuantizeLinear", "DequantizeLinear", "MatMul"):
        node = only_user(node.outputs[0], operator) if node is not None else None
    return node if len(users) == 2 and not softmax.outputs[0].is_graph_output() else None  # the other is of the largest


def _rewrite(model: ir.Model, quantised: _Quantised, *, signed: bool) -> None:
    heads, scale = quantised.packed.heads, quantised.attention.scale
    (scores, mixed), (queries, keys, levels, values) = quantised.products, quantised.quantizes
    splits, (query, key, value) = split(quantised.packed, quantised.attention.scope)
    # Queries are quantised before they are scaled: by another scale they are the same integers, but for ties that
    # round to the other neighbour where the scale is no power of two.
    query_heads = _heads_of(model, queries, query, heads, HEADS_BACK, signed=False, scaled=scale)
    key_heads = _heads_of(model, keys, key, heads, _KEYS_LAST, signed=signed)
    product = _product(
        model, scores, (query_heads[-1].outputs[0], queries), (key_heads[-1].outputs[0], keys), signed=signed
    )
    put(model, [*splits, *query_heads, *key_heads, product], before=scores, output=scores.outputs[0])
    value_heads = _heads_of(model, values, value, heads, HEADS_BACK, signed=signed)
    shares = unsigned(model, levels)
    product = _product(model, mixed, (shares, levels), (value_heads[-1].outputs[0], values), signed=signed)
    put(model, [*value_heads, product], before=mixed, output=mixed.outputs[0])


def _heads_of(
    model: ir.Model,
    quantize: ir.Node,
    part: ir.Value,
    heads: int,
    order: tuple[int, ...],
    *,
    signed: bool,
    scaled: float = 1.0,
) -> tuple[ir.Node, ...]:
    """Nodes that make of a ``part`` (B, N, H·D) what ``quantize`` makes of it once it is ``scaled``, in an order."""
    name, step = quantize.name or "", numbers_of(quantize.inputs[1])
    assert step is not None  # matched as a constant
    scale = quantize.inputs[1]
    if scaled != 1:
        scale = passes.constant(model, f"{name}/unscaled", np.asarray(step / np.float32(scaled), dtype=np.float32))
    zero = quantize.inputs[2] if signed else zero_point(model)
    apart = passes.constant(model, f"int_0_0_{heads}_m1", np.array([0, 0, heads, -1], dtype=np.int64))
    small = ir.node("QuantizeLinear", [part, scale, zero], name=f"{name}/part")
    split_up = ir.node("Reshape", [small.outputs[0], apart], name=f"{name}/Reshape")
    turned = ir.node("Transpose", split_up.outputs, {"perm": order}, name=f"{name}/Transpose")
    for node in (small, split_up, turned):
        node.outputs[0].dtype = ir.DataType.INT8 if signed else ir.DataType.UINT8
    return small, split_up, turned


def _product(
    model: ir.Model,
    product: ir.Node,
    left: tuple[ir.Value, ir.Node],
    right: tuple[ir.Value, ir.Node],
    *,
    signed: bool,
) -> ir.Node:
    """The integer operator for a ``product`` of two computed factors, each with the node it was quantised by."""
    (rows, by_rows), (columns, by_columns) = left, right
    zeros = zero_point(model), by_columns.inputs[2] if signed else zero_point(model)
    scales = by_rows.inputs[1], by_columns.inputs[1]
    return ir.node(OPERATOR[1], [rows, columns, *scales, *zeros], domain=OPERATOR[0], name=product.name)
