"""Models that score: one that names classes, and one that gives embeddings, three at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lifedeploy.artifact import Workspace
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.model.request import ModelRequest
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.export import ExportRequest, export
from tests.conftest import TINY, TINY_SIZE
from tests.once import made_once, shared_folder


@pytest.fixture(autouse=True)
def _usual_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job sets is gone after the test."""
    monkeypatch.setenv("LIFEDEPLOY_MAX_PIXELS", "178956970")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture(scope="session")
def model(exported: Path) -> Path:
    """An engine of three classes. Read only."""
    return next(exported.glob("*/onnxruntime-fp32"))


@pytest.fixture(scope="session")
def fake(exported: Path) -> Path:
    """The same model on the fake engine. Read only."""
    return next(exported.glob("*/fake-fp32"))


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory, weights_file: Path, tracing_once: Callable[..., Any]) -> Path:
    """An engine without a head, which takes three images at a time and normalises them itself. Read only."""

    def make(folder: Path) -> None:
        state = {name: tensor for name, tensor in load_file(weights_file).items() if not name.startswith("head.")}
        folder.mkdir()
        save_file(state, folder / "headless.safetensors")
        request = ModelRequest(
            backbone=TINY,
            keep_rate=0.7,
            weights=str(folder / "headless.safetensors"),
            image_size=TINY_SIZE,
            num_classes=0,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "trace", tracing_once)
            export(ExportRequest(request, GraphOptions(batch_size=3, with_preprocess=True)), Workspace(folder))
        build(BuildRequest(engine="onnxruntime"), Workspace(folder))

    return next(made_once(shared_folder(tmp_path_factory) / "headless", make).glob("*/onnxruntime-fp32"))
