"""Calibration of a graph whose attention has a bias on its keys: what engines on CPUs make of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from lifedeploy.calibration.quantize import Prepared, Recipe, Source, prepare, write
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.engines.openvino import OpenVino
from lifedeploy.exporters import attention
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.inspect import load
from lifedeploy.exporters.onnx import GraphOptions
from tests.calibration.conftest import operators
from tests.conftest import make_tiny
from tests.model.other_methods import with_merging

DEPTH = 4


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    path = tmp_path_factory.mktemp("merging") / "merging.onnx"
    exporter.save(exporter.trace(*with_merging(*make_tiny(), 3, (1, 3)), GraphOptions()), path, metadata={})
    return path


def calibrated(merging, batches, folder, precision) -> Prepared:
    return prepare(Source(merging, "graph", "data", folder / "cache"), Recipe(precision=precision), batches, folder)


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVino])
def test_int8_on_cpus_answers_what_its_graph_says(merging, batches, tmp_path, engine):
    prepared = calibrated(merging, batches, tmp_path, "int8")
    assert len(prepared.names) == 4 * DEPTH
    assert not any(name.startswith("reducer") for name in prepared.names)
    write(prepared, tmp_path / "q.onnx")
    images, _ = next(iter(batches))
    answers = []
    for kind, options in ((OnnxRuntime, EngineOptions(literal=True)), (engine, EngineOptions(precision="int8"))):
        with kind(tmp_path / "q.onnx", options) as opened:
            answers.append(opened.run({"images": images})["logits"])
    reference, logits = answers
    assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < 0.02


def test_fp8_quantises_both_products_around_a_bias_and_not_the_bias(merging, batches, tmp_path):
    prepared = calibrated(merging, batches, tmp_path, "fp8")
    names = {name for name in prepared.names if ".attn/" in name}
    assert names == {f"blocks.{block}.attn/MatMul{number}" for block in range(DEPTH) for number in ("", "_1")}
    write(prepared, tmp_path / "q.onnx")
    graph = load(tmp_path / "q.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    added = [node for node in graph.node if node.op_type == "Add" and node.name.endswith(".attn/Add")]
    assert [node.name for node in added] == [f"blocks.{block}.attn/Add" for block in (1, 2, 3)]
    for node in added:
        assert [makers[name].op_type for name in node.input] == ["MatMul", "Unsqueeze"]
    assert operators(tmp_path / "q.onnx").count("QuantizeLinear") == 8 * DEPTH  # as without a bias


def test_attention_of_a_quantised_graph_takes_its_bias_along(merging, batches, tmp_path):
    """Products of attention are in floating point there, so they become one operator."""
    write(calibrated(merging, batches, tmp_path, "int8"), tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    assert attention.fuse(model) == DEPTH
    assert [len(node.inputs) for node in model.graph if node.op_type == "Attention"] == [3, 4, 4, 4]
