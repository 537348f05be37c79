"""Summaries of samples. No distribution is assumed: machines share their cores, and timing noise has long tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and an interval that holds the true one with probability ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else math.inf


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Median with its interval from order statistics (binomial, free of any distribution).

    With fewer than 6 values no interval reaches 95 %; then it is their whole range, with the coverage that has.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        raise ValueError("no values")
    # The true median lies between the (k+1)-th smallest and largest value unless k or fewer fall on one side of it.
    tail = [math.comb(count, i) / 2**count for i in range(count + 1)]
    cut, outside = 0, 2 * tail[0]
    while cut + 1 <= (count - 1) // 2 and outside + 2 * tail[cut + 1] <= 1 - confidence:
        cut += 1
        outside += 2 * tail[cut]
    return Interval(
        float(np.median(ordered)), float(ordered[cut]), float(ordered[count - 1 - cut]), max(0.0, 1 - outside)
    )


def percentiles(values: Sequence[float], points: Sequence[float]) -> tuple[float, ...]:
    """Percentiles by linear interpolation."""
    return tuple(float(value) for value in np.percentile(np.asarray(values, dtype=np.float64), points))
