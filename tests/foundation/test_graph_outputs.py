"""A graph as it is asked: no runtime computes what nobody wants."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from lifedeploy.errors import ArtifactError
from lifedeploy.graph_outputs import asked_for, unneeded

FLOAT = TensorProto.FLOAT


def branching() -> onnx.ModelProto:
    """y = x + 1 or around, which only a branch uses; z is for those who ask, and nobody uses w."""
    one = helper.make_node("Add", ["x", "one"], ["around"])
    taken = helper.make_graph(
        [helper.make_node("Neg", ["around"], ["given"])],
        "then",
        [],
        [helper.make_tensor_value_info("given", FLOAT, [2])],
    )
    passed = helper.make_graph([], "else", [], [helper.make_tensor_value_info("other", FLOAT, [2])])
    nodes = [
        one,
        helper.make_node("Abs", ["x"], ["other"]),
        helper.make_node("Exp", ["x"], ["z"]),
        helper.make_node("Log", ["z"], ["w"]),
        helper.make_node("If", ["way"], ["y"], then_branch=taken, else_branch=passed),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2]), helper.make_tensor_value_info("way", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, [2])],
        [helper.make_tensor("one", FLOAT, [1], [1.0])],
    )
    return helper.make_model(graph)


def test_what_no_output_needs_is_found_and_what_branches_use_is_not():
    assert [node.op_type for node in unneeded(branching())] == ["Log", "Exp"]


@pytest.mark.parametrize(
    ("names", "left"),
    [((), ["Add", "Abs", "If"]), (("z",), ["Add", "Abs", "Exp", "If"]), (("w",), ["Add", "Abs", "Exp", "Log", "If"])],
)
def test_what_is_asked_for_stays_and_becomes_an_output(names, left):
    model = onnx.load_from_string(asked_for(Path("m.onnx"), branching(), names))
    assert [node.op_type for node in model.graph.node] == left
    assert [output.name for output in model.graph.output] == ["y", *names]


def test_what_is_not_there_is_named():
    with pytest.raises(ArtifactError, match=r"m\.onnx has no tensor v"):
        asked_for(Path("m.onnx"), branching(), ("v",))


def test_a_model_that_is_none_is_left_to_the_engine_to_refuse():
    without, twice = branching(), branching()
    without.graph.output.pop()
    twice.graph.node.append(twice.graph.node[0])
    assert unneeded(without) == unneeded(twice) == []
