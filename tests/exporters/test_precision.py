"""Half precision in the graph: what is converted, what is not, and what then comes out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from lifedeploy import methods
from lifedeploy.errors import ExportError
from lifedeploy.exporters import attention, emulation, precision
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from tests.conftest import make_tiny

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TYPES = {"fp16": HALF, "bf16": BRAIN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tracing_once):
    """FP32 graphs of one tiny model: dense, order-once, per-stage, and one that takes pixels."""
    model, spec = make_tiny()
    made = tmp_path_factory.mktemp("fp32")
    graph = tracing_once(model, spec, GraphOptions(with_life=True))
    exporter.save(exporter.derive(graph, spec, methods.baseline()), made / "dense.onnx", metadata={})
    exporter.save(graph, made / "life.onnx", metadata={"lifedeploy.method": "life"})
    exporter.save(
        tracing_once(*make_tiny(ordering="per-stage"), GraphOptions(ordering="per-stage")),
        made / "per-stage.onnx",
        metadata={},
    )
    exporter.save(tracing_once(*make_tiny(), GraphOptions(with_preprocess=True)), made / "pixels.onnx", metadata={})
    return made


GRAPHS = ("dense", "life", "per-stage", "pixels")


def images(name, batch=3):
    if name == "pixels":
        return np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    torch.manual_seed(0)
    return torch.randn(batch, 3, 32, 32).numpy()


def ask(path, pixels):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})


def converted(folder, name, to, *, fused=False, islands=precision.ISLANDS):
    model = ir.load(folder / f"{name}.onnx")
    if fused:
        attention.fuse(model)
    attention.raise_opset(model)
    done = precision.to_half(model, to, islands)
    return model, done


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_graph_is_half_but_for_its_ends_and_islands(folder, tmp_path, name, to, fused):
    model, _ = converted(folder, name, to, fused=fused)
    precision.require_half(model, to)
    ir.save(model, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    before, after = ir.load(folder / f"{name}.onnx"), ir.load(tmp_path / "half.onnx")
    for ours, theirs in zip(
        (*before.graph.inputs, *before.graph.outputs), (*after.graph.inputs, *after.graph.outputs), strict=True
    ):
        assert (ours.name, ours.dtype, ours.shape) == (theirs.name, theirs.dtype, theirs.shape)
    products = [node for node in after.graph if node.op_type in ("MatMul", "Attention") and "blocks" in node.name]
    assert len(products) == 4 * (5 if fused else 6)
    assert {node.outputs[0].dtype for node in products} == {TYPES[to]}
    assert {node.outputs[0].dtype for node in after.graph if node.op_type == "LayerNormalization"} == {TYPES[to]}


@pytest.mark.parametrize("name", ["life", "per-stage"])
def test_the_ranking_stays_fp32(folder, name):
    model, done = converted(folder, name, "fp16")
    (operators,) = done.islands.values()
    assert {"MatMul", "Slice", "Squeeze", "TopK", "Transpose"} <= set(operators)
    topk = [node for node in model.graph if node.op_type == "TopK"]
    assert [node.inputs[0].dtype for node in topk] == [FLOAT] * (2 if name == "per-stage" else 1)
    gathers = [node for node in model.graph if node.op_type == "Gather" and node.name.startswith("reducer")]
    assert {node.outputs[0].dtype for node in gathers} == {HALF}  # tokens are moved in half precision


def test_lives_that_were_traced_outside_of_the_reducer_stay_fp32(folder):
    """As version 0.1 did."""
    model = ir.load(folder / "life.onnx")
    now = precision.RANKING.nodes(model)
    made = [node for node in now if node.name.startswith("reducer/")]  # lives of scores
    assert {"ReduceMean", "Clip", "Sqrt", "Div"} <= {node.op_type for node in made}
    for node in made:
        node.name = node.name.replace("reducer/", "tokens/")
    assert precision.RANKING.nodes(model) == now


def test_casts_are_one_per_place(folder):
    """Into half at the input, out of it at the ranking and at the logits; lives stay with the ranking."""
    model, done = converted(folder, "life", "fp16")
    assert done.casts == 3
    assert sum(node.op_type == "Cast" for node in model.graph) == done.casts


@pytest.mark.parametrize(("to", "allowed"), [("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("fused", [False, True])
def test_it_computes_the_same_within_its_precision(folder, tmp_path, name, to, allowed, fused):
    pixels = images(name)
    (reference, *_) = ask(folder / f"{name}.onnx", pixels)
    model, _ = converted(folder, name, to, fused=fused)
    emulation.emulate(model)
    ir.save(model, tmp_path / "emulated.onnx")
    (found, *_) = ask(tmp_path / "emulated.onnx", pixels)
    error = np.abs(found - reference).max() / np.abs(reference).max()
    assert 0 < error < allowed


def test_emulation_rounds_like_the_type(tmp_path):
    """A chain of additions and a product, against numpy's own half precision."""
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((8, 8)).astype(np.float32), rng.standard_normal((4, 8)).astype(np.float32)
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], ["p"], name="p"), node("Add", ["p", "p"], ["y"], name="y")],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    for to, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        model = ir.from_proto(proto)
        precision.to_half(model, to, ())
        assert emulation.emulate(model) == 3  # the input's Cast, the product, the sum
        ir.save(model, tmp_path / "e.onnx")
        session = ort.InferenceSession(str(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": x})
        half = x.astype(dtype).astype(np.float32) @ weight.astype(dtype).astype(np.float32)
        product = half.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found, (product + product).astype(dtype).astype(np.float32))


def test_onnx_runtime_itself_does_not_round(folder, tmp_path):
    """Why emulation exists: the CPU provider takes the roundings between two FP16 nodes out again."""
    model, _ = converted(folder, "dense", "fp16")
    ir.save(model, tmp_path / "half.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / "half.onnx"), options, providers=["CPUExecutionProvider"])
    types = [
        node.attribute[0].i for node in onnx.load(tmp_path / "optimised.onnx").graph.node if node.op_type == "Cast"
    ]
    assert onnx.TensorProto.FLOAT16 not in types[1:]


def test_what_cannot_be_converted_is_refused(folder):
    with pytest.raises(ExportError, match="cannot be turned into int8; there are: fp16, bf16"):
        precision.to_half(ir.load(folder / "dense.onnx"), "int8")
    once, _ = converted(folder, "dense", "fp16")
    with pytest.raises(ExportError, match="already: only an FP32 graph can be converted"):
        precision.to_half(once, "fp16")
    model = ir.load(folder / "dense.onnx")
    weight = model.graph.initializers["blocks.0.mlp.fc1.weight_t"]
    weight.const_value = ir.tensor(np.full(weight.shape.numpy(), 7e4, dtype=np.float32))
    with pytest.raises(
        ExportError, match=r"blocks.0.mlp.fc1.weight_t holds 7e\+04, and FP16 ends at 6.55e\+04"
    ) as caught:
        precision.to_half(model, "fp16")
    assert "bf16" in caught.value.hint
    model = ir.load(folder / "dense.onnx")
    weight = model.graph.initializers["blocks.0.mlp.fc1.weight_t"]
    weight.const_value = ir.tensor(np.full(weight.shape.numpy(), np.nan, dtype=np.float32))
    with pytest.raises(ExportError, match="holds nan"):
        precision.to_half(model, "fp16")
    with pytest.raises(ExportError, match="nothing in this graph is in half precision"):
        emulation.emulate(ir.load(folder / "dense.onnx"))


def test_an_operator_that_is_not_known_is_refused(folder):
    model = ir.load(folder / "dense.onnx")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.domain = "com.example"
    with pytest.raises(ExportError, match=r"is a com.example::Softmax, and how it is converted is not known"):
        precision.to_half(model, "fp16")


def test_a_stray_tensor_and_a_cast_in_attention_are_found(folder):
    model, _ = converted(folder, "dense", "fp16", islands=())
    precision.require_half(model, "fp16", ())
    stray = precision.Island(
        "one", lambda graph: {node for node in graph.graph if node.name == "blocks.1.mlp.act/Gelu"}
    )
    model, _ = converted(folder, "dense", "fp16", islands=(stray,))
    with pytest.raises(ExportError, match=r"blocks.1.mlp.act/Gelu_output_0 is FP32 in an FP16 graph"):
        precision.require_half(model, "fp16", ())
    softmax = precision.Island("s", lambda graph: {node for node in graph.graph if node.op_type == "Softmax"})
    model, _ = converted(folder, "dense", "fp16", islands=(softmax,))
    with pytest.raises(ExportError, match="casts inside an attention: no runtime will fuse it"):
        precision.require_half(model, "fp16", (softmax,))


def test_attention_becomes_one_operator_with_the_same_answer(folder, tmp_path):
    for name in GRAPHS:
        model = ir.load(folder / f"{name}.onnx")
        assert attention.fuse(model) == 4
        assert model.graph.opset_imports[""] == attention.OPSET
        ir.save(model, tmp_path / "a.onnx")
        onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
        nodes = [node for node in model.graph if node.op_type == "Attention"]
        assert [node.name for node in nodes] == [f"blocks.{block}.attn/Attention" for block in range(4)]
        assert {round(node.attributes["scale"].as_float(), 6) for node in nodes} == {0.25}
        assert not any(node.op_type == "Softmax" for node in model.graph)
        found, reference = ask(tmp_path / "a.onnx", images(name)), ask(folder / f"{name}.onnx", images(name))
        for ours, theirs in zip(found, reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_of_another_form_is_left_alone(folder):
    model = ir.load(folder / "dense.onnx")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.attributes["axis"] = ir.AttrInt64("axis", 2)
    assert attention.fuse(model) == 3
