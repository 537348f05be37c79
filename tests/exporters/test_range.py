"""What half precision cannot hold is infinite in the emulation too, and a build that needs it is refused by name."""

from __future__ import annotations

import importlib.util
import os

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.calibration.qdq import GRIDS
from lifedeploy.errors import ParityError
from lifedeploy.exporters import emulation, precision
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.weights import ModelRequest
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE

DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def emulated(nodes, weights, to, *, watch=False):
    """A session of a graph (x: any number of floats) → y, turned into ``to`` and emulated."""
    shape = ["n"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(value, dtype=np.float32), name) for name, value in weights.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    precision.to_half(model, to, ())
    emulation.emulate(model, watch=watch)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def interesting(to):
    """Numbers around the places where rounding and range change, and many between."""
    largest = float(ml_dtypes.finfo(DTYPES[to]).max)
    edges = [largest * factor for factor in (0.5, 0.999, 1, 1.0001, 1.0004, 1.0005, 1.001, 1.01, 2, 1000)]
    exact = [65503, 65504, 65519, 65519.99, 65520, 65536, 1e5, 3.2e6, 3.3e38, 3.389e38, 3.3953e38, 3.4e38]
    rng = np.random.default_rng(0)
    random = rng.standard_normal(2000) * 10.0 ** rng.integers(-4, 38, 2000)
    numbers = np.array([0.0, *edges, *exact, *random])
    with np.errstate(over="ignore"):
        return np.concatenate([numbers, -numbers]).astype(np.float32)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_numbers_beyond_the_range_become_infinite_as_they_would(to):
    session = emulated([helper.make_node("Identity", ["x"], ["y"], name="y")], {}, to)
    x = interesting(to)
    x = x[np.isfinite(x) & ((np.abs(x) >= 2.0**-14) | (x == 0))]  # FP16's loss of small numbers is not emulated
    with np.errstate(over="ignore"):
        expected = x.astype(DTYPES[to]).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)
    assert np.isinf(expected).sum() >= 2 and np.isfinite(expected).sum() > 500


@pytest.mark.parametrize(("to", "infinite"), [("fp16", True), ("bf16", False)])
def test_what_follows_from_an_infinite_number_is_what_it_would_be(to, infinite):
    """3.2 million in between, 3.2 at the end: FP16 cannot get there."""
    nodes = [
        helper.make_node("Mul", ["x", "much"], ["large"], name="large"),
        helper.make_node("Mul", ["large", "little"], ["y"], name="y"),
    ]
    session = emulated(nodes, {"much": 32000.0, "little": 2.0**-10 / 977}, to, watch=True)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"x": np.float32([100])}), strict=True))
    assert np.isinf(found["y"][0]) == infinite
    assert found["large/largest"] == pytest.approx(3.2e6, rel=1e-2)
    assert list(found)[1:] == [f"x_{to}/largest", "large/largest", f"y_{to}/largest"]


def test_fp8_saturates_by_its_own_rule():
    """E4M3 has no infinity: what lies beyond becomes 448, in the graph as on hardware."""
    grid = GRIDS["fp8"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="y"),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32(0.5), "scale"), zero],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    x = np.float32([0, 1, -3.3, 224, 225, 231, 233, 1e4, -1e30])
    expected = grid.rounded(x, np.float32(0.5))
    assert expected[-2:].tolist() == [224.0, -224.0]
    precision.to_half(model, "bf16", ())
    emulation.emulate(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def weights_that_reach(source, target, block, factor):
    """The same function but for rounding: one block's activations are ``factor`` times as large between fc1 and fc2."""
    state = load_file(source)
    for name in ("weight", "bias"):
        state[f"blocks.{block}.mlp.fc1.{name}"] = state[f"blocks.{block}.mlp.fc1.{name}"] * factor
    state[f"blocks.{block}.mlp.fc2.weight"] = state[f"blocks.{block}.mlp.fc2.weight"] / factor
    save_file(state, target, metadata={"classes": '["cat", "cup", "rocket"]'})


@pytest.fixture(scope="module")
def far(tmp_path_factory, weights_file):
    """An export whose activations reach millions, though no weight does."""
    folder = tmp_path_factory.mktemp("far")
    weights_that_reach(weights_file, folder / "far.safetensors", 2, 2.0**19)
    request = ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(folder / "far.safetensors"), image_size=TINY_SIZE)
    export(ExportRequest(request, GraphOptions()), Workspace(folder / "artifacts"))
    weights = load_file(folder / "far.safetensors")
    assert max(float(tensor.abs().max()) for tensor in weights.values()) < torch.finfo(torch.float16).max
    return Workspace(folder / "artifacts")


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "fake-device"])
def test_activations_that_fp16_cannot_hold_stop_a_build_without_a_gpu_and_are_named(far, engine):
    if engine == "tensorrt-rtx" and importlib.util.find_spec("tensorrt_rtx") is None and not os.environ.get("CI"):
        pytest.skip("TensorRT for RTX is not installed")
    folder = far.latest_export().folder
    with pytest.raises(ParityError) as refused:
        build(BuildRequest(engine=engine, precision="fp16"), far)
    message = refused.value.message
    assert "does not fit into FP16: " in message and "blocks.2.mlp.fc1" in message and "6.55e+04" in message
    assert refused.value.hint == "--bf16 has the range of FP32"
    assert not (folder / f"{engine}-fp16").exists()
    built = build(BuildRequest(engine=engine, precision="bf16"), far)
    reach = Artifact.read(built.engine.folder / "model.json").manifest.engine.graph.reach
    assert "blocks.2.mlp" in reach.tensor and reach.limit == pytest.approx(3.39e38, rel=1e-3)
    assert 1e5 < reach.largest < reach.limit
