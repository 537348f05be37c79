"""A graph as it is asked: with inner tensors as further outputs, and without what nobody asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lifedeploy.errors import ArtifactError
from lifedeploy.graphs import flattened, graphs_in, is_outside, tensors_of
from lifedeploy.reading import Failure, foreign

if TYPE_CHECKING:  # a heavy library
    import onnx


def asked_for(path: Path, model: onnx.ModelProto, names: Sequence[str], failure: Failure = ArtifactError) -> bytes:
    """A model that was read from ``path``, inner tensors ``names`` as further outputs, without what no output needs.

    Raises:
        ``failure``: there is no such tensor, or weights in other files cannot be read.
    """
    import onnx

    computed = {name for node in model.graph.node for name in node.output}
    typed = {value.name: value for value in model.graph.value_info}
    for name in names:
        if name not in computed:
            raise failure(f"{path} has no tensor {name}")
        if name not in {output.name for output in model.graph.output}:
            model.graph.output.append(typed.get(name) or onnx.ValueInfoProto(name=name))
    for node in unneeded(model):
        model.graph.node.remove(node)
    return serialised(path, model, failure)


def serialised(path: Path, model: onnx.ModelProto, failure: Failure = ArtifactError) -> bytes:
    """A model that was read from ``path`` as one message: weights in other files are taken in.

    Raises:
        ``failure``: they cannot be read.
    """
    import onnx

    with foreign(str(path), failure):
        if any(is_outside(tensor) for tensor in tensors_of(model)):
            onnx.load_external_data_for_model(model, str(path.parent))
        return bytes(model.SerializeToString())


def unneeded(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of a graph that its outputs do not need, last one first: ONNX Runtime computes them all the same.

    None of a model that is none (without outputs, or with a name given twice), which is for the engine to refuse.
    """
    given = [name for node in model.graph.node for name in node.output if name]
    if not model.graph.output or len(given) > len(set(given)):
        return []
    needed, left = {output.name for output in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed.isdisjoint(node.output):
            left.append(node)
            continue
        for inner in flattened([node]):  # a branch may give what was computed around it
            needed.update(inner.input, (output.name for graph in graphs_in(inner) for output in graph.output))
    return left
