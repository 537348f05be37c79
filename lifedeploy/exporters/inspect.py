"""Reading facts off any ONNX file, ours or not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lifedeploy.artifact import TensorSpec
from lifedeploy.bounds import require_sound
from lifedeploy.errors import ExportError
from lifedeploy.graphs import dtype_name, is_outside, read, tensors_of
from lifedeploy.kept import kept_layer
from lifedeploy.reading import foreign

if TYPE_CHECKING:  # what opens engines of other files does without it
    import onnx

GATHERS = ("Gather", "GatherElements", "GatherND")


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What is in a graph, as far as deployment cares."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    operators: dict[str, int]
    parameters: int
    weight_types: dict[str, int]  # dtype → parameters
    topk: tuple[int, ...]  # k of every TopK; 0 where it is computed in the graph
    gathers_after_topk: int  # Gather-family nodes that a TopK's indices reach, and that move no indices themselves
    metadata: dict[str, str]
    producer: str

    @property
    def precision(self) -> str:
        """The precision that most weights are in."""
        names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "float8_e4m3fn": "fp8"}
        if not self.weight_types:
            return "unknown"
        most = max(self.weight_types, key=lambda dtype: self.weight_types[dtype])
        return names.get(most, most)


def load(path: Path, *, check: bool = True) -> onnx.ModelProto:
    """Load an ONNX file, and check it against the standard.

    Raises:
        ArtifactError: missing, damaged, or no ONNX file; or what it declares is not there, or does not fit into memory.
    """
    import onnx

    model = require_sound(path) if check else read(path)
    with foreign(f"{path} is not a valid ONNX file: it"):
        outside = any(is_outside(tensor) for tensor in tensors_of(model))
        if check:  # by path only with weights in other files: a path has to be UTF-8 there
            onnx.checker.check_model(str(path) if outside else model)
        if outside:
            onnx.load_external_data_for_model(model, str(path.parent))
    return model


def facts(model: onnx.ModelProto) -> GraphFacts:
    """The facts of a loaded model."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    types: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = dtype_name(tensor.data_type)
        # Integers are shapes and indices, not weights; 8-bit ones are quantised weights.
        if dtype in ("int8", "uint8") or "float" in dtype:
            types[dtype] += math.prod(tensor.dims)
    return GraphFacts(
        inputs=tuple(_spec(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in graph.output),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        parameters=sum(types.values()),
        weight_types=dict(types),
        topk=_topk_sizes(graph),
        gathers_after_topk=len(_gathers_after_topk(graph)),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(value.name, (kind or "unknown").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype_name(tensor.elem_type), dims)


def _topk_sizes(graph: onnx.GraphProto) -> tuple[int, ...]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants.update(dict.fromkeys(node.output[:1], node.attribute[0].t))
    return tuple(_count_of(node, constants) for node in graph.node if node.op_type == "TopK")


def _count_of(topk: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int:
    """Its k; 0 where that is computed, or no number."""
    import onnx

    fixed = next((attribute.i for attribute in topk.attribute if attribute.name == "k"), 0)  # before opset 10
    k = constants.get(topk.input[1]) if len(topk.input) > 1 else None
    if k is None or math.prod(k.dims) != 1 or k.data_type != onnx.TensorProto.INT64:
        return int(fixed)
    return int(onnx.numpy_helper.to_array(k).item())


def _gathers_after_topk(graph: onnx.GraphProto) -> set[str]:
    """Gather-family nodes whose *indices* come from a TopK (through index arithmetic).

    Not those that move indices, or one number of each token: which patches the tokens are, and what else is known of
    them, is moved along with them, and is no token.
    """
    import onnx

    types = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    reached = {node.output[1] for node in graph.node if node.op_type == "TopK" and len(node.output) > 1}
    values = (*graph.value_info, *graph.input, *graph.output)
    indices = {value.name for value in values if value.type.tensor_type.elem_type in types}
    indices |= {value.name for value in values if len(value.type.tensor_type.shape.dim) == 1}
    gathered: set[str] = set()
    for node in graph.node:  # in topological order, as the ONNX standard demands
        if node.op_type in GATHERS:
            if len(node.input) > 1 and node.input[1] in reached and node.input[0] not in indices:
                gathered.update(node.output[:1])
        elif node.op_type in ("Add", "Mul", "Concat", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast", "Identity"):
            reached.update(node.output if reached.intersection(node.input) else ())
    return gathered


def kept_layers(model: onnx.ModelProto) -> tuple[int, ...]:
    """Layers after which a graph of ours names its kept tokens, first one first."""
    names = (name for node in model.graph.node for name in node.output)
    return tuple(sorted(layer for name in names if (layer := kept_layer(name)) is not None))


def names_tensor(model: onnx.ModelProto, name: str) -> bool:
    """Whether a node of a graph gives a tensor of that name."""
    return any(name in node.output for node in model.graph.node)


def check_structure(facts: GraphFacts, *, sorts: int | None, batch_size: int | None) -> None:
    """Make sure that an exported graph sorts tokens as often, and has the batch, that it claims.

    Args:
        facts: of the exported graph.
        sorts: how often the method orders tokens: its TopK nodes, and Gathers fed by them; None: it does not say.
        batch_size: the static batch, or None for a dynamic one.

    Raises:
        ExportError: another number of TopK or Gather nodes, or a batch that is fixed and should not be.
    """
    for count, what in ((len(facts.topk), "TopK nodes"), (facts.gathers_after_topk, "Gather nodes fed by TopK")):
        if sorts not in (None, count):
            raise ExportError(f"the graph has {count} {what}, expected {sorts}")
    for tensor in (*facts.inputs, *facts.outputs):
        if tensor.shape[0] != batch_size:
            expected = "dynamic" if batch_size is None else batch_size
            raise ExportError(f"the batch of {tensor.name} is {tensor.shape[0] or 'dynamic'}, expected {expected}")
