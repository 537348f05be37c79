"""What a graph computes, held against memory before a runtime is asked: by ONNX's own inference of shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lifedeploy.errors import ArtifactError
from lifedeploy.graphs import GIB, NUMBERS, bits_of, graphs_in, read
from lifedeploy.machine import memory_limit
from lifedeploy.reading import foreign
from lifedeploy.text import quoted

if TYPE_CHECKING:  # a heavy library
    import onnx

ROUNDS = 1_000_000  # of a loop that says how many it has
_SMALL = 1024  # elements of a constant that may be a shape


def require_sound(path: Path) -> onnx.ModelProto:
    """:func:`graphs.read`, and see whether what the graph computes fits into memory, for one image, as far as known.

    Raises:
        ArtifactError: as :func:`graphs.read`; or a tensor, or those of one node together, do not fit.
    """
    model = read(path)
    with foreign(f"{path} is not a valid ONNX file: it"):
        _Sizes(path, model).check()
    return model


class _Sizes:
    """What a graph computes, held against memory: by ONNX's own inference of shapes, for one image."""

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        import onnx
        from onnx import inliner

        self.path, self.limit = path, memory_limit()
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        self._strip(bare.graph)
        for value in bare.graph.input:
            for index, dim in enumerate(value.type.tensor_type.shape.dim):
                if index == 0 and not dim.HasField("dim_value"):
                    dim.dim_value = 1
        if bare.functions:
            bare = inliner.inline_local_functions(bare)
        self.model = bare

    def check(self) -> None:
        self._check(self.model.graph, {}, {}, {}, 1)

    def _strip(self, graph: onnx.GraphProto) -> None:
        """Nothing is believed that can be inferred, and weights are not needed for that."""
        del graph.value_info[:]
        for tensor in graph.initializer:
            if math.prod(tensor.dims) > _SMALL:
                _empty(tensor)
        for value in graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and math.prod(attribute.t.dims) > _SMALL and node.op_type == "Constant":
                    _empty(attribute.t)
            for inner in graphs_in(node):
                self._strip(inner)

    def _check(
        self,
        graph: onnx.GraphProto,
        outer: dict[str, int],
        values: dict[str, onnx.ValueInfoProto],
        constants: dict[str, onnx.TensorProto],
        rounds: int,
    ) -> None:
        """One graph; ``outer`` is the bytes, ``values`` and ``constants`` are what is known of those around it."""
        graph = self._inferred(graph, values, constants)
        sizes, values, constants = dict(outer), dict(values), dict(constants)
        for tensor in graph.initializer:
            sizes[tensor.name] = math.prod(tensor.dims) * bits_of(tensor.data_type) // 8
            constants[tensor.name] = tensor
        for value in (*graph.input, *graph.output, *graph.value_info):
            sizes[value.name] = self._bytes(value)
            values[value.name] = value
        fixed = {tensor.name for tensor in graph.initializer}
        kept = 0  # what depends on constants only is computed before the first image, and stays
        for node in graph.node:
            together = sum(sizes.get(name, 0) for name in {*node.input, *node.output})
            output_bytes = sum(sizes.get(name, 0) for name in node.output)
            if all(name in fixed or not name for name in node.input) and not any(True for _ in graphs_in(node)):
                fixed.update(node.output)
                kept += output_bytes
            if max(together, kept) > self.limit:
                raise ArtifactError(
                    f"{self.path}: {self._name(node)} needs {max(together, kept) / GIB:,.0f} GiB for its tensors, and "
                    f"this machine has {self.limit / GIB:,.0f}"
                )
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                constants.update(dict.fromkeys(node.output[:1], node.attribute[0].t))
            inner_rounds = rounds * (self._rounds(node, constants) if node.op_type == "Loop" else 1)
            if inner_rounds > ROUNDS:
                raise ArtifactError(f"{self.path}: {self._name(node)} goes round {inner_rounds:,} times, or for ever")
            for inner in graphs_in(node):
                self._check(inner, sizes, values, constants, inner_rounds)

    def _inferred(
        self,
        graph: onnx.GraphProto,
        values: dict[str, onnx.ValueInfoProto],
        constants: dict[str, onnx.TensorProto],
    ) -> onnx.GraphProto:
        """The graph with what ONNX infers of it; of a graph in a node, as if it stood alone."""
        import onnx

        model = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        model.graph.CopyFrom(graph)
        defined = {item.name for item in (*graph.input, *graph.initializer)}
        defined.update(name for node in graph.node for name in node.output)
        used = {name for node in graph.node for name in node.input} - defined
        for name in sorted(used):
            if name in constants:
                tensor = model.graph.initializer.add()
                tensor.CopyFrom(constants[name])
                tensor.name = name
            elif name in values:
                model.graph.input.add().CopyFrom(values[name])
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph

    def _bytes(self, value: onnx.ValueInfoProto) -> int:
        """Of a tensor, where unknown sizes are 1."""
        if value.type.WhichOneof("value") != "tensor_type":
            return 0
        kind = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim]
        if min(sizes, default=0) < 0:
            raise ArtifactError(f"{self.path}: {quoted(value.name)} has the shape {quoted(sizes)}")
        size = math.prod(sizes) * bits_of(kind.elem_type) // 8
        if size > self.limit:
            raise ArtifactError(
                f"{self.path}: {quoted(value.name)} has the shape {quoted(sizes)}, {size / GIB:,.0f} GiB, and this "
                f"machine has {self.limit / GIB:,.0f}"
            )
        return size

    def _rounds(self, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int:
        """How often a loop goes round at most; 1 where that depends on what is computed."""
        import onnx

        limit = node.input[0] if node.input else ""
        if limit in constants and math.prod(constants[limit].dims) == 1:
            return max(int(onnx.numpy_helper.to_array(constants[limit]).item()), 1)
        endless = not limit and (len(node.input) < 2 or not node.input[1])
        return ROUNDS + 1 if endless else 1

    def _name(self, node: onnx.NodeProto) -> str:
        return f"{quoted(node.name)} ({quoted(node.op_type)})" if node.name else quoted(node.op_type)


def _empty(tensor: onnx.TensorProto) -> None:
    for name in ("raw_data", "string_data", *NUMBERS):
        tensor.ClearField(name)
