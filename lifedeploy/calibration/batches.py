"""Calibration images: drawn with a seed, counted, hashed, and given to a graph in batches of its own size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.batches import whole_batches
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.sets import ImageSet, Subset, evenly
from lifedeploy.engines.lanes import Array
from lifedeploy.machine import cores
from lifedeploy.spec import PreprocessSpec


@dataclass(frozen=True)
class Draw:
    """Images to calibrate on, and others to see what it cost."""

    calibration: ImageSet
    check: ImageSet
    shared: bool  # whether the latter are among the former, because there were no more


def draw(images: ImageSet, calibration: int, check: int, seed: int) -> Draw:
    """``calibration`` images at random, or all if there are fewer; and ``check`` others, or as many as are left.

    Only where none is left are some of the same taken.
    """
    order = np.random.default_rng(seed).permutation(len(images)).astype(np.int64)
    rest = order[calibration:]
    shared = not len(rest)
    others = order[:check] if shared else rest[:check]
    return Draw(Subset(images, np.sort(order[:calibration])), Subset(images, np.sort(others)), shared)


@dataclass(frozen=True, kw_only=True)
class ImageBatches:
    """Images as one graph takes them."""

    images: ImageSet
    preprocess: PreprocessSpec
    in_graph: bool  # whether the graph takes pixels and normalises them itself
    batch: int
    fixed: bool = False  # whether it takes batches of exactly that size

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> ImageBatches:
        """The same with at most ``count`` images, evenly over the set."""
        return replace(self, images=evenly(self.images, count))

    def __iter__(self) -> Iterator[tuple[Array, int]]:
        """Batches: what goes into the graph, and how many images of it count (a fixed batch is filled up).

        Raises:
            ImageError: an image cannot be read.
        """
        for pixels in self._pixels():
            count = len(pixels)
            if self.fixed and count < self.batch:
                pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch - count, axis=0)])
            yield model_input(pixels, self.preprocess, in_graph=self.in_graph), count

    def digest(self) -> str:
        """SHA-256 of the pixels that the graph gets, and of how they are prepared."""
        content = hashlib.sha256(repr(sorted(asdict(self.preprocess).items())).encode())
        for pixels in self._pixels():
            content.update(np.ascontiguousarray(pixels).tobytes())
        return content.hexdigest()

    def _pixels(self) -> Iterator[NDArray[np.uint8]]:
        return whole_batches(
            self.images,
            self.preprocess,
            batch=self.batch,
            workers=cores(),
            hint="calibration needs images that can be read: remove this one",
        )
