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
    queries: int = 0  # rows of that bias; 0: as many as keys, or the graph does not say

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
    last = {value.name: value.type.tensor_type.shape.dim[-2:] for value in values}
    full = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}
    makers = {name: node for node in graph.node for name in node.output}

    def sizes(name: str) -> tuple[int, int]:
        """Queries and keys of a bias, or of scores with one."""
        known = [size.dim_value for size in last.get(name, ())]
        queries, keys = known if len(known) == 2 else (0, 0)
        return 0 if queries == keys else queries, keys

    nodes = []
    for node in graph.node:
        biased = ""
        if node.op_type in BIAS_INPUT:
            place = BIAS_INPUT[node.op_type]
            biased = node.input[place] if len(node.input) > place else ""
        elif node.op_type == "Softmax" and not of_reducer(node.name):  # a method's own is over scores
            maker = makers.get(node.input[0])
            biased = node.input[0] if maker is not None and maker.op_type == "Add" else ""
        else:
            continue
        queries, keys = sizes(biased)
        nodes.append(
            AttentionNode(
                name=node.name,
                operator=node.op_type,
                half=full.isdisjoint(node.output),
                bias=keys if biased else None,
                queries=queries,
            )
        )
    return tuple(nodes)
