"""What the nodes of a compiled DeiT do, and how much work its matrix products are: the rows of ``SHARES.md``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CHANNELS, HEADS, HIDDEN, CLASSES, PATCH, PATCHES = 384, 6, 1536, 1000, 16 * 16 * 3, 196  # of DeiT-S

# Row → kind and name of the executed nodes in it; the first that fits. A node has the name of the last that went into
# it: OpenVINO puts biases and GELU into products, and (in Snippets) QKᵀ, softmax and P·V into a single node.
_FULL = r"FullyConnected|MatMul|Convolution"
ROWS = (
    ("predictor", "", r"^reducer\.predictor"),
    ("TopK", r"TopK", ""),
    ("TopK", "", r"^reducer\.order\.\d+/TopK"),  # its reorder
    ("quantise, dequantise", r"Subgraph|Eltwise|FakeQuantize", r"(De)?[qQ]uantize"),
    ("patch embedding", _FULL, r"patch_embed"),
    ("qkv", _FULL, r"attn\.(qkv|kv|q|k|v)/"),
    ("proj", _FULL, r"attn\.proj/"),
    ("fc1", _FULL, r"mlp\.fc1/"),
    ("fc2", _FULL, r"mlp\.fc2/"),
    ("head", _FULL, r"^(logits|head)"),
    ("attention", r"ScaledDotProductAttention|Subgraph", r"attn/(MatMul_1|Attention)|^ScaledDotProduct"),
    ("QKᵀ", r"MatMul", r"attn/MatMul(_output_0)?$"),
    ("P·V", r"MatMul", r"attn/MatMul_1"),
    ("softmax", r"Softmax", ""),
    ("GELU", r"Gelu|Subgraph|Eltwise", r"/Gelu"),
    ("norms", r"MVN", ""),
    ("scale and shift of norms", "", r"norm\d?/LayerNormalization"),
    ("sums: residuals, positions", r"Subgraph|Eltwise", r"^(blocks\.\d+|tokens)/Add"),
    ("scale of Q", r"Subgraph|Eltwise", r"^Multiply_\d+$|attn/Mul"),  # the export has no other that is left alone
    ("copies", r"Reorder|Transpose|Reshape|Split|Slice|Gather|Concat|Expand|Broadcast", ""),
)
OTHER = "other"
Shape = tuple[int, int, int, int]  # products side by side, M, K, N


@dataclass(frozen=True)
class Node:
    """An executed node."""

    name: str
    kind: str
    precision: str = ""
    origins: tuple[str, ...] = ()  # nodes of the ONNX graph that went into it


def row_of(name: str, kind: str) -> str:
    """The row that an executed node is in."""
    for row, kinds, names in ROWS:
        if (not kinds or re.search(kinds, kind)) and (not names or re.search(names, name)):
            return row
    return OTHER


def held(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Row → what went into its nodes, layers and their numbers left out, most frequent first."""
    went: dict[str, Counter[str]] = {}
    for node in nodes:
        names = went.setdefault(row_of(node.name, node.kind), Counter())
        for origin in filter(None, node.origins):
            names[re.sub(r"_\d+(?=$|/|_)|_output(_0)?", "", re.sub(r"blocks\.\d+[./]?", "", origin))] += 1
    return {row: [name for name, _ in names.most_common()] for row, names in went.items()}


def precisions(nodes: Iterable[Node]) -> dict[str, str]:
    """Row → the precision that most of its nodes ran in."""
    ran: dict[str, Counter[str]] = {}
    for node in nodes:
        ran.setdefault(row_of(node.name, node.kind), Counter())[node.precision] += 1
    return {row: counts.most_common(1)[0][0] for row, counts in ran.items()}


def shapes(keys: Sequence[int], queries: Sequence[int], batch: int) -> dict[str, Counter[Shape]]:
    """Row → the products in it and how often each is there.

    Args:
        keys: patch tokens that every layer attends to.
        queries: those that attend there, and go through its projection and MLP.
        batch: images.
    """
    parts: dict[str, Counter[Shape]] = {"patch embedding": Counter([(1, batch * PATCHES, PATCH, CHANNELS)])}
    for row, (k, n) in {"proj": (CHANNELS, CHANNELS), "fc1": (CHANNELS, HIDDEN), "fc2": (HIDDEN, CHANNELS)}.items():
        parts[row] = Counter((1, batch * (patches + 1), k, n) for patches in queries)
    width, several, together = CHANNELS // HEADS, batch * HEADS, list(zip(keys, queries, strict=True))
    parts["qkv"] = Counter()
    for attended, attending in together:
        if attended == attending:
            parts["qkv"][1, batch * (attended + 1), CHANNELS, 3 * CHANNELS] += 1
        else:  # queries of prefix tokens alone are a product of their own
            parts["qkv"][1, batch * (attending + 1), CHANNELS, CHANNELS] += 1
            parts["qkv"][1, batch * (attended + 1), CHANNELS, 2 * CHANNELS] += 1
    parts["QKᵀ"] = Counter((several, attending + 1, width, attended + 1) for attended, attending in together)
    parts["P·V"] = Counter((several, attending + 1, attended + 1, width) for attended, attending in together)
    parts["attention"] = parts["QKᵀ"] + parts["P·V"]
    parts["head"] = Counter([(1, batch, CHANNELS, CLASSES)])
    return parts


def macs(products: Mapping[Shape, int]) -> int:
    """Multiply-accumulates of products."""
    return sum(count * several * m * k * n for (several, m, k, n), count in products.items())


def summed(layers: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Row → milliseconds of its nodes; a layer is its name, its kind and its milliseconds."""
    spent: dict[str, float] = {}
    for name, kind, ms in layers:
        row = row_of(name, kind)
        spent[row] = spent.get(row, 0.0) + ms
    return spent


def table_rows(
    spent: Mapping[str, float],
    ran: Mapping[str, str],
    products: Mapping[str, Mapping[Shape, int]],
    alone: Mapping[tuple[str, Shape], float],
) -> list[dict[str, float | str | None]]:
    """The rows of a table, slowest first.

    Args:
        spent: row → milliseconds.
        ran: row → precision.
        products: row → its products.
        alone: precision and product → milliseconds of that product by itself.
    """
    whole = sum(spent.values())
    rows: list[dict[str, float | str | None]] = []
    for name, ms in sorted(spent.items(), key=lambda item: -item[1]):
        row: dict[str, float | str | None] = {"row": name, "in": ran.get(name, ""), "ms": ms, "share": ms / whole}
        work = products.get(name, {})
        by_itself = sum(count * alone.get((ran.get(name, ""), shape), 0.0) for shape, count in work.items())
        row["gmacs"] = macs(work) / 1e9 if work else None
        row["gops"] = 2e-6 * macs(work) / ms if work and ms else None
        row["ceiling"] = 2e-6 * macs(work) / by_itself if by_itself else None
        row["of_ceiling"] = by_itself / ms if by_itself and ms else None
        rows.append(row)
    return rows
