"""Attention as one operator: MatMul → Softmax → MatMul turned into one node.

There are two such operators. ONNX's ``Attention`` (opset 23) takes queries, keys and values per head; TensorRT
recommends it as the form that is sure to be fused. ONNX Runtime's own ``MultiHeadAttention`` takes them side by side as
the projection gives them, so that nothing has to be moved before and after
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention).

What is added to the logits, a bias on the keys (``Tokens.key_bias``), becomes an input of either. Both are given it for
every query: ONNX would broadcast it, but ONNX Runtime and TensorRT promise that over images and heads only
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/1.1/_static/operators/Attention.html).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lifedeploy.exporters import passes
from lifedeploy.exporters.attention_patterns import (
    MatchedAttention,
    PackedAttention,
    Size,
    attentions,
    packed_of,
    sizes_of,
)
from lifedeploy.spec import BIAS_INPUT

OPSET = 23  # the first with Attention, and with BF16 in every operator of a ViT (Conv: 22)
CONTRIB = ("com.microsoft", "MultiHeadAttention")  # domain and operator


def raise_opset(model: ir.Model) -> None:
    """Declare :data:`OPSET`, if the graph's is lower.

    From 20 to 23 the operators of a ViT only gained types, so no node changes
    (https://github.com/onnx/onnx/blob/main/docs/Changelog.md).
    """
    model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports.get("", 0))


def fuse(model: ir.Model, least_queries: int = 1) -> int:
    """Put an ``Attention`` node in the place of every MatMul → Softmax → MatMul, with the bias between the first two
    where there is one; how many there were.

    Condition: the scale is a constant that multiplies the query, the key is transposed in front of the product, and
    nothing between the products is used elsewhere; and there are ``least_queries``. What has another form stays as it
    is.
    """
    fused = 0
    biases = _Biases(model)
    for attention in attentions(model, least_queries):
        bias = biases.per_query(attention)
        node = ir.node(
            "Attention",
            [attention.query, attention.key, attention.value, *([bias] if bias is not None else [])],
            {"scale": attention.scale},
            name=f"{attention.scope}/Attention",
        )
        put(model, [node], before=attention.softmax, output=attention.output)
        fused += 1
    if fused:
        raise_opset(model)
        passes.clean(model)
    return fused


def fuse_contrib(model: ir.Model, least_queries: int = 1) -> int:
    """Put a Split and ONNX Runtime's ``MultiHeadAttention`` in the place of a block's attention; how many there were.

    Condition: that of :func:`fuse`; and queries, keys and values are the parts of a tensor (B, N, n·H·D), reshaped,
    transposed to (n, B, H, N, D) and sliced, or one that is all of it, with nothing between (a norm of queries and keys
    would be), and heads are put side by side again afterwards. All of these nodes go. What has another form stays.
    """
    fused = 0
    biases = _Biases(model)
    for attention in attentions(model, least_queries):
        packed = packed_of(attention)
        if packed is None:
            continue
        scope = attention.scope
        splits, parts = split(packed, scope)
        domain, operator = CONTRIB
        bias = biases.per_query(attention)
        node = ir.node(
            operator,
            [*parts, *([None, None, bias] if bias is not None else [])],  # no bias of projections, no mask
            {"num_heads": packed.heads, "scale": attention.scale},
            domain=domain,
            name=f"{scope}/{operator}",
        )
        put(model, [*splits, node], before=attention.softmax, output=packed.output)
        fused += 1
    if fused:
        model.graph.opset_imports[CONTRIB[0]] = 1
        passes.clean(model)
    return fused


def split(packed: PackedAttention, scope: str) -> tuple[list[ir.Node], list[ir.Value]]:
    """Queries, keys and values, and the nodes that part them."""
    nodes: list[ir.Node] = []
    parts: list[ir.Value] = []
    names = iter(("query", "key", "value"))
    for source, count in packed.sources:
        if count == 1:
            next(names)
            parts.append(source)
            continue
        split = ir.node("Split", [source], {"axis": 2, "num_outputs": count}, num_outputs=count, name=f"{scope}/Split")
        for value in split.outputs:
            value.name = f"{scope}/{next(names)}"
            if packed.output.dtype is not None:
                value.type = ir.TensorType(packed.output.dtype)  # each its own: to change one is to change that one
        nodes.append(split)
        parts += split.outputs
    return nodes, parts


def is_contrib(node: ir.Node) -> bool:
    """Whether a node is ONNX Runtime's own attention."""
    return (node.domain, node.op_type) == CONTRIB


def is_operator(node: ir.Node) -> bool:
    """Whether a node is an attention: ONNX's, or ONNX Runtime's own."""
    return is_contrib(node) or (node.op_type == "Attention" and node.domain in ("", "ai.onnx"))


def is_core(node: ir.Node, index: int) -> bool:
    """Whether an input of a node is of the attention itself; its bias comes from elsewhere."""
    return node.op_type == "Softmax" or (is_operator(node) and index != BIAS_INPUT[node.op_type])


def count(model: ir.Model) -> int:
    """Attentions that are one operator."""
    return sum(is_operator(node) for node in model.graph)


def put(model: ir.Model, nodes: Sequence[ir.Node], *, before: ir.Node, output: ir.Value) -> None:
    """Insert ``nodes``, the last of which gives what ``output`` was, under its name."""
    result = nodes[-1].outputs[0]
    result.type, result.shape = output.type, output.shape
    name = output.name
    model.graph.insert_before(before, nodes)
    ir.convenience.replace_all_uses_with(output, result)
    output.name, result.name = None, name


class _Biases:
    """The biases of a graph as operators take them, with an entry for every query."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.expanded: dict[tuple[ir.Value, Size], ir.Value] = {}  # several layers may have the same

    def per_query(self, attention: MatchedAttention) -> ir.Value | None:
        """The bias (B, 1, N, N); an Expand in front of the first attention that needs it makes it of (B, 1, 1, N)."""
        bias = attention.bias
        if bias is None:
            return None
        queries = sizes_of(attention.logits)[2]
        if sizes_of(bias)[2] == queries:
            return bias
        key = (bias, queries)
        if key not in self.expanded:
            sizes = np.array([1, 1, queries, 1], dtype=np.int64)
            repeats = passes.constant(self.model, f"int_1_1_{queries}_1", sizes)
            node = ir.node("Expand", [bias, repeats], name=f"{attention.scope}/Expand")
            node.outputs[0].name, node.outputs[0].type = f"{node.name}_output_0", bias.type
            self.model.graph.insert_before(attention.softmax, node)
            self.expanded[key] = node.outputs[0]
        return self.expanded[key]
