"""Images that a model tells apart, and what it says of them when it is asked directly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.artifact import Artifact
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.engines.base import EngineOptions
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of


def photo(seed: int) -> Image.Image:
    """A picture of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((90, 80))


def photos(root: Path, count: int, *, first: int = 0) -> list[Path]:
    """So many of them in a folder, ``00.png``, ``01.png`` …"""
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{number:02d}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        photo(number).save(path)
    return paths


def asked(model: Path, paths: Sequence[Path]) -> NDArray[Any]:
    """What a model gives for images, without any of the code under test."""
    target = target_of(ModelFile.of(Artifact.read(model / "model.json")))
    assert target.spec is not None
    pixels = np.stack([to_pixels(read_image(path), target.spec.preprocess) for path in paths])
    with Session(target, options=EngineOptions(threads=1)) as session:
        return session.ask(pixels)[session.engine.outputs[0].name]


def probabilities(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON Lines, or those of all parts of a folder, in their order."""
    files = [path] if path.is_file() else sorted(path.glob("part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
