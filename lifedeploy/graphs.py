"""ONNX files of others: read, and held against what is really there, before a library believes them.

A few bytes of ONNX may declare terabytes, name files elsewhere, call a function that calls itself twice thirty times
over, or loop for ever. What can be told without running it is told here, in one line; what cannot is left to a runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lifedeploy.errors import ArtifactError
from lifedeploy.machine import memory_limit
from lifedeploy.reading import foreign, require_regular
from lifedeploy.text import quoted

if TYPE_CHECKING:  # a heavy library
    import onnx

LIMIT = 2 * 1024**3  # bytes of one file: protobuf has no more
_STRUCTURE = 64 * 1024**2  # bytes of a file that are no weights: in memory they are up to 50 times as many
_ENTRIES = 2_000_000  # nodes, weights and descriptions of one graph
_NODES = 50_000  # after functions are put in their places: runtimes take minutes over more, and hear no signal
_CUT = 4096  # bytes of a node that may hold a constant worth looking for
GIB = 1024**3
PART = "/part_"  # between a product's name and the number of a part of it, where these are computed one by one
NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")  # of a tensor, one by one
_LOOPS = ("Loop", "Scan")
_NARROW = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}  # bits, where several share a byte

# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: message → number of a field → message in it; of a tensor the
# fields whose bytes are as many in memory, or four times as many.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {4: "data", 5: "data", 9: "data", 10: "data"},
}


def read(path: Path) -> onnx.ModelProto:
    """An ONNX file without the weights that lie in other files, checked as far as its own bytes tell.

    Raises:
        ArtifactError: it does not exist, is no ONNX file, or declares what it does not hold, what this machine has no
            memory for, or what would never end.
    """
    import onnx

    size = require_regular(path)
    if size > LIMIT or 2 * size > memory_limit():
        raise ArtifactError(f"{path} has {size / GIB:,.1f} GiB, too much for one ONNX file on this machine")
    with foreign(f"{path} is not a valid ONNX file: it"):
        data = path.read_bytes()
        structure = len(data) - _weights(memoryview(data), "model")
        if structure > _STRUCTURE:
            raise ArtifactError(f"{path} describes a graph in {structure / 1024**2:,.0f} MiB; at most 64 are read")
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
        del data
        if not model.HasField("graph"):
            raise ArtifactError(f"{path} is not a valid ONNX file: there is no graph in it")
        _Reader(path, model).check()
    return model


def has_loops(model: onnx.ModelProto) -> bool:
    """Whether a graph may compute for ever."""
    return any(node.op_type in _LOOPS for node in nodes_of(model))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes: of the graph, of those in it, and of functions."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield from flattened(nodes)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants that may lie in other files: weights, and those of nodes."""
    graphs = [model.graph, *(graph for node in nodes_of(model) for graph in graphs_in(node))]
    for graph in graphs:
        yield from graph.initializer
    for node in nodes_of(model):
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)


def is_outside(tensor: onnx.TensorProto) -> bool:
    """Whether a constant lies in another file."""
    return bool(tensor.data_location == tensor.EXTERNAL)


def dtype_name(kind: int) -> str:
    """What numpy, or ml_dtypes, calls a type of elements; what neither has, as ONNX calls it."""
    import onnx

    with suppress(KeyError, TypeError, ValueError):
        name = str(onnx.helper.tensor_dtype_to_np_dtype(kind).name)
        return "string" if name == "object" else name
    with suppress(ValueError):
        return str(onnx.TensorProto.DataType.Name(kind)).lower()
    return f"type {kind}"


def flattened(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those in them: of branches and loops."""
    for node in nodes:
        yield node
        for graph in graphs_in(node):
            yield from flattened(graph.node)


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node: branches of an If, the body of a loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _weights(data: memoryview, message: str) -> int:
    """Bytes of weights in a message, found without making objects of all the others."""
    fields, total, at, entries = _FIELDS[message], 0, 0, 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _number(data, at)
            inner = fields.get(key >> 3)
            if inner == "data":
                total += length
            elif inner is not None and (length > _CUT or message == "model"):
                total += _weights(data[at : at + length], inner)
            at += length
        elif kind == 0:
            _, at = _number(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of its {message} has a kind that is not in use")
        entries += 1
        if entries > _ENTRIES:
            raise ValueError(f"its {message} has more than {_ENTRIES:,} entries")
    if at > len(data):
        raise EOFError("it ends too early")
    return total


def _number(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise EOFError("it ends too early")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


class _Reader:
    """Checks of what a file says of itself; none of them needs more than the file."""

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self.path, self.model = path, model
        self.outside = 0  # bytes of weights in other files

    def check(self) -> None:
        model = self.model
        self._graph(model.graph)
        for function in model.functions:
            self._many(function.node)
        for training in model.training_info:
            self._graph(training.initialization)
            self._graph(training.algorithm)
        _ = [(entry.key, entry.value) for entry in model.metadata_props], model.producer_name, model.producer_version
        if self.outside > memory_limit():
            raise ArtifactError(f"{self.path} has {self.outside / GIB:,.1f} GiB of weights, more than memory")
        self._functions()

    def _graph(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            _ = value.name
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    raise ArtifactError(f"{self.path}: {quoted(value.name)} has the size {dim.dim_value}")
        for tensor in graph.initializer:
            self._tensor(tensor)
        for sparse in graph.sparse_initializer:
            self._sparse(sparse)
        self._many(graph.node)

    def _many(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            _ = node.name, node.op_type, node.domain, list(node.input), list(node.output)
            if node.op_type == "EPContext":  # ONNX Runtime would load what it was compiled to: code, with no manifest
                raise ArtifactError(
                    f"{self.path} holds a compiled engine ({quoted(node.op_type)}), which is executable code",
                    hint="build it of the ONNX file that it was made of",
                )
            for attribute in node.attribute:
                _ = attribute.name
                if attribute.type == attribute.UNDEFINED:  # or of a type that there is not
                    raise ArtifactError(
                        f"{self.path}: {quoted(attribute.name)} of {quoted(node.op_type)} is of no type of attribute"
                    )
                for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                    self._tensor(tensor)
                if attribute.HasField("sparse_tensor"):
                    self._sparse(attribute.sparse_tensor)
            for graph in graphs_in(node):
                self._graph(graph)

    def _tensor(self, tensor: onnx.TensorProto) -> None:
        """The bytes that the shape declares, against those that are held."""
        name = quoted(tensor.name)
        bits = bits_of(tensor.data_type)
        if not bits:
            raise ArtifactError(
                f"{self.path}: {name} is of {dtype_name(tensor.data_type)}, which is no type of weights"
            )
        if any(size < 0 for size in tensor.dims):
            raise ArtifactError(f"{self.path}: {name} has the shape {quoted(list(tensor.dims))}")
        count = math.prod(tensor.dims)
        declared = -(-count * bits // 8)
        if is_outside(tensor):
            self._external(tensor, name, declared)
            return
        if tensor.data_type == tensor.STRING:
            held, declared = len(tensor.string_data), count
        elif tensor.HasField("raw_data"):
            held = len(tensor.raw_data)
        else:
            complex_ = tensor.data_type in (tensor.COMPLEX64, tensor.COMPLEX128)
            numbers = sum(len(getattr(tensor, field)) for field in NUMBERS)
            packed = -(-8 // bits) if bits < 8 else 1  # numbers of less than a byte share one
            held, declared = numbers, -(-count // packed) * (2 if complex_ else 1)
        if held != declared:
            shape = quoted(list(tensor.dims))
            raise ArtifactError(
                f"{self.path}: {name} declares the shape {shape}, which {held:,} values or bytes are not"
            )

    def _external(self, tensor: onnx.TensorProto, name: str, declared: int) -> None:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        offset, length = (
            _whole(facts.get(key, ""), standard) for key, standard in (("offset", 0), ("length", declared))
        )
        place = f"{self.path}: {name} is in another file, {quoted(location)}"
        plain = Path(location)
        if not location or "\0" in location or plain.is_absolute() or ".." in plain.parts or "\\" in location:
            raise ArtifactError(f"{place}, which is no path below the folder of the model")
        folder = self.path.parent
        target = folder / plain
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{place}, which leads out of the folder of the model")
        size = require_regular(target)
        if length != declared or offset < 0 or offset + length > size:
            raise ArtifactError(f"{place}: {declared:,} bytes from {offset:,} on are declared, and it has {size:,}")
        self.outside += declared

    def _sparse(self, sparse: onnx.SparseTensorProto) -> None:
        self._tensor(sparse.values)
        self._tensor(sparse.indices)
        wanted = math.prod(sparse.dims) * bits_of(sparse.values.data_type) // 8
        if min(sparse.dims, default=0) < 0 or wanted > memory_limit():
            name, shape = quoted(sparse.values.name), quoted(list(sparse.dims))
            raise ArtifactError(f"{self.path}: {name} declares the shape {shape}, which memory does not hold")

    def _functions(self) -> None:
        """Functions are put in the places where they are called: a call in a call, ten deep, may be a thousand."""
        bodies = {(function.domain, function.name): function.node for function in self.model.functions}
        sizes: dict[tuple[str, str], int] = {}
        busy: set[tuple[str, str]] = set()

        def size(nodes: Iterable[onnx.NodeProto]) -> int:
            return sum(1 + called((node.domain, node.op_type)) for node in flattened(nodes))

        def called(key: tuple[str, str]) -> int:
            if key not in bodies:
                return 0
            if key in busy:
                raise ArtifactError(f"{self.path}: the function {quoted(key[1])} calls itself")
            if key not in sizes:
                busy.add(key)
                sizes[key] = size(bodies[key])
                busy.discard(key)
            return sizes[key]

        if bodies and size(self.model.graph.node) > _NODES:
            raise ArtifactError(f"{self.path} calls functions so often that it has more than {_NODES:,} nodes")


def _whole(text: str, standard: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 20 else -1 if text else standard


def bits_of(kind: int) -> int:
    """Bits of one element of an ONNX type; 0 where the type is unknown."""
    import onnx

    if kind == onnx.TensorProto.STRING:
        return 256
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    except (KeyError, TypeError, ValueError):
        return 0
    return _NARROW.get(dtype.name, dtype.itemsize * 8)
