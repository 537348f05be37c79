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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lifedeploy.exporters import passes
from lifedeploy.spec import BIAS_INPUT

OPSET = 23  # the first with Attention, and with BF16 in every operator of a ViT (Conv: 22)
CONTRIB = ("com.microsoft", "MultiHeadAttention")  # domain and operator
_HEADS_FIRST = (2, 0, 3, 1, 4)  # (B, N, 3, H, D) → (3, B, H, N, D)
_HEADS_BACK = (0, 2, 1, 3)  # (B, H, N, D) → (B, N, H, D)

Size = int | ir.SymbolicDim


def raise_opset(model: ir.Model) -> None:
    """Declare :data:`OPSET`, if the graph's is lower.

    From 20 to 23 the operators of a ViT only gained types, so no node changes
    (https://github.com/onnx/onnx/blob/main/docs/Changelog.md).
    """
    model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports.get("", 0))


@dataclass(frozen=True, kw_only=True)
class _Attention:
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


def fuse(model: ir.Model) -> int:
    """Put an ``Attention`` node in the place of every MatMul → Softmax → MatMul, with the bias between the first two
    where there is one; how many there were.

    Condition: the scale is a constant that multiplies the query, the key is transposed in front of the product, and
    nothing between the products is used elsewhere; and there is more than one query (:func:`of_one_query`). What has
    another form stays as it is.
    """
    fused = 0
    biases = _Biases(model)
    for attention in _attentions(model):
        if of_one_query(attention.softmax):
            continue
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


def of_one_query(softmax: ir.Node) -> bool:
    """Whether a single query attends, as where the last block computes CLS alone.

    TensorRT has no kernel for the operator of one query and a dynamic batch, and refuses to build it; the products it
    fuses itself (TensorRT for RTX 1.7.1; two queries build in either form).
    """
    logits = softmax.inputs[0]
    return logits is not None and _sizes(logits)[2:3] == (1,)


@dataclass(frozen=True)
class _Packed:
    """What a block's attention is made of, with heads side by side.

    Queries, keys and values are parts of one tensor (B, N, 3·H·D); or, where prefix tokens alone attend, queries are a
    tensor of their own (B, P, H·D), and keys and values parts of another (B, N, 2·H·D).
    """

    sources: tuple[tuple[ir.Value, int], ...]  # tensors, and how many parts each has
    heads: int
    output: ir.Value  # (B, P, H·D)


def fuse_contrib(model: ir.Model) -> int:
    """Put a Split and ONNX Runtime's ``MultiHeadAttention`` in the place of a block's attention; how many there were.

    Condition: that of :func:`fuse`; and queries, keys and values are the parts of a tensor (B, N, n·H·D), reshaped,
    transposed to (n, B, H, N, D) and sliced, or one that is all of it, with nothing between (a norm of queries and keys
    would be), and heads are put side by side again afterwards. All of these nodes go. What has another form stays.
    """
    fused = 0
    biases = _Biases(model)
    for attention in _attentions(model):
        packed = _packed(attention)
        if packed is None:
            continue
        scope = attention.scope
        splits, parts = _split(packed, scope)
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


def _split(packed: _Packed, scope: str) -> tuple[list[ir.Node], list[ir.Value]]:
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

    def per_query(self, attention: _Attention) -> ir.Value | None:
        """The bias (B, 1, N, N); an Expand in front of the first attention that needs it makes it of (B, 1, 1, N)."""
        bias = attention.bias
        if bias is None:
            return None
        queries = _sizes(attention.logits)[2]
        if _sizes(bias)[2] == queries:
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


def _attentions(model: ir.Model) -> Iterator[_Attention]:
    """Those of a graph, in its order; the graph may be changed between them."""
    for node in list(model.graph):
        attention = _match(node) if node.op_type == "Softmax" else None
        if attention is not None:
            yield attention


def _match(softmax: ir.Node) -> _Attention | None:
    scores, bias = _logits(softmax)
    after = list(softmax.outputs[0].uses())
    last = after[0].node if len(after) == 1 and after[0].node.op_type == "MatMul" and after[0].idx == 0 else None
    if scores is None or last is None or not _over_last_axis(softmax):
        return None
    if any(len(value.uses()) != 1 for value in (scores.outputs[0], softmax.inputs[0]) if value is not None):
        return None
    scaled, turned = producer(scores.inputs[0], "Mul"), producer(scores.inputs[1], "Transpose")
    if scaled is None or turned is None or _permutation(turned) != (0, 1, 3, 2):
        return None
    query, factor = scaled.inputs
    key, value = turned.inputs[0], last.inputs[1]
    constant = factor.const_value if factor is not None else None
    if query is None or key is None or value is None or constant is None or constant.size != 1:
        return None
    return _Attention(
        softmax=softmax,
        query=query,
        key=key,
        value=value,
        scale=float(constant.numpy().item()),
        logits=scores.outputs[0],
        bias=bias,
        output=last.outputs[0],
    )


def _logits(softmax: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product that a Softmax is of, and the bias that is added to it; no product where it is of something else."""
    logits = softmax.inputs[0]
    added = producer(logits, "Add")
    if added is None:
        return producer(logits, "MatMul"), None
    for product, bias in (added.inputs, added.inputs[::-1]):
        scores = producer(product, "MatMul")
        if scores is not None and bias is not None and _is_bias(_sizes(bias), _sizes(scores.outputs[0])):
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


@dataclass(frozen=True)
class _Part:
    """Queries, keys or values (B, H, N, D): which part of a tensor (B, N, n·H·D) they are."""

    source: ir.Value
    index: int
    count: int  # n
    heads: int
    width: int  # D


def _packed(attention: _Attention) -> _Packed | None:
    parts = [_part(value) for value in (attention.query, attention.key, attention.value)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({(part.heads, part.width) for part in known}) != 1:
        return None
    sources = dict.fromkeys((part.source, part.count) for part in known)
    if [(part.source, part.index) for part in known] != [(it, i) for it, count in sources for i in range(count)]:
        return None
    back = only_user(attention.output, "Transpose")
    merged = only_user(back.outputs[0], "Reshape") if back is not None and _permutation(back) == _HEADS_BACK else None
    if merged is None:
        return None
    heads, width, joined = known[0].heads, known[0].width, _integers(merged.inputs[1])
    adjacent = len(joined) == 3 and (joined[2] == heads * width or (joined[2] == -1 and joined[1] == 0))
    return _Packed(tuple(sources), heads, merged.outputs[0]) if adjacent else None


def _part(value: ir.Value) -> _Part | None:
    """What is reshaped and transposed only: all of a tensor, or a slice of one that holds several."""
    index, turned = 0, producer(value, "Transpose")
    order: tuple[int, ...] = _HEADS_BACK
    if turned is None:
        squeezed = producer(value, "Squeeze")
        sliced = producer(squeezed.inputs[0], "Slice") if squeezed is not None else None
        if squeezed is None or sliced is None or _integers(squeezed.inputs[1]) != (0,):
            return None
        begin, end, axes, *steps = (_integers(bound) for bound in sliced.inputs[1:])
        if axes != (0,) or len(begin) != 1 or end != (begin[0] + 1,) or any(step != (1,) for step in steps):
            return None
        index, turned, order = begin[0], producer(sliced.inputs[0], "Transpose"), _HEADS_FIRST
    reshaped = producer(turned.inputs[0], "Reshape") if turned is not None and _permutation(turned) == order else None
    if reshaped is None:
        return None
    source, sizes = reshaped.inputs[0], _integers(reshaped.inputs[1])
    if source is None or source.shape is None or len(source.shape) != 3 or len(sizes) != len(order):
        return None
    count, heads, width = (*sizes[2:],) if order == _HEADS_FIRST else (1, *sizes[2:])
    keeps = all(new == 0 or new == old for new, old in zip(sizes[:2], source.shape, strict=False))
    whole = heads > 0 and width > 0 and source.shape[2] == count * heads * width
    return _Part(source, index, count, heads, width) if keeps and whole else None


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value; None where it is another operator, or where there is none."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def only_user(value: ir.Value, operator: str) -> ir.Node | None:
    """The node that uses a value; None where it is another operator, or where there are several or none."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == operator else None


def _sizes(value: ir.Value) -> tuple[Size, ...]:
    return () if value.shape is None else tuple(value.shape)


def _integers(value: ir.Value | None) -> tuple[int, ...]:
    """The numbers of a constant; none where it is no constant."""
    constant = value.const_value if value is not None else None
    return () if constant is None else tuple(int(number) for number in np.ravel(constant.numpy()))


def _over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 3)


def _permutation(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes["perm"].as_ints())
