"""Batches of decoded pixels, in order, prepared ahead by threads: Pillow lets go of the GIL while it works.

No framework: an engine is evaluated and calibrated where PyTorch is not loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.preprocess import to_pixels
from lifedeploy.data.sets import ImageSet
from lifedeploy.errors import ImageError
from lifedeploy.spec import PreprocessSpec

Pixels = NDArray[np.uint8]
_AHEAD = 3  # batches in preparation while one is used


@dataclass(frozen=True)
class Broken:
    """An image that cannot be decoded."""

    index: int
    filename: str
    message: str


@dataclass(frozen=True)
class Batch:
    """Up to a batch of images; fewer where some are broken, and perhaps none."""

    filenames: tuple[str, ...]
    targets: NDArray[np.int64]
    pixels: dict[PreprocessSpec, Pixels]  # (B, H, W, 3) for each way of preparing them
    broken: tuple[Broken, ...]

    @property
    def seen(self) -> int:
        """Images taken from the set, broken ones included."""
        return len(self.filenames) + len(self.broken)


def decoded_batches(
    images: ImageSet,
    specs: Sequence[PreprocessSpec],
    *,
    batch: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """``images`` in batches, with at most three more of them in memory; every ``world``-th from ``rank`` on.

    Each image is decoded once, and resized once per geometry among ``specs``.

    Raises:
        UsageError: a spec is not supported.
    """
    indices = range(rank, len(images), world)
    chunks = (indices[start : start + batch] for start in range(0, len(indices), batch))
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
    try:
        waiting: deque[_Submitted] = deque()
        for chunk in chunks:
            waiting.append([(index, pool.submit(_prepare, images, index, specs)) for index in chunk])
            if len(waiting) > _AHEAD:
                yield _batch(images, specs, waiting.popleft())
        while waiting:
            yield _batch(images, specs, waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def whole_batches(
    images: ImageSet, preprocess: PreprocessSpec, *, batch: int, workers: int, hint: str
) -> Generator[Pixels, None, None]:
    """The same of one preparation, where every image counts: (B, H, W, 3) each; ``hint`` goes with the error.

    Raises:
        ImageError: one cannot be decoded.
    """
    with closing(decoded_batches(images, [preprocess], batch=batch, workers=workers)) as batches:
        for decoded in batches:
            if decoded.broken:
                raise ImageError(decoded.broken[0].message, hint=hint)
            yield decoded.pixels[preprocess]


_Prepared = dict[PreprocessSpec, Pixels]
_Submitted = list[tuple[int, "Future[_Prepared | Broken]"]]


def _prepare(images: ImageSet, index: int, specs: Sequence[PreprocessSpec]) -> _Prepared | Broken:
    try:
        image = images.image(index)
    except ImageError as error:
        return Broken(index, images.filename(index), error.message)
    prepared: _Prepared = {}
    for spec in specs:
        if _geometry(spec) not in prepared:
            prepared[_geometry(spec)] = to_pixels(image, spec)
    return prepared


def _geometry(spec: PreprocessSpec) -> PreprocessSpec:
    """What matters before normalisation: specs that differ in mean and deviation only share their pixels."""
    return replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _batch(images: ImageSet, specs: Sequence[PreprocessSpec], submitted: _Submitted) -> Batch:
    done = [(index, future.result()) for index, future in submitted]
    good = [(index, pixels) for index, pixels in done if not isinstance(pixels, Broken)]
    stacked = {
        geometry: np.stack([pixels[geometry] for _, pixels in good])
        for geometry in {_geometry(spec) for spec in specs}
        if good
    }
    return Batch(
        filenames=tuple(images.filename(index) for index, _ in good),
        targets=images.targets[[index for index, _ in good]],
        pixels={spec: stacked[_geometry(spec)] for spec in specs if good},
        broken=tuple(broken for _, broken in done if isinstance(broken, Broken)),
    )
