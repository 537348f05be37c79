"""The exported graphs: their form, their names, and that they compute what PyTorch computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lifedeploy.errors import ArtifactError, ExportError
from lifedeploy.exporters import inspect
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.vit import build_model
from tests.conftest import make_tiny


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Model, spec, and a folder with its three graphs: life traced, the others derived."""
    model, spec = make_tiny()
    folder = tmp_path_factory.mktemp("graphs")
    graph = exporter.trace(model, spec, GraphOptions(with_life=True))
    for method in ("dense", "first-k"):
        exporter.save(exporter.derive(graph, spec, method), folder / f"{method}.onnx", metadata={})
    exporter.save(graph, folder / "life.onnx", metadata={"lifedeploy.method": "life", "lifedeploy.tokens": [16, 11]})
    return model, spec, folder


def facts(path: Path) -> inspect.GraphFacts:
    return inspect.facts(inspect.load(path))


def ask(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})


def test_order_once_has_one_topk_one_gather_and_static_slices(traced):
    _, _, folder = traced
    found = facts(folder / "life.onnx")
    assert found.topk == (11,)
    assert found.gathers_after_topk == 1
    slices = [node for node in onnx.load(folder / "life.onnx").graph.node if node.name.startswith("reducer.keep")]
    assert [node.op_type for node in slices] == ["Slice"]  # the second drop; the first one orders


def test_per_stage_has_a_topk_and_a_gather_per_drop_and_the_same_answers(traced, tmp_path):
    model, spec, folder = traced
    literal = build_model(model.backbone, spec, graph="per-stage")
    literal.load_state_dict(model.state_dict())
    exporter.save(exporter.trace(literal, spec, GraphOptions(form="per-stage")), tmp_path / "p.onnx", metadata={})
    found = facts(tmp_path / "p.onnx")
    assert found.topk == (11, 6)
    assert found.gathers_after_topk == 2
    images = torch.randn(3, 3, 32, 32)
    np.testing.assert_array_equal(ask(folder / "life.onnx", images)[0], ask(tmp_path / "p.onnx", images)[0])


@pytest.mark.parametrize("method", ["life", "dense", "first-k"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graphs_compute_what_pytorch_computes_at_any_batch(traced, method, batch):
    model, spec, folder = traced
    torch.manual_seed(batch)
    images = torch.randn(batch, 3, 32, 32)
    reference = model if method == "life" else build_model(model.backbone, replace(spec, method=method))
    with torch.inference_mode():
        expected = reference(images)
    answers = ask(folder / f"{method}.onnx", images)
    np.testing.assert_allclose(answers[0], expected.logits.numpy(), atol=1e-5)
    if method == "life":
        np.testing.assert_allclose(answers[1], expected.life.numpy(), atol=1e-3)


@pytest.mark.parametrize("method", ["dense", "first-k"])
def test_derived_graphs_are_those_that_tracing_would_give(traced, method, tmp_path):
    model, spec, folder = traced
    own = replace(spec, method=method)
    exporter.save(
        exporter.trace(build_model(model.backbone, own), own, GraphOptions()), tmp_path / "traced.onnx", metadata={}
    )
    assert facts(folder / f"{method}.onnx").operators == facts(tmp_path / "traced.onnx").operators


def test_derived_graphs_lose_the_predictor_and_the_life_output(traced):
    _, _, folder = traced
    dense = onnx.load(folder / "dense.onnx")
    assert not [node.name for node in dense.graph.node if "reducer" in node.name]
    assert not [tensor.name for tensor in dense.graph.initializer if "reducer" in tensor.name]
    assert [output.name for output in dense.graph.output] == ["logits"]


def test_names_read_well_and_tell_nothing_of_the_machine(traced):
    _, _, folder = traced
    model = onnx.load(folder / "life.onnx")
    names = {node.name for node in model.graph.node}
    assert {"blocks.0.attn.qkv/MatMul", "reducer.order.2/TopK", "reducer.order.2/Gather", "head/Gemm"} <= names
    assert all(name for name in names)
    assert len(names) == len(model.graph.node)
    assert "life_order" in {name for node in model.graph.node for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    assert {"blocks.3.mlp.fc1.bias", "blocks.3.mlp.fc1.weight_t", "head.weight", "pos_embed"} <= weights
    assert str(Path(torch.__file__).parent.parent) not in str(model.graph)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "lifedeploy.method": "life",
        "lifedeploy.tokens": json.dumps([16, 11]),
    }


def test_token_counts_are_static_and_the_batch_is_not(traced):
    _, _, folder = traced
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "life.onnx"))
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    assert shapes["reducer.order.2/Reshape_2_output_0"][1:] == [12, 32]  # CLS and 11 patches
    assert shapes["reducer.keep.3/Slice_output_0"][1:] == [7, 32]
    assert not isinstance(shapes["reducer.keep.3/Slice_output_0"][0], int)


def test_no_arithmetic_on_the_batch_size_in_the_blocks(traced):
    _, _, folder = traced
    in_blocks = [node for node in onnx.load(folder / "life.onnx").graph.node if node.name.startswith("blocks.")]
    assert in_blocks
    assert not [node.name for node in in_blocks if node.op_type in ("Shape", "Concat", "Expand", "Range")]


def test_static_batch(tiny, tmp_path):
    model, spec = tiny
    exporter.save(exporter.trace(model, spec, GraphOptions(batch_size=2)), tmp_path / "b2.onnx", metadata={})
    found = facts(tmp_path / "b2.onnx")
    assert found.inputs[0].shape == (2, 3, 32, 32)
    assert found.outputs[0].shape == (2, 5)
    assert found.topk == (11,)


def test_preprocessing_in_the_graph_equals_preprocessing_outside(tiny, tmp_path):
    model, spec = tiny
    options = GraphOptions(with_preprocess=True)
    exporter.save(exporter.trace(model, spec, options), tmp_path / "u8.onnx", metadata={})
    found = facts(tmp_path / "u8.onnx")
    assert (found.inputs[0].dtype, found.inputs[0].shape) == ("uint8", (None, 32, 32, 3))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
    images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(images).logits.numpy()
    np.testing.assert_allclose(ask(tmp_path / "u8.onnx", pixels)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 3, "no_embed_class": True},  # registers, DeiT-3's positions
        {"init_values": 0.1, "qk_norm": True},  # layer scale, QK-norm
        {"img_size": (32, 48)},  # not square
    ],
    ids=["registers", "layer scale and qk-norm", "not square"],
)
def test_other_vits(options, tmp_path):
    model, spec = make_tiny(**options)
    exporter.save(exporter.trace(model, spec, GraphOptions()), tmp_path / "m.onnx", metadata={})
    images = torch.randn(3, 3, *spec.image_size)
    with torch.inference_mode():
        expected = model(images).logits.numpy()
    np.testing.assert_allclose(ask(tmp_path / "m.onnx", images)[0], expected, atol=1e-5)


def test_a_schedule_that_keeps_everything_needs_no_topk(tmp_path):
    model, spec = make_tiny()
    from lifedeploy.schedule import Schedule

    spec = replace(spec, schedule=Schedule.from_keep_rate(16, 4, 1.0, (2, 3)))
    kept = build_model(model.backbone, spec)
    exporter.save(exporter.trace(kept, spec, GraphOptions()), tmp_path / "m.onnx", metadata={})
    assert facts(tmp_path / "m.onnx").topk == ()


def test_a_graph_of_another_form_is_refused(traced):
    _, _, folder = traced
    found = facts(folder / "life.onnx")
    with pytest.raises(ExportError, match="the per-stage graph has 1 TopK nodes, expected 2"):
        inspect.check_form(found, form="per-stage", drops=(11, 6), batch_size=None)
    with pytest.raises(ExportError, match="the batch of images is dynamic, expected 4"):
        inspect.check_form(found, form="order-once", drops=(11, 6), batch_size=4)
    fixed = replace(found, inputs=(replace(found.inputs[0], shape=(1, 3, 32, 32)),))
    with pytest.raises(ExportError, match="the batch of images is 1, expected dynamic"):
        inspect.check_form(fixed, form="order-once", drops=(11, 6), batch_size=None)


def test_only_baselines_can_be_derived(traced):
    _, spec, _ = traced
    with pytest.raises(ExportError, match="a life graph cannot be derived"):
        exporter.derive(None, spec, "life")


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", b"\x08\x07" + b"\xff" * 100])
def test_a_corrupt_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad\.onnx is not a valid ONNX file") as caught:
        inspect.load(path)
    assert "\n" not in caught.value.message


def test_a_truncated_file_is_refused(traced, tmp_path):
    _, _, folder = traced
    whole = (folder / "life.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="is not a valid ONNX file"):
        inspect.load(tmp_path / "cut.onnx")
