"""Attention as it is traced, MatMul → Softmax → MatMul: which values are around it, and how they are packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_HEADS_FIRST = (2, 0, 3, 1, 4)  # (B, N, n, H, D) → (n, B, H, N, D)
HEADS_BACK = (0, 2, 1, 3)  # (B, H, N, D) → (B, N, H, D), and back

Size = int | ir.SymbolicDim


@dataclass(frozen=True, kw_only=True)
class MatchedAttention:
    """The values around one attention."""

    softmax: ir.Node
    query: ir.Value  # (B, H, N, D), as key, value and output are
    key: ir.Value
    value: ir.Value
    scale: float
    logits: ir.Value  # (B, H, N, N)
    bias: ir.Value | None  # added to them; any but the last of its four sizes may be 1
    output: ir.Value

    @property
    def scope(self) -> str:
        """The module that it was traced in."""
        return (self.softmax.name or "").rpartition("/")[0]


@dataclass(frozen=True)
class PackedAttention:
    """What a block's attention is made of, with heads side by side.

    Queries, keys and values are parts of one tensor (B, N, 3·H·D); or, where prefix tokens alone attend, queries are a
    tensor of their own (B, P, H·D), and keys and values parts of another (B, N, 2·H·D).
    """

    sources: tuple[tuple[ir.Value, int], ...]  # tensors, and how many parts each has
    heads: int
    output: ir.Value  # (B, P, H·D)


def attentions(model: ir.Model, least_queries: int = 1) -> Iterator[MatchedAttention]:
    """Those of a graph that have ``least_queries``, in its order; the graph may be changed between them."""
    for node in list(model.graph):
        attention = _match(node) if node.op_type == "Softmax" and has_queries(node, least_queries) else None
        if attention is not None:
            yield attention


def has_queries(softmax: ir.Node, least: int) -> bool:
    """Whether at least that many queries attend, or it cannot be told; a last block of prefix tokens alone has few."""
    logits = softmax.inputs[0]
    queries = sizes_of(logits)[2:3] if logits is not None else ()
    return not any(isinstance(size, int) and size < least for size in queries)


def _match(softmax: ir.Node) -> MatchedAttention | None:
    scores, _ = logits_of(softmax)
    last = only_user(softmax.outputs[0], "MatMul")
    if scores is None or last is None or last.inputs[0] is not softmax.outputs[0]:
        return None
    return attention_of(softmax, scores.inputs, last.inputs[1], last.outputs[0])


def attention_of(
    softmax: ir.Node, factors: Sequence[ir.Value | None], value: ir.Value | None, output: ir.Value
) -> MatchedAttention | None:
    """The attention around a Softmax of Q·Kᵀ; None where it is of something else, or its logits have other readers.

    Args:
        softmax: of the logits, a bias added to them or not.
        factors: what Q·Kᵀ is of, scaled queries and transposed keys, without Q and DQ where they are quantised.
        value: (B, H, N, D).
        output: what comes of it, (B, H, N, D).
    """
    (scores, bias), matched = logits_of(softmax), query_and_key_of(*factors)
    if scores is None or matched is None or value is None or not is_over_last_axis(softmax):
        return None
    if any(is_shared(logits) for logits in (scores.outputs[0], softmax.inputs[0])):
        return None
    query, key, scale = matched
    return MatchedAttention(
        softmax=softmax,
        query=query,
        key=key,
        value=value,
        scale=scale,
        logits=scores.outputs[0],
        bias=bias,
        output=output,
    )


def query_and_key_of(queries: ir.Value | None, keys: ir.Value | None) -> tuple[ir.Value, ir.Value, float] | None:
    """The query, the key and the scale that the factors of Q·Kᵀ are made of; None where these are something else."""
    scaled, turned = producer(queries, "Mul"), producer(keys, "Transpose")
    if scaled is None or turned is None or permutation_of(turned) != (0, 1, 3, 2):
        return None
    (query, factor), key = scaled.inputs, turned.inputs[0]
    constant = factor.const_value if factor is not None else None
    if query is None or key is None or constant is None or constant.size != 1:
        return None
    return query, key, float(constant.numpy().item())


def logits_of(softmax: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product that a Softmax is of, and the bias that is added to it; no product where it is of something else."""
    logits = softmax.inputs[0]
    added = producer(logits, "Add")
    if added is None:
        return producer(logits, "MatMul"), None
    for product, bias in (added.inputs, added.inputs[::-1]):
        scores = producer(product, "MatMul")
        if scores is not None and bias is not None and _is_bias(sizes_of(bias), sizes_of(scores.outputs[0])):
            return scores, bias
    return None, None


def _is_bias(sizes: Sequence[Size], full: Sequence[Size]) -> bool:
    """Whether ``sizes`` are those of a value for every key, and for each of heads and queries or for all of them."""
    return (
        len(sizes) == len(full) == 4
        and all(isinstance(size, int) for size in full[1:])
        and sizes[1] in (1, full[1])
        and sizes[2] in (1, full[2])
        and sizes[3] == full[3]
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Queries, keys or values (B, H, N, D): which part of a tensor (B, N, n·H·D) they are."""

    source: ir.Value
    index: int
    count: int  # n
    heads: int
    width: int  # D


def packed_of(attention: MatchedAttention) -> PackedAttention | None:
    """What an attention is made of; None where queries, keys or values have another form."""
    parts = [_part(value) for value in (attention.query, attention.key, attention.value)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({(part.heads, part.width) for part in known}) != 1:
        return None
    sources = dict.fromkeys((part.source, part.count) for part in known)
    if [(part.source, part.index) for part in known] != [(it, i) for it, count in sources for i in range(count)]:
        return None
    back = only_user(attention.output, "Transpose")
    merged = only_user(back.outputs[0], "Reshape") if back is not None and permutation_of(back) == HEADS_BACK else None
    if merged is None:
        return None
    heads, width, joined = known[0].heads, known[0].width, integers_of(merged.inputs[1])
    adjacent = len(joined) == 3 and (joined[2] == heads * width or (joined[2] == -1 and joined[1] == 0))
    return PackedAttention(tuple(sources), heads, merged.outputs[0]) if adjacent else None


def _part(value: ir.Value) -> _Part | None:
    """What is reshaped and transposed only: all of a tensor, or a slice of one that holds several."""
    index, turned = 0, producer(value, "Transpose")
    order: tuple[int, ...] = HEADS_BACK
    if turned is None:
        squeezed = producer(value, "Squeeze")
        sliced = producer(squeezed.inputs[0], "Slice") if squeezed is not None else None
        if squeezed is None or sliced is None or integers_of(squeezed.inputs[1]) != (0,):
            return None
        begin, end, axes, *steps = (integers_of(bound) for bound in sliced.inputs[1:])
        if axes != (0,) or len(begin) != 1 or end != (begin[0] + 1,) or any(step != (1,) for step in steps):
            return None
        index, turned, order = begin[0], producer(sliced.inputs[0], "Transpose"), _HEADS_FIRST
    reshaped = producer(turned.inputs[0], "Reshape") if turned is not None and permutation_of(turned) == order else None
    if reshaped is None:
        return None
    source, sizes = reshaped.inputs[0], integers_of(reshaped.inputs[1])
    if source is None or source.shape is None or len(source.shape) != 3 or len(sizes) != len(order):
        return None
    count, heads, width = (*sizes[2:],) if order == _HEADS_FIRST else (1, *sizes[2:])
    keeps = all(new == 0 or new == old for new, old in zip(sizes[:2], source.shape, strict=False))
    whole = heads > 0 and width > 0 and source.shape[2] == count * heads * width
    return _Part(source=source, index=index, count=count, heads=heads, width=width) if keeps and whole else None


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value; None where it is another operator, or where there is none."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def only_user(value: ir.Value, operator: str) -> ir.Node | None:
    """The node that uses a value; None where it is another operator, or where there are several or none: whoever reads
    an output of the graph is one too."""
    uses = list(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output()
    return uses[0].node if alone and uses[0].node.op_type == operator else None


def is_shared(value: ir.Value | None) -> bool:
    """Whether a value has several readers; an output of the graph has one more than its nodes."""
    return value is not None and len(value.uses()) + value.is_graph_output() != 1


def sizes_of(value: ir.Value) -> tuple[Size, ...]:
    """Sizes of a value; none where they are not known."""
    return () if value.shape is None else tuple(value.shape)


def integers_of(value: ir.Value | None) -> tuple[int, ...]:
    """The numbers of a constant; none where it is no constant."""
    constant = value.const_value if value is not None else None
    return () if constant is None else tuple(int(number) for number in np.ravel(constant.numpy()))


def is_over_last_axis(softmax: ir.Node) -> bool:
    """Whether each row of four axes sums to 1."""
    axis = softmax.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 3)


def permutation_of(transpose: ir.Node) -> tuple[int, ...]:
    """The order that a Transpose gives its axes; none where it does not say."""
    order = transpose.attributes.get("perm")
    return () if order is None else tuple(order.as_ints())
