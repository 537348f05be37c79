"""A tiny float graph with a hard activation in it, and images."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.compare import Check
from lifedeploy.calibration.quantize import Prepared, Recipe, Source, prepare
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.kept import KeptTokens
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.literal import ask
from tests.conftest import make_tiny

SIZE = 32  # pixels


def make_loose(root: Path, count: int) -> Path:
    """Pictures of coarse noise in one folder."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((40, 36)).save(root / f"{index:03}.png")
    return root


@pytest.fixture(scope="session")
def loose(tmp_path_factory) -> Path:
    return make_loose(tmp_path_factory.mktemp("images") / "loose", 24)


@pytest.fixture(scope="session")
def life(tmp_path_factory, tracing_once) -> tuple[Path, ModelSpec]:
    """The graph of a tiny life model; one channel behind a LayerNormalization reaches forty times as far as others."""
    model, spec = make_tiny()
    with torch.no_grad():
        norm = model.backbone.blocks[1].norm1
        norm.weight[5], norm.bias[5] = 40.0, 10.0
    path = tmp_path_factory.mktemp("float") / "life.onnx"
    exporter.save(tracing_once(model, spec, GraphOptions()), path, metadata={})
    return path, spec


@pytest.fixture(scope="session")
def batches(loose, life) -> ImageBatches:
    return ImageBatches(images=read_unlabelled(str(loose)), preprocess=life[1].preprocess, in_graph=False, batch=5)


@pytest.fixture
def prepared(life, batches, tmp_path):
    """``prepared(recipe)``: statistics from the tiny graph, cached in the test's folder."""

    def make(recipe: Recipe | None = None) -> Prepared:
        source = Source(life[0], "graph", "data", tmp_path / "cache")
        return prepare(source, recipe or Recipe(), batches, tmp_path)

    return make


@pytest.fixture(scope="session")
def check(life, batches) -> Check:
    path, spec = life
    kept = KeptTokens.of(spec.schedule, (spec.schedule.base_layer,))
    asked = partial(ask, kept)
    return Check(float_graph=path, batches=batches, method=spec.method, ask=asked, answers=asked(path, batches))


def off_by(answered: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest number expected."""
    return float(np.abs(answered - expected).max() / np.abs(expected).max())


def answers(path: Path, **entries: str) -> np.ndarray:
    """What ONNX Runtime makes of noise with the graph at ``path``; ``entries`` are of the session."""
    options = ort.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    batch, *sizes = entry.shape
    shape = (batch if isinstance(batch, int) else 3, *sizes)
    generator = np.random.default_rng(0)
    if entry.type == "tensor(uint8)":
        images = generator.integers(0, 256, shape, dtype=np.uint8)
    else:
        images = generator.standard_normal(shape, dtype=np.float32)
    return session.run(["logits"], {entry.name: images})[0]


def kinds(model: ir.Model) -> Counter[str]:
    """How many nodes of each operator."""
    return Counter(node.op_type for node in model.graph)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in ir.load(path).graph]
