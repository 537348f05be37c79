"""A few coloured images in class folders, and a configuration that trains on them in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lifedeploy.artifact import Workspace
from lifedeploy.model import weights
from lifedeploy.training.config import TrainConfig

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 images of three colours, in no split."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    for number, name in enumerate(CLASSES):
        (root / name).mkdir()
        for index in range(12):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., 2 - number] += 120
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "no hub in a test")


@pytest.fixture(scope="session")
def settings(pictures: Path) -> Callable[..., TrainConfig]:
    """A small configuration with some settings changed: 7 images held out, 3 steps an epoch."""

    def make(**changes: Any) -> TrainConfig:
        small: dict[str, Any] = {
            "backbone": "test_vit",
            "image_size": (64, 64),
            "data": str(pictures),
            "val_share": 0.2,
            "batch": 8,
            "weights": "random",
            "precision": "fp32",
            "workers": 0,
            "log_every": 2,
            "backbone_lr": 1e-3,
            "head_lr": 1e-3,
            "predictor_lr": 1e-2,
        }
        return TrainConfig(**(small | changes))

    return make
