"""ONNX graphs that are damaged, declare what is not there, or name things as nobody should."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.robustness.fuzz.case import Case, Place, kind, sign
from tests.robustness.fuzz.values import ESCAPES, MARKUP, damaged
from tests.robustness.inputs import EXPORT

_Change = Callable[[onnx.ModelProto, Place], str]


@kind("graph", share=20)
def graph(place: Place) -> Case:
    """One graph, by itself."""
    data = (place.inputs.root / "graph.onnx").read_bytes()
    way = place.one_of("damaged", *_CHANGES, *_CHANGES)
    bad = False
    if way == "damaged":
        data, about, bad = damaged(data, place.rng)
        bad = bad and about != "empty"
    else:
        model = onnx.load_model_from_string(data)
        about = _CHANGES[way](model, place)
        data = model.SerializeToString()
    place.write("odd.onnx", data)
    if place.rng.random() < 0.03:
        (place.folder / "odd.onnx").unlink()
        os.mkfifo(place.folder / "odd.onnx")
        about, bad = "a pipe", True
    place.take("image.png", "data", "graph.onnx")
    readers = [
        ("inspect", "odd.onnx"),
        ("verify", "graph.onnx", "odd.onnx"),
        ("bench", "odd.onnx", "--batch=1", "--budget=0.1", "--no-memory"),
        ("evaluate", "odd.onnx", "--data=data"),
    ]
    argv = place.rng.choices(readers, (4, 4, 2, 1))[0]
    about = f"{argv[0]} of a graph: {way}, {about}"
    return Case(
        about, argv, bad=bad, terminal=place.rng.random() < 0.1, encoding=place.one_of("utf-8", "utf-8", "ascii")
    )


@kind("exported graph", share=12)
def exported_graph(place: Place) -> Case:
    """A graph of an export, known to its manifest or not."""
    folder = place.take_export()
    path = folder / "model.onnx"
    model = onnx.load(path)
    way = place.one_of(*_CHANGES)
    about = _CHANGES[way](model, place)
    path.write_bytes(model.SerializeToString())
    known = place.rng.random() < 0.8
    if known:
        sign(folder / "model.json")
    place.take("image.png", "data")
    argv = place.one_of(
        ("build-engine", EXPORT, f"--engine={place.one_of('onnxruntime', 'fake', 'openvino')}"),
        ("inspect", EXPORT),
        ("predict", f"--model={EXPORT}", "image.png"),
        ("evaluate", EXPORT, "--data=data", "--engine=onnxruntime"),
        ("visualize", EXPORT, "image.png", "--output=out.png"),
    )
    return Case(f"{argv[0]} of an export with a graph: {way}, {about}", argv, bad=not known)


def _names(model: onnx.ModelProto, place: Place) -> str:
    odd = place.one_of(*ESCAPES, *MARKUP, "", "a" * 10_000, "../../up", "\ufeffx")
    part = place.one_of("node", "input", "output", "producer", "metadata", "operator", "domain", "initializer")
    if part == "node":
        place.rng.choice(model.graph.node).name = odd
    elif part in ("input", "output", "initializer"):
        listed = {"input": model.graph.input, "output": model.graph.output, "initializer": model.graph.initializer}[
            part
        ]
        _rename(model, listed[0].name, odd)
        listed[0].name = odd
    elif part == "producer":
        model.producer_name = model.producer_version = odd
    elif part == "metadata":
        model.metadata_props.add(key=odd, value=odd)
        for entry in model.metadata_props:
            entry.value = odd
    elif part == "operator":
        place.rng.choice(model.graph.node).op_type = odd
    else:
        place.rng.choice(model.graph.node).domain = odd
        model.opset_import.add(domain=odd, version=1)
    return f"{part} {ascii(odd)[:40]}"


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _types(model: onnx.ModelProto, place: Place) -> str:
    number = place.one_of(0, 8, 16, 99, 2**30, TensorProto.STRING, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, -1)
    part = place.one_of("input", "initializer", "attribute", "sequence")
    if part == "input":
        model.graph.input[0].type.tensor_type.elem_type = number
    elif part == "initializer":
        place.rng.choice(model.graph.initializer).data_type = number
    elif part == "sequence":
        model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        attributes = [attribute for node in model.graph.node for attribute in node.attribute]
        attribute = place.rng.choice(attributes)
        number = max(number, 0) % 15
        number = number if number != attribute.type else (number + 1) % 15
        attribute.type = number
    return f"{part} of type {number}"


def _shapes(model: onnx.ModelProto, place: Place) -> str:
    size = place.one_of(-1, 0, 2**31, 2**40, 2**62, 7)
    if place.rng.random() < 0.5:
        tensor = place.rng.choice(model.graph.initializer)
        tensor.dims[:] = [size] * max(len(tensor.dims), 1)
        return f"an initializer of {size} a side"
    shape = place.one_of(model.graph.input, model.graph.output)[0].type.tensor_type.shape
    dimension = place.rng.choice(shape.dim)
    dimension.dim_value = size
    return f"a dimension of {size}"


def _terabytes(model: onnx.ModelProto, place: Place) -> str:
    size = place.one_of(2**40, 2**43, 2**33, 2**62)
    model.graph.initializer.append(numpy_helper.from_array(np.array([size], dtype=np.int64), "much"))
    made = place.one_of("ConstantOfShape", "Expand", "Tile")
    if made == "ConstantOfShape":
        nodes = [helper.make_node("ConstantOfShape", ["much"], ["filled"])]
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, dtype=np.float32), "one"))
        nodes = [helper.make_node(made, ["one", "much"], ["filled"])]
    output = model.graph.output[0].name
    _rename(model, output, "before")
    nodes.append(helper.make_node("ReduceSum", ["filled"], ["sum"], keepdims=0))
    nodes.append(helper.make_node("Add", ["before", "sum"], [output]))
    model.graph.node.extend(nodes)
    return f"{made} of {size:,} numbers"


def _external(model: onnx.ModelProto, place: Place) -> str:
    tensor = place.rng.choice([tensor for tensor in model.graph.initializer if tensor.raw_data])
    location = place.one_of("../../../../etc/passwd", "/dev/zero", "missing.bin", "data", "\x1b[31m", "odd.onnx", "")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", location),
        ("offset", place.one_of("0", "-5", "x", str(2**62))),
        ("length", "999999999999"),
    ):
        tensor.external_data.add(key=key, value=value)
    return f"weights in {location!a}"


def _structure(model: onnx.ModelProto, place: Place) -> str:
    listed = {"nodes": model.graph.node, "inputs": model.graph.input, "outputs": model.graph.output}
    listed["opset"] = model.opset_import
    ways = ("circle", "missing input", "another opset", "twice", "short data", "deep", "another version")
    way = place.one_of(*ways, *(f"no {name}" for name in listed))
    nodes = model.graph.node
    if way == "circle":
        nodes[0].input[0] = nodes[-1].output[0]
    elif way == "missing input":
        place.rng.choice(nodes).input[0] = "nobody"
    elif way.startswith("no "):
        del listed[way.removeprefix("no ")][:]
    elif way == "another opset":
        model.opset_import[0].version = place.one_of(0, 1, 9999, -1, 2**62)
    elif way == "twice":
        nodes.append(nodes[0])
    elif way == "short data":
        tensor = place.rng.choice([tensor for tensor in model.graph.initializer if tensor.raw_data])
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif way == "another version":
        model.ir_version = place.one_of(0, -1, 999)
    else:
        inner = empty = helper.make_graph([], "empty", [], [])
        for _ in range(30):  # each is three messages, and protobuf reads 100 in one another
            choice = helper.make_node("If", ["nobody"], ["x"], then_branch=inner, else_branch=empty)
            inner = helper.make_graph([choice], "inner", [], [])
        nodes.append(helper.make_node("If", ["nobody"], ["x"], then_branch=inner, else_branch=empty))
    return way


def _attributes(model: onnx.ModelProto, place: Place) -> str:
    node = place.rng.choice([node for node in model.graph.node if node.attribute])
    attribute = place.rng.choice(node.attribute)
    way = place.one_of("gone", "huge", "renamed", "twice")
    if way == "gone":
        del node.attribute[:]
    elif way == "huge":
        attribute.i, attribute.ints[:] = 2**62, [2**62]
    elif way == "renamed":
        attribute.name = ESCAPES[0]
    else:
        node.attribute.append(attribute)
    return f"an attribute of {node.op_type} {way}"


_CHANGES: dict[str, _Change] = {
    "names": _names,
    "types": _types,
    "shapes": _shapes,
    "terabytes": _terabytes,
    "weights elsewhere": _external,
    "structure": _structure,
    "attributes": _attributes,
}
