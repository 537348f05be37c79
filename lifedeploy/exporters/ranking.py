"""What of a graph chooses tokens: nodes that were traced inside the reducer, told by the scope in their names."""

from __future__ import annotations

import onnx_ir as ir

from lifedeploy.kept import of_reducer

# What goes in may be a float; what comes out is not made of its numbers.
_OF_SHAPES = ("Shape", "Size")


def is_inside(node: ir.Node) -> bool:
    """Whether a node of a graph of ours was traced inside the reducer."""
    return of_reducer(node.name)


def ranking(model: ir.Model) -> set[ir.Node]:
    """What decides which tokens stay, and what lives are made of.

    From where the reducer begins to where numbers become decisions (TopK, comparisons: floats in, integers or booleans
    out), and to further outputs. Not a LayerNormalization that it begins with; and not what it does to the tokens
    themselves: moving, fusing and merging them decides nothing.
    """
    deciding: set[ir.Node] = set()
    waiting = [node for node in model.graph if is_inside(node) and _decides(node)]
    waiting += [
        maker for value in model.graph.outputs[1:] if value.dtype == ir.DataType.FLOAT and (maker := value.producer())
    ]
    while waiting:
        node = waiting.pop()
        if node in deciding or _begins_with(node):
            continue
        deciding.add(node)
        makers = (value.producer() for value in node.inputs if value is not None)
        # Between the reducer and an output lie nodes that earlier versions traced outside of it.
        waiting += [maker for maker in makers if maker is not None and (is_inside(maker) or not is_inside(node))]
    return deciding


def _decides(node: ir.Node) -> bool:
    """Whether it makes integers or booleans of numbers."""
    takes = any(value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs)
    gives = any(value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL) for value in node.outputs)
    return takes and gives and node.op_type not in _OF_SHAPES


def _begins_with(node: ir.Node) -> bool:
    """Whether it is a LayerNormalization of what comes from outside the reducer: exact enough in half precision, which
    computes it in FP32 inside."""
    source = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] is not None else None
    return node.op_type == "LayerNormalization" and (source is None or not is_inside(source))
