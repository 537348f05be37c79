"""Products that ONNX Runtime computes in integers, by the graph that it optimised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lifedeploy import graphs
from lifedeploy.errors import EngineError

if TYPE_CHECKING:  # a heavy library
    import onnx

_OPERATORS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm")
_SIGNED = {"MatMulIntegerToFloat": 5, "MatMulInteger": 3}  # where the second factor's zero point is


def integer_products(optimized: Path) -> dict[str, int]:
    """How many products ONNX Runtime really computes in integers, by the graph it optimised; others keep Q and DQ.

    A product that is computed in parts is one.
    """
    products = {
        (node.op_type, node.name.partition(graphs.PART)[0] or f"{index}")
        for index, node in enumerate(graphs.read(optimized).graph.node)
        if node.op_type in _OPERATORS
    }
    return dict(Counter(kind for kind, _ in sorted(products)))


def require_no_overflow(path: Path, model: onnx.ModelProto) -> None:
    """Make sure that a processor without VNNI is given no integer product whose second factor is signed and computed:
    ``x64quantprecision`` makes weights unsigned, and nothing else.

    Raises:
        EngineError: there is one.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in graphs.nodes_of(model):
        place = _SIGNED.get(node.op_type, len(node.input))
        if place >= len(node.input) or node.input[1] in constants:
            continue
        zero = constants.get(node.input[place])
        if zero is not None and zero.data_type == zero.INT8:
            raise EngineError(
                f"{path} was built for a processor with VNNI, and this one has none: its attention would overflow",
                hint="lifedeploy build-engine --int8, here",
            )
