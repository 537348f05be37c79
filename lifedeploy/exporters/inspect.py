"""Reading facts off any ONNX file, ours or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from lifedeploy.artifact import TensorSpec
from lifedeploy.errors import ArtifactError, ExportError

GATHERS = ("Gather", "GatherElements", "GatherND")


@dataclass(frozen=True)
class GraphFacts:
    """What is in a graph, as far as deployment cares."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    operators: dict[str, int]
    parameters: int
    weight_types: dict[str, int]  # dtype → parameters
    topk: tuple[int, ...]  # k of every TopK; 0 where it is computed in the graph
    gathers_after_topk: int  # Gather-family nodes that a TopK's indices reach
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
        ArtifactError: missing, damaged, or no ONNX file.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        model = onnx.load(path)
        if check:  # by path, since a file with external weights cannot be checked in memory
            onnx.checker.check_model(str(path))
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ArtifactError(f"{path} is not a valid ONNX file: {reason}") from error
    return model


def facts(model: onnx.ModelProto) -> GraphFacts:
    """The facts of a loaded model."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    types: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        # Integers are shapes and indices, not weights; 8-bit ones are quantised weights.
        if dtype in ("int8", "uint8") or "float" in dtype:
            types[dtype] += int(np.prod(tensor.dims, dtype=np.int64))
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
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, dims)


def _topk_sizes(graph: onnx.GraphProto) -> tuple[int, ...]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    sizes = []
    for node in graph.node:
        if node.op_type == "TopK":
            k = constants.get(node.input[1])
            sizes.append(int(onnx.numpy_helper.to_array(k).item()) if k is not None else 0)
    return tuple(sizes)


def _gathers_after_topk(graph: onnx.GraphProto) -> set[str]:
    """Gather-family nodes whose *indices* come from a TopK (through index arithmetic)."""
    reached = {node.output[1] for node in graph.node if node.op_type == "TopK" and len(node.output) > 1}
    found: set[str] = set()
    for node in graph.node:  # in topological order, as the ONNX standard demands
        if node.op_type in GATHERS:
            if node.input[1] in reached:
                found.add(node.output[0])
        elif node.op_type in ("Add", "Mul", "Concat", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast", "Identity"):
            reached.update(node.output if reached.intersection(node.input) else ())
    return found


def check_form(found: GraphFacts, *, form: str, drops: tuple[int, ...], batch_size: int | None) -> None:
    """Make sure that an exported life graph has the form it claims.

    Args:
        found: facts of the exported graph.
        form: ``order-once`` or ``per-stage``.
        drops: token counts after the drops that drop anything.
        batch_size: the static batch, or None for a dynamic one.

    Raises:
        ExportError: another number of TopK or Gather nodes, other counts, or a batch that is fixed and should not be.
    """
    wanted = drops if form == "per-stage" else drops[:1]
    if len(found.topk) != len(wanted):
        raise ExportError(f"the {form} graph has {len(found.topk)} TopK nodes, expected {len(wanted)}")
    if found.gathers_after_topk != len(wanted):
        raise ExportError(
            f"the {form} graph has {found.gathers_after_topk} Gather nodes fed by TopK, expected {len(wanted)}"
        )
    for tensor in (*found.inputs, *found.outputs):
        if tensor.shape[0] != batch_size:
            expected = "dynamic" if batch_size is None else batch_size
            raise ExportError(f"the batch of {tensor.name} is {tensor.shape[0] or 'dynamic'}, expected {expected}")
