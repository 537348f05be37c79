"""How far activations reach: statistics of tensors over images, batch by batch, and thresholds taken from them.

Nothing is kept of an image but what it adds to the counts: memory does not grow with the number of images. (The
calibrators of onnxruntime.quantization keep every activation of every image of a call.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lifedeploy.errors import EngineError

BINS = 2048
LEVELS = 128  # of one sign of a symmetric INT8
_STRIDES = (5, 7, 11, 13)  # every so many values one is counted: the first that does not divide the channels
_STEP = 8  # thresholds tried by the entropy method are so many bins apart
PERCENTILE = 99.99

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


_LARGEST = float(np.finfo(np.float32).max)
_Magnitude = Annotated[float, msgspec.Meta(ge=0, le=2 * _LARGEST)]  # a histogram ends at a power of two beyond


class Counted(msgspec.Struct):
    """Statistics as a cache keeps them."""

    limit: _Magnitude
    largest: _Magnitude
    counts: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=2**53)]], msgspec.Meta(max_length=BINS)]
    channels: list[_Magnitude] | None


class TensorStatistics:
    """The largest |x|, and a histogram of |x| over [0, limit); limit is a power of two that doubles as values grow.

    Doubling merges pairs of bins, so the counts do not depend on the order of the batches. Every fifth value or so is
    counted, which is plenty for a share of 99.99 % and costs less than the inference; the largest is of all.
    """

    def __init__(self, *, per_channel: bool = False) -> None:
        self.counts: Counts = np.zeros(BINS, dtype=np.int64)
        self.limit = 0.0
        self.largest = 0.0
        self.channels: NDArray[np.float32] | None = None  # largest |x| per last axis, if asked for
        self._per_channel = per_channel

    def add(self, values: NDArray[Any]) -> None:
        """Take a tensor of a batch: (…, C).

        Raises:
            EngineError: it holds NaN or infinity.
        """
        largest = float(np.maximum(values.max(), -values.min()))  # NaN stays NaN
        if not math.isfinite(largest):
            raise EngineError("an activation is NaN or infinite: this model cannot be calibrated")
        if self._per_channel:
            rows = values.reshape(-1, values.shape[-1])
            channels = np.maximum(rows.max(axis=0), -rows.min(axis=0))
            self.channels = channels if self.channels is None else np.maximum(self.channels, channels)
        self.largest = max(self.largest, largest)
        self._grow(largest)
        stride = next(step for step in _STRIDES if values.shape[-1] % step or step == _STRIDES[-1])
        counted = np.abs(values.ravel()[::stride])
        if self.limit:
            bins = np.minimum(counted * np.float32(BINS / self.limit), BINS - 1).astype(np.int32)
            self.counts += np.bincount(bins, minlength=BINS)
        else:
            self.counts[0] += counted.size

    def _grow(self, largest: float) -> None:
        if not self.limit and largest:
            self.limit = 2.0 ** math.ceil(math.log2(largest))
        while largest > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, dtype=np.int64)])
            self.limit *= 2

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: what a cache keeps."""
        return {
            "limit": self.limit,
            "largest": self.largest,
            "counts": np.trim_zeros(self.counts, "b").tolist(),
            "channels": None if self.channels is None else self.channels.tolist(),
        }

    @classmethod
    def of(cls, counted: Counted) -> TensorStatistics:
        """The inverse of :meth:`to_dict`."""
        statistics = cls(per_channel=counted.channels is not None)
        statistics.counts[: len(counted.counts)] = counted.counts
        statistics.limit, statistics.largest = counted.limit, counted.largest
        statistics.channels = None if counted.channels is None else np.asarray(counted.channels, dtype=np.float32)
        return statistics


def minmax(statistics: TensorStatistics) -> float:
    """The largest magnitude seen."""
    return statistics.largest


def percentile(statistics: TensorStatistics, percent: float = PERCENTILE) -> float:
    """The magnitude that ``percent`` % of all values do not exceed."""
    cumulated = np.cumsum(statistics.counts)
    index = int(np.searchsorted(cumulated, cumulated[-1] * percent / 100))
    return min((index + 1) * statistics.limit / BINS, statistics.largest)


def entropy(statistics: TensorStatistics) -> float:
    """The threshold whose 128 levels lose the least information, by Kullback-Leibler divergence.

    S. Migacz, 8-bit inference with TensorRT, GTC 2017 (session 7310), slides 31 to 38.
    """
    counts = statistics.counts.astype(np.float64)
    used = len(np.trim_zeros(counts, "b"))
    if used <= LEVELS:
        return statistics.largest
    ends = [*range(LEVELS, used, _STEP), used]
    best = min(ends, key=lambda end: _divergence(counts, end))
    return float(min(best * statistics.limit / BINS, statistics.largest))


def _divergence(counts: Floats, end: int) -> float:
    """Of the distribution clipped after ``end`` bins from the same in 128 levels; infinite if nothing is left of it."""
    reference = counts[:end].copy()
    if not reference.any():
        return math.inf
    reference[-1] += counts[end:].sum()
    # Bins of each level; its mass is spread over those of its bins that hold anything.
    levels = np.arange(end) * LEVELS // end
    filled = counts[:end] > 0
    mass = np.bincount(levels, weights=counts[:end], minlength=LEVELS)
    size = np.bincount(levels, weights=filled, minlength=LEVELS)
    candidate = np.where(filled, mass[levels] / np.maximum(size[levels], 1), 0)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    shared = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q == 0)].sum()  # the last bin, where only clipped values are in it
    return float((p[shared] * np.log(p[shared] / q[shared])).sum() + lost * math.log(1e6))


THRESHOLDS: dict[str, Callable[[TensorStatistics], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}
