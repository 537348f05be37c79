"""Other schedules out of a graph that was exported: the same nodes as if they had been traced, and the same answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lifedeploy import methods
from lifedeploy.errors import ExportError
from lifedeploy.exporters import inspect
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.exporters.reschedule import Reschedulable
from lifedeploy.model.vit import build_model
from lifedeploy.schedule import Schedule
from tests.conftest import make_tiny

OTHERS = [((12, 5), (2, 3)), ((16, 3), (2, 3)), ((9,), (2,)), ((14, 9, 4), (1, 2, 3)), ((7,), (3,)), ((16, 8), (1, 3))]


def export(folder, method="life", options=None, **how):
    """The graph of a tiny model, its baseline and its bound."""
    model, spec = make_tiny(method=method, **(options or {}))
    traced = model.with_prefix_block() if how.pop("prefix", True) else model
    graph = exporter.trace(traced, spec, GraphOptions(**how))
    for other in (methods.baseline(), methods.bound()):
        exporter.save(exporter.derive(graph, spec, other), folder / f"{other.stem}.onnx", metadata={})
    exporter.save(graph, folder / "model.onnx", metadata={})
    return model, spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    export(folder)
    return folder


@pytest.fixture
def life():
    return make_tiny()


def nodes(path):
    graph = onnx.load(path).graph
    return [(node.op_type, node.name, tuple(node.input), node.output[:1]) for node in graph.node]


def run(path, names=("logits",)):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return images, session.run(list(names), {"images": images.numpy()})


@pytest.mark.parametrize(("counts", "layers"), OTHERS)
def test_it_is_the_graph_that_tracing_gives(folder, life, tmp_path, counts, layers):
    model, spec = life
    schedule = Schedule.from_counts(16, 4, counts, layers)
    Reschedulable(folder / "model.onnx", spec).rescheduled(schedule, tmp_path / "made.onnx")
    other = replace(spec, schedule=schedule)
    traced = exporter.trace(build_model(model.backbone, other).with_prefix_block(), other, GraphOptions())
    exporter.save(traced, tmp_path / "traced.onnx", metadata={})
    kinds = [[node[0] for node in nodes(tmp_path / name)] for name in ("made.onnx", "traced.onnx")]
    assert sorted(kinds[0]) == sorted(kinds[1])
    assert {node[1] for node in nodes(tmp_path / "made.onnx")} == {node[1] for node in nodes(tmp_path / "traced.onnx")}
    inspect.check_structure(inspect.facts(inspect.load(tmp_path / "made.onnx")), sorts=1, batch_size=None)
    answers = [run(tmp_path / name)[1][0] for name in ("made.onnx", "traced.onnx")]
    np.testing.assert_array_equal(*answers)


def test_its_own_schedule_gives_it_back(folder, life, tmp_path):
    Reschedulable(folder / "model.onnx", life[1]).rescheduled(life[1].schedule, tmp_path / "made.onnx")
    assert nodes(tmp_path / "made.onnx") == nodes(folder / "model.onnx")


@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 4}, {"init_values": 0.1}, {"class_token": True, "pre_norm": True}]
)
@pytest.mark.parametrize(("counts", "layers"), OTHERS[:4])
def test_it_answers_as_pytorch_does(tmp_path, options, counts, layers):
    model, spec = export(tmp_path, options=options)
    schedule = Schedule.from_counts(16, 4, counts, layers)
    Reschedulable(tmp_path / "model.onnx", spec).rescheduled(schedule, tmp_path / "made.onnx")
    graph = onnx.load(tmp_path / "made.onnx")
    kept = next(name for node in graph.graph.node for name in node.output if name.startswith("kept_"))
    assert kept == f"kept_{layers[0]}"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(kept, onnx.TensorProto.INT64, None))
    onnx.save(graph, tmp_path / "tapped.onnx")
    images, (logits, positions) = run(tmp_path / "tapped.onnx", ("logits", kept))
    with torch.inference_mode():
        expected = model(images, schedule=schedule)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(positions, expected.kept[layers[0]].numpy())


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_that_is_fixed_stays_fixed(tmp_path, batch):
    model, spec = export(tmp_path, batch_size=batch)
    schedule = Schedule.from_counts(16, 4, (13, 6), (1, 3))
    Reschedulable(tmp_path / "model.onnx", spec).rescheduled(schedule, tmp_path / "made.onnx")
    images = torch.randn(batch, 3, 32, 32)
    session = ort.InferenceSession(str(tmp_path / "made.onnx"), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images, schedule=schedule).logits
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("counts", "layers"), [((13, 6), (1, 3)), ((16, 6), (2, 3))])
def test_a_random_order_is_moved_too(tmp_path, prefix, counts, layers):
    model, spec = export(tmp_path, method="random", prefix=prefix)
    schedule = Schedule.from_counts(16, 4, counts, layers)
    Reschedulable(tmp_path / "model.onnx", spec).rescheduled(schedule, tmp_path / "made.onnx")
    images, (logits,) = run(tmp_path / "made.onnx")
    with torch.inference_mode():
        expected = model(images, schedule=schedule).logits
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [16, 11, 1])
def test_a_shortened_baseline_has_the_first_tokens_in_every_layer(folder, life, tmp_path, tokens):
    model, spec = life
    Reschedulable(folder / "dense.onnx", spec.under("dense")).shortened(tokens, tmp_path / "made.onnx")
    images, (logits,) = run(tmp_path / "made.onnx")
    view = model.adapted
    with torch.inference_mode():
        kept = view.embed(images).first(tokens)
        for layer in range(1, 5):
            kept = view.run_block(layer, kept, None)
        expected = view.classify(kept)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
    slices = [node for node in nodes(tmp_path / "made.onnx") if node[1] == "tokens/Slice"]
    assert len(slices) == (tokens < 16)


def test_what_orders_at_every_drop_is_refused(life, tmp_path):
    model, spec = make_tiny(ordering="per-stage")
    exporter.save(exporter.trace(model, spec, GraphOptions(ordering="per-stage")), tmp_path / "model.onnx", metadata={})
    with pytest.raises(ExportError, match="orders its tokens 2 times, where once was expected"):
        Reschedulable(tmp_path / "model.onnx", spec).rescheduled(spec.schedule, tmp_path / "made.onnx")
    assert not (tmp_path / "made.onnx").exists()


def test_a_graph_whose_blocks_have_other_names_is_refused(folder, life, tmp_path):
    graph = onnx.load(folder / "dense.onnx")
    for node in graph.graph.node:
        node.name = node.name.replace("blocks", "layers")
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match="0 tensors enter the block of layer 1, where one was expected"):
        Reschedulable(tmp_path / "other.onnx", life[1]).shortened(4, tmp_path / "made.onnx")
