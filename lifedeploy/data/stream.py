"""Decoded images in batches, ahead of whoever uses them: threads, since Pillow decodes outside Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.images import ImageSet
from lifedeploy.data.preprocess import to_pixels
from lifedeploy.errors import ImageError
from lifedeploy.spec import PreprocessSpec

_AHEAD = 4  # batches decoded before they are asked for


@dataclass(frozen=True)
class Broken:
    """An image that could not be decoded."""

    filename: str
    reason: str


@dataclass(frozen=True)
class PixelBatch:
    """Up to ``batch`` images that could be decoded, and those of its stretch that could not."""

    indices: tuple[int, ...]
    pixels: tuple[NDArray[np.uint8], ...]  # one (b, H, W, 3) for every preprocessing asked for
    broken: tuple[Broken, ...]


def stream(
    images: ImageSet, indices: Sequence[int], specs: Sequence[PreprocessSpec], *, batch: int, workers: int
) -> Iterator[PixelBatch]:
    """The images at ``indices``, in order, each decoded once and prepared once for every one of ``specs``."""

    def load(index: int) -> tuple[int, list[NDArray[np.uint8]] | Broken]:
        try:
            image = images.image(index)
        except ImageError as error:
            return index, Broken(images.filename(index), error.message)
        return index, [to_pixels(image, spec) for spec in specs]

    starts = iter(range(0, len(indices), batch))
    waiting: deque[list[Future[tuple[int, list[NDArray[np.uint8]] | Broken]]]] = deque()
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(waiting) < _AHEAD and (start := next(starts, None)) is not None:
                    waiting.append([pool.submit(load, index) for index in indices[start : start + batch]])
                if not waiting:
                    return
                yield _together([future.result() for future in waiting.popleft()], len(specs))
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


def _together(loaded: list[tuple[int, list[NDArray[np.uint8]] | Broken]], specs: int) -> PixelBatch:
    good = [(index, found) for index, found in loaded if not isinstance(found, Broken)]
    broken = tuple(found for _, found in loaded if isinstance(found, Broken))
    pixels = tuple(np.stack([found[number] for _, found in good]) for number in range(specs)) if good else ()
    return PixelBatch(tuple(index for index, _ in good), pixels, broken)
