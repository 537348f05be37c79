"""Inputs to compare engines on: real photographs and noise, the same everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.spec import PreprocessSpec

NOISE_SEED = 20
PHOTOS = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg", "rocket.jpg")


@dataclass(frozen=True)
class Sample:
    """A batch of images of one kind."""

    kind: str  # "photographs" or "noise"
    pixels: NDArray[np.uint8]  # (B, H, W, 3)

    @property
    def batch(self) -> int:
        """Images in it."""
        return len(self.pixels)


def photo_folder() -> Path:
    """Where the package keeps its photographs."""
    return Path(str(resources.files("lifedeploy.data") / "photos"))


def parity_samples(spec: PreprocessSpec, batch_size: int | None = None) -> list[Sample]:
    """Photographs and noise at batch 1 and 3 (a batch that an exporter fixed shows), or at the one static batch."""
    photos = photographs(spec)
    generator = np.random.default_rng(NOISE_SEED)
    height, width = spec.image_size
    samples = []
    for batch in (1, 3) if batch_size is None else (batch_size,):
        # Other photographs in every batch, as far as they reach.
        chosen = [photos[index % len(photos)] for index in range(batch - 1, 2 * batch - 1)]
        samples.append(Sample("photographs", np.stack(chosen)))
        samples.append(Sample("noise", generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)))
    return samples


def photographs(spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
    """Every packaged photograph as it is, then mirrored: (H, W, 3) each."""
    images = [read_image(photo_folder() / name) for name in PHOTOS]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return [to_pixels(image, spec) for image in (*images, *mirrored)]


def digest(array: NDArray[np.generic]) -> str:
    """A short name for an input: what a recorded answer is found under."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
