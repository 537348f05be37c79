"""Which products of a graph are computed in 8 bits, as data.

Products are sorted into parts by what they do, and those that choose tokens by where they were traced. Everything that
is no product (LayerNormalization, Softmax, Gelu, residual sums, TopK, Gather) stays in floating point in any
case: none of it is arithmetic that 8 bits make faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from lifedeploy.errors import UsageError
from lifedeploy.exporters.inspect import load
from lifedeploy.exporters.ranking import is_inside

_PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Products of one kind, and whether they are quantised unless told otherwise."""

    name: str
    products: str  # which ones, in words
    reason: str
    int8: bool = False
    fp8: bool = False
    optional: bool = True  # whether --parts may name it


PARTS = (
    Part(
        name="linear",
        products="qkv, proj, fc1 and fc2 of every block",
        reason="nine tenths of the arithmetic",
        int8=True,
        fp8=True,
    ),
    Part(
        name="attention",
        products="Q·Kᵀ and P·V",
        reason="INT8 pays in ONNX Runtime on CPUs alone; GPUs fuse attention in FP16, and in FP8 too",
        fp8=True,
    ),
    Part(
        name="embedding",
        products="the convolution over patches",
        reason="a hundredth of the arithmetic: pays in ONNX Runtime on CPUs",
    ),
    Part(
        name="head",
        products="the classifier",
        reason="one token per image: bound by memory, not by arithmetic",
    ),
    Part(
        name="ranking",
        products="all that the method itself computes: scores, fused tokens",
        reason="scores closer than 8 bits can tell decide which token is kept",
        optional=False,
    ),
)
BY_NAME = {part.name: part for part in PARTS}


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution of the graph."""

    node: ir.Node
    part: str

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def weight(self) -> ir.Value | None:
        """Its constant factor; None where both factors are computed."""
        factor = self.node.inputs[1]
        return factor if factor is not None and factor.const_value is not None else None

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """Its computed factors."""
        factors = [self.node.inputs[0], None if self.weight is not None else self.node.inputs[1]]
        return tuple(value for value in factors if value is not None)

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that runs over output channels."""
        if self.node.op_type == "Conv":
            return 0
        transposed = self.node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1


def products(model: ir.Model) -> tuple[Product, ...]:
    """All products of a graph, in its order, each with its part."""
    return tuple(Product(node, _part(node)) for node in model.graph if node.op_type in _PRODUCTS)


def products_in(graph: Path) -> tuple[Product, ...]:
    """All products of the ONNX file ``graph``.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    return products(ir.from_proto(load(graph)))


def _part(node: ir.Node) -> str:
    if is_inside(node):
        return "ranking"
    if node.op_type == "Conv":
        return "embedding"
    first, second = node.inputs[:2]
    if second is None or second.const_value is None:
        return "attention"
    return "head" if first is not None and first.shape is not None and len(first.shape) == 2 else "linear"


def default_parts(precision: str) -> tuple[str, ...]:
    """The parts that are quantised to ``precision`` unless told otherwise."""
    return tuple(part.name for part in PARTS if getattr(part, precision))


def check_parts(parts: Sequence[str]) -> None:
    """Make sure that ``parts`` may be quantised.

    Raises:
        UsageError: one is unknown, or never quantised; or there is none.
    """
    offered = [part.name for part in PARTS if part.optional]
    for name in parts:
        if name not in offered:
            why = f"is never quantised: {BY_NAME[name].reason}" if name in BY_NAME else "is unknown"
            raise UsageError(f"part {name!r} {why}; there are: {', '.join(offered)}")
    if not parts:
        raise UsageError(f"no part to quantise was named; there are: {', '.join(offered)}")


def as_rows(precision: str, parts: Sequence[str], listed: Sequence[Product] = ()) -> list[dict[str, object]]:
    """The policy as plain data: one row per part, with the number of products in a graph where one is given."""
    number = Counter(product.part for product in listed)
    return [
        {
            "part": part.name,
            "products": part.products,
            "precision": precision if part.name in parts else "float",
            "count": number[part.name] if listed else None,
            "reason": part.reason,
        }
        for part in PARTS
    ]
