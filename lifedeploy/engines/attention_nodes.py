"""The attentions of a graph that an engine is given, by the names that runtimes call them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lifedeploy.kept import of_reducer
from lifedeploy.spec import BIAS_INPUT

if TYPE_CHECKING:  # a heavy library
    import onnx


_FLOAT = 1  # of TensorProto.DataType


@dataclass(frozen=True, kw_only=True)
class AttentionNode:
    """An attention: an operator, or the Softmax between two products."""

    name: str
    operator: str
    half: bool = True  # whether it is in half precision, as far as the graph says
    bias: int | None = None  # keys that a bias is over, 0 where the graph does not say; None: there is no bias

    @property
    def is_operator(self) -> bool:
        """Whether it is one node."""
        return self.operator in BIAS_INPUT

    @property
    def layer(self) -> str:
        """The module that computes it: ``blocks.3.attn``."""
        return self.name.rpartition("/")[0] or self.name

    @property
    def shape(self) -> str:
        """What may keep it from being fused, in words; '' where nothing is special about it."""
        if self.bias is None:
            return ""
        return f"with a bias over {self.bias} keys" if self.bias else "with a bias"


def attention_nodes(model: onnx.ModelProto) -> tuple[AttentionNode, ...]:
    """The attentions of a graph, in its order."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    last = {value.name: value.type.tensor_type.shape.dim[-1:] for value in values}
    full = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}
    makers = {name: node for node in graph.node for name in node.output}

    def keys(name: str) -> int:
        return next((size.dim_value for size in last.get(name, ())), 0)

    nodes = []
    for node in graph.node:
        bias: int | None = None
        if node.op_type in BIAS_INPUT:
            place = BIAS_INPUT[node.op_type]
            if len(node.input) > place and node.input[place]:
                bias = keys(node.input[place])
        elif node.op_type == "Softmax" and not of_reducer(node.name):  # a method's own is over scores
            maker = makers.get(node.input[0])
            bias = keys(node.input[0]) if maker is not None and maker.op_type == "Add" else None
        else:
            continue
        nodes.append(AttentionNode(name=node.name, operator=node.op_type, half=full.isdisjoint(node.output), bias=bias))
    return tuple(nodes)
