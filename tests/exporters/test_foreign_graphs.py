"""ONNX files that others wrote, to break what reads them: one line each, and nothing is waited or made room for."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lifedeploy import bounds, graphs
from lifedeploy.bounds import require_sound
from lifedeploy.engines import onnxruntime, registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ArtifactError, EngineError, LifedeployError
from lifedeploy.exporters import inspect

LARGE = 10**6
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Model = onnx.ModelProto


def ints(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, INT64, [len(values)], values)


def number(name: str, value: int) -> TensorProto:
    return helper.make_tensor(name, INT64, [], [value])


def value(name: str, shape: list | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def classifier(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), opset: int = 20, **more) -> Model:
    """Images in, logits out; ``nodes`` make ``extra``, one number, which is added to them."""
    kernel = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    made = [
        helper.make_node("Reshape", ["images", "flat"], ["rows"], name="reshape"),
        helper.make_node("MatMul", ["rows", "kernel"], ["products"], name="products"),
        *nodes,
        helper.make_node("Add", ["products", "extra" if nodes else "products"], ["logits"], name="add"),
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [value("images", ["batch", 3, 2, 2])],
        [value("logits", ["batch", 5])],
        [numpy_helper.from_array(kernel, "kernel"), ints("flat", 0, 12), *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **more)


def saved(folder: Path, model: Model) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def summed(name: str) -> tuple[onnx.NodeProto, ...]:
    """``extra`` out of a tensor of any size."""
    return (
        helper.make_node("ReduceMax", [name], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["extra"], to=FLOAT),
    )


def making(
    operator: str, inputs: list[str], *weights: TensorProto, opset: int = 20, **attributes
) -> Callable[[], Model]:
    node = helper.make_node(operator, inputs, ["large"], name="maker", **attributes)
    return lambda: classifier(node, *summed("large"), weights=weights, opset=opset)


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """Of a loop that carries one number, ``carried``, to ``kept``."""
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), *nodes],
        "body",
        [value("index", [], INT64), value("go", [], TensorProto.BOOL), value("carried", [])],
        [value("on", [], TensorProto.BOOL), value("kept", [])],
    )


def looping(*inputs: str, rounds: int = 3, nodes: tuple[onnx.NodeProto, ...] = ()) -> Model:
    nodes = nodes or (helper.make_node("Add", ["carried", "carried"], ["kept"]),)
    loop = helper.make_node("Loop", [*inputs, "one"], ["extra"], name="loop", body=body(*nodes))
    weights = (number("rounds", rounds), helper.make_tensor("one", FLOAT, [], [1.0]), ints("shape", LARGE, LARGE))
    return classifier(loop, weights=weights)


def branching() -> Model:
    inner = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["large"], name="maker"),
            helper.make_node("ReduceMax", ["large"], ["chosen"], keepdims=0),
        ],
        "branch",
        [],
        [value("chosen", [])],
    )
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["condition"], ["extra"], then_branch=inner, else_branch=inner)
    return classifier(node, weights=(condition, ints("shape", LARGE, LARGE)))


def calling(*levels: onnx.FunctionProto) -> Model:
    model = classifier(
        helper.make_node("ReduceMax", ["products"], ["most"], keepdims=0),
        helper.make_node("f0", ["most"], ["extra"], domain="own"),
        functions=levels,
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function(
        "own", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    )


def twice(name: str) -> tuple[onnx.NodeProto, ...]:
    call = {"domain": "own"}
    return helper.make_node(name, ["a"], ["t"], **call), helper.make_node(name, ["t"], ["b"], **call)


def in_function() -> Model:
    constant = helper.make_node("Constant", [], ["shape"], value_ints=[LARGE, LARGE])
    return calling(
        function(
            "f0",
            constant,
            helper.make_node("ConstantOfShape", ["shape"], ["large"], name="maker"),
            helper.make_node("ReduceMax", ["large"], ["b"], keepdims=0),
        )
    )


def changed(change: Callable[[Model], object]) -> Callable[[], Model]:
    def make() -> Model:
        model = classifier()
        change(model)
        return model

    return make


SHAPE = ints("shape", LARGE, LARGE)
TOO_LARGE = {
    "ConstantOfShape": making("ConstantOfShape", ["shape"], SHAPE),
    "Expand": making("Expand", ["one", "shape"], helper.make_tensor("one", FLOAT, [1], [1.0]), SHAPE),
    "Tile": making("Tile", ["kernel", "shape"], SHAPE),
    "Range": making(
        "Range", ["zero", "most_of", "step"], number("zero", 0), number("most_of", 10**13), number("step", 1)
    ),
    "RandomNormal": making("RandomNormal", [], shape=[LARGE, LARGE]),
    "RandomUniform": making("RandomUniform", [], shape=[LARGE, LARGE]),
    "Upsample": making("Upsample", ["kernel", "scales"], helper.make_tensor("scales", FLOAT, [2], [1e6, 1e6]), opset=9),
    "Resize": making("Resize", ["kernel", "", "", "shape"], SHAPE),
    "Pad": making("Pad", ["kernel", "pads"], ints("pads", 0, 0, LARGE, LARGE)),
    "OneHot": making(
        "OneHot",
        ["shape", "depth", "values"],
        SHAPE,
        number("depth", 10**13),
        helper.make_tensor("values", FLOAT, [2], [0, 1]),
    ),
    "HannWindow": making("HannWindow", ["length"], number("length", 10**13)),
    "in a branch": branching,
    "in a loop": lambda: looping(
        *("rounds", ""),
        nodes=(
            helper.make_node("ConstantOfShape", ["shape"], ["large"], name="maker"),
            helper.make_node("ReduceMax", ["large"], ["kept"], keepdims=0),
        ),
    ),
    "in a function": in_function,
    "sizes that are computed": lambda: classifier(
        helper.make_node("Concat", ["side", "side"], ["sides"], axis=0),
        helper.make_node("Mul", ["sides", "sides"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["large"], name="maker"),
        *summed("large"),
        weights=(ints("side", 10**4),),
    ),
    "an input": changed(lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**60)),
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_no_memory_holds_is_refused_before_it_is_asked_for(tmp_path, make):
    path = saved(tmp_path, make())
    with pytest.raises(ArtifactError, match=r"model\.onnx.* GiB") as told:
        inspect.load(path)
    assert "this machine has" in told.value.message
    with pytest.raises(EngineError, match="this machine has"):
        OnnxRuntime(path).open()


def test_a_lie_about_the_shape_does_not_help(tmp_path):
    model = TOO_LARGE["ConstantOfShape"]()
    model.graph.value_info.append(value("large", [1]))
    with pytest.raises(ArtifactError, match="this machine has"):
        require_sound(saved(tmp_path, model))


def test_many_that_fit_one_by_one_are_added_up(tmp_path, monkeypatch):
    """Constants that follow from constants are computed before the first image, and stay."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], [f"large{index}"]) for index in range(10)]
    model = classifier(*nodes, *summed("large0"), weights=(ints("shape", 100, 1000),))
    monkeypatch.setattr(bounds, "memory_limit", lambda: 1_000_000)
    with pytest.raises(ArtifactError, match="this machine has"):
        require_sound(saved(tmp_path, model))
    monkeypatch.setattr(bounds, "memory_limit", lambda: 5_000_000)
    require_sound(saved(tmp_path, model))


ENDLESS = {
    "a loop without an end": lambda: looping("", ""),
    "a loop of a trillion": lambda: looping("rounds", "", rounds=10**12),
    "a function that calls itself": lambda: calling(function("f0", helper.make_node("f0", ["a"], ["b"], domain="own"))),
    "functions that double thirty times": lambda: calling(
        *(function(f"f{level}", *twice(f"f{level + 1}")) for level in range(30)),
        function("f30", helper.make_node("Relu", ["a"], ["b"])),
    ),
}


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_what_would_not_end_is_refused(tmp_path, make):
    path = saved(tmp_path, make())
    for open_it in (inspect.load, lambda path: OnnxRuntime(path).open()):
        with pytest.raises(LifedeployError, match=r"for ever|calls itself|so often|recursive"):
            open_it(path)


def test_a_loop_that_ends_is_run_and_one_that_does_not_is_stopped(tmp_path, monkeypatch):
    """Whether a condition ever becomes false is not known beforehand: the clock decides."""
    with OnnxRuntime(saved(tmp_path, looping("rounds", ""))) as engine:
        plain = engine.run({"images": np.zeros((2, 3, 2, 2), np.float32)})["logits"]
    np.testing.assert_array_equal(plain, np.full((2, 5), 8.0))
    monkeypatch.setattr(onnxruntime, "_LOOP_S", 0.5)
    model = looping("", "condition")
    model.graph.initializer.append(helper.make_tensor("condition", TensorProto.BOOL, [], [True]))
    with OnnxRuntime(saved(tmp_path, model)) as engine:
        with pytest.raises(EngineError, match=r"loops for more than"):
            engine.run({"images": np.zeros((1, 3, 2, 2), np.float32)})
        with pytest.raises(EngineError, match=r"loops for more than"):
            engine.lane(1).infer()


def outside(location: str, **facts: str) -> Callable[[], Model]:
    def make() -> Model:
        model = classifier()
        kernel = model.graph.initializer[0]
        kernel.ClearField("raw_data")
        kernel.data_location = TensorProto.EXTERNAL
        for key, text in ({"location": location} | facts).items():
            kernel.external_data.add(key=key, value=text)
        return model

    return make


WRONG = {
    "weights of another shape": changed(lambda model: model.graph.initializer[0].dims.append(7)),
    "weights of terabytes": changed(lambda model: model.graph.initializer[0].dims.extend([2**40, 2**40])),
    "weights of negative size": changed(lambda model: model.graph.initializer[0].dims.append(-1)),
    "weights of no type": changed(lambda model: setattr(model.graph.initializer[0], "data_type", 99)),
    "no weights in them": changed(lambda model: model.graph.initializer[0].ClearField("raw_data")),
    "a negative size": changed(
        lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", -2)
    ),
    "a file above": outside("../weights.bin"),
    "an absolute file": outside("/etc/passwd"),
    "a link": outside("link.bin"),
    "a device": outside("device.bin"),
    "a pipe": outside("pipe.bin"),
    "a file that is not there": outside("absent.bin"),
    "no file": outside(""),
    "a file that is too short": outside("short.bin"),
    "more than is declared": outside("weights.bin", length="9999999999999"),
    "a negative offset": outside("weights.bin", offset="-4"),
    "an offset that is no number": outside("weights.bin", offset="²"),
    "a version that is not yet": changed(lambda model: setattr(model, "ir_version", 999)),
    "nodes in a circle": changed(lambda model: model.graph.node[0].input.__setitem__(0, "logits")),
    "a name twice": changed(lambda model: model.graph.node.append(model.graph.node[0])),
    "no graph": lambda: Model(ir_version=10),
    "an unknown operator": changed(lambda model: setattr(model.graph.node[0], "op_type", "Nonsense")),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_is_not_there_or_cannot_be_is_one_line(tmp_path, make):
    (tmp_path / "weights.bin").write_bytes(bytes(240))
    (tmp_path / "short.bin").write_bytes(bytes(200))
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "device.bin").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.bin")
    path = saved(tmp_path, make())
    with pytest.raises(EngineError) as told:
        OnnxRuntime(path).open()
    assert "\n" not in told.value.message and len(told.value.message) <= 600
    with pytest.raises(ArtifactError):
        inspect.load(path)


def test_weights_in_another_file_of_the_folder_are_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.ones((12, 5), np.float32).tobytes())
    path = saved(tmp_path, outside("weights.bin", offset="0", length="240")())
    assert inspect.facts(inspect.load(path)).parameters == 60
    images = np.ones((1, 3, 2, 2), np.float32)
    for options in (EngineOptions(), EngineOptions(taps=("products",))):
        with OnnxRuntime(path, options) as engine:
            np.testing.assert_array_equal(engine.run({"images": images})["logits"], np.full((1, 5), 24.0))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing"])
def test_only_a_regular_file_is_opened(tmp_path, kind):
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    for open_it, failure in ((inspect.load, ArtifactError), (lambda path: OnnxRuntime(path).open(), EngineError)):
        with pytest.raises(failure, match=r"expected a|does not exist"):
            open_it(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.graph.input.pop(), None),
        (lambda model: model.graph.output.pop(), "has no outputs"),
        (lambda model: model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(value("x", [2]).type)), None),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING), None),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.COMPLEX64), None),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT8E4M3FN), None),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT4), None),
        (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 0), None),
    ],
)
def test_inputs_and_outputs_of_no_use_are_one_line(tmp_path, change, reason):
    model = classifier()
    change(model)
    path = saved(tmp_path, model)
    with pytest.raises(EngineError, match=reason) as told:
        OnnxRuntime(path).open()
    assert "\n" not in told.value.message
    inspect.facts(graphs.read(path))  # what can be told is told


def test_names_do_not_get_through(tmp_path, capfd):
    """Neither in messages nor in what ONNX Runtime would print by itself."""
    model = classifier()
    for node in model.graph.node:
        node.name = "\x1b[31mred\x1b[0m\r\n"
    model.graph.node[1].op_type = "\x1b[2J" + "n" * LARGE
    with pytest.raises(EngineError) as told:
        OnnxRuntime(saved(tmp_path, model)).open()
    assert told.value.message.isprintable() and len(told.value.message) <= 600
    model = classifier()
    model.graph.node[0].name = "\x1b[31mreshape"
    model.graph.initializer[1].CopyFrom(ints("flat", -1, 12))
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    for index in range(4):
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_param=f"any{index}")
    with OnnxRuntime(saved(tmp_path, model)) as engine, pytest.raises(EngineError) as told:
        engine.run({"images": np.zeros((1, 3, 3, 5), np.float32)})
    assert told.value.message.isprintable()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_file_that_is_all_structure_is_not_parsed(tmp_path, monkeypatch):
    """Two bytes make a node, which takes a hundred in memory."""
    monkeypatch.setattr(graphs, "_STRUCTURE", 100_000)
    nodes = b"\x0a\x00" * 60_000
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a\x3a" + b"\xc0\xa9\x07" + nodes)
    with pytest.raises(ArtifactError, match="describes a graph in"):
        graphs.read(path)
    model = classifier(weights=(numpy_helper.from_array(np.zeros((100, 1000), np.float32), "large"),))
    graphs.read(saved(tmp_path, model))  # weights are none


@pytest.mark.parametrize("seed", range(40))
def test_damage_of_any_kind_ends_in_an_answer_or_in_one_line(tmp_path, seed):
    generator = random.Random(seed)
    data = bytearray(classifier().SerializeToString())
    for _ in range(generator.choice([1, 3, 20])):
        data[generator.randrange(len(data))] = generator.randrange(256)
    if seed % 3 == 0:
        del data[generator.randrange(len(data)) :]
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(data))
    for use in (lambda: inspect.facts(inspect.load(path)), lambda: OnnxRuntime(path).open().close()):
        try:
            use()
        except LifedeployError as error:
            assert error.message.isprintable()


def test_a_folder_that_is_no_utf8_is_opened(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    path = saved(folder, classifier())
    assert inspect.facts(inspect.load(path)).parameters == 60
    with OnnxRuntime(path) as engine:
        images = {"images": np.zeros((1, 3, 2, 2), np.float32)}
        assert engine.run(images)["logits"].shape == (1, 5)
        assert engine.profile(images, runs=2)


def test_an_engine_in_a_graph_is_not_loaded(tmp_path):
    node = helper.make_node(
        "EPContext", ["images"], ["extra"], domain="com.microsoft", embed_mode=1, ep_cache_context="x"
    )
    path = saved(tmp_path, classifier(node))
    with pytest.raises(ArtifactError, match=r"holds a compiled engine \('EPContext'\), which is executable code"):
        inspect.load(path)


def test_an_attribute_of_no_type_is_refused(tmp_path):
    model = classifier()
    node = helper.make_node("Identity", ["images"], ["unused"])
    node.attribute.append(onnx.AttributeProto(name="odd", i=1))
    model.graph.node.insert(0, node)
    with pytest.raises(ArtifactError, match="'odd' of 'Identity' is of no type of attribute"):
        inspect.load(saved(tmp_path, model))


def test_functions_that_call_each_other_twice_are_counted(tmp_path):
    functions = []
    for level in range(18):
        inner = ("Neg", "") if level == 17 else (f"f{level + 1}", "local")
        nodes = [
            helper.make_node(inner[0], ["x"], ["y"], domain=inner[1]),
            helper.make_node(inner[0], ["y"], ["z"], domain=inner[1]),
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", f"f{level}", ["x"], ["z"], nodes, opsets))
    model = classifier(helper.make_node("f0", ["products"], ["extra"], domain="local"), functions=functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    with pytest.raises(ArtifactError, match="calls functions so often that it has more than 50,000 nodes"):
        inspect.load(saved(tmp_path, model))


def test_openvino_is_given_no_loop(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["sum"], ["out"])],
        "body",
        [value("step", [], INT64), value("go", [], TensorProto.BOOL), value("sum", [])],
        [value("on", [], TensorProto.BOOL), value("out", [])],
    )
    start = helper.make_tensor("start", FLOAT, [], [0.0])
    loop = helper.make_node("Loop", ["rounds", "", "start"], ["extra"], body=body)
    path = saved(tmp_path, classifier(loop, weights=(start, number("rounds", 3))))
    with pytest.raises(EngineError, match="holds a loop, which OpenVINO is not given"):
        registry.get("openvino")(path).open()
