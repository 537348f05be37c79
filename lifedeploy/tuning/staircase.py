"""How long a model takes over the number of its tokens: on a compiled engine a staircase, measured where it is steep.

Times are relative to the model with all tokens, which takes turns with whatever is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

JUMP = 0.03  # of the time with all tokens: what rises by less has no stair in it
MOST_PROBES = 30
MOST_EDGES = 16  # counts that schedules are made of, at most
_STEP = 16  # tokens, prefix included, between two of the counts measured first: what kernels are cut into
_FIRST = 17  # counts measured first, at most
_SAMPLED = 3  # intervals looked into before a stair was seen
_AS_FAST = 0.005  # a count that is so little slower than a smaller one stands for it


def first_counts(patches: int, prefix: int) -> tuple[int, ...]:
    """Patch tokens to measure first, most first: all of them, then what makes whole steps together with the prefix.

    Args:
        patches: N.
        prefix: tokens in front of them, which are never dropped.
    """
    step = _STEP * -(-patches // (_STEP * _FIRST))
    lengths = range((patches + prefix - 1) // step * step, prefix, -step)
    counts = [length - prefix for length in lengths] if len(lengths) > 1 else range(patches - 1, 0, -1)
    return (patches, *counts)


def next_counts(first: tuple[int, ...], measured: Mapping[int, float], most: int) -> tuple[int, ...]:
    """Up to ``most`` counts to measure next; none, if nothing more is to be found out.

    Only the steepest intervals between the counts of ``first`` are looked into until a stair was seen in one. Which is
    steep is a matter of time; where it is a stair and not a slope, of one or two measurements inside.
    """
    left = min(most, MOST_PROBES - len(measured))
    intervals = [_Interval(low, high, measured) for low, high in pairwise(sorted(first))]
    steep = sorted((it for it in intervals if it.rise > JUMP), key=lambda it: -it.rise)
    if not any(it.has_stair for it in steep):
        steep = steep[:_SAMPLED]
    wanted = (next(it.unknown(), None) for it in steep)
    return tuple(count for count in wanted if count is not None)[: max(left, 0)]


@dataclass(frozen=True)
class _Interval:
    """What is known between two counts."""

    low: int
    high: int
    measured: Mapping[int, float]

    @property
    def rise(self) -> float:
        return self._rise(self.low, self.high)

    def _rise(self, low: int, high: int) -> float:
        return self.measured[high] - self.measured[low]

    @property
    def has_stair(self) -> bool:
        """Whether two counts beside each other in it are a jump apart."""
        inside = sorted(count for count in self.measured if self.low <= count <= self.high)
        return any(after - before == 1 and self._rise(before, after) > JUMP for before, after in pairwise(inside))

    def unknown(self) -> Iterator[int]:
        """What should be measured to know where it rises: most often its lower end is the edge of a stair."""
        neighbour = self.low + 1
        if neighbour < self.high and neighbour not in self.measured:
            yield neighbour
        elif neighbour < self.high:
            yield from self._between(neighbour, self.high)

    def _between(self, low: int, high: int) -> Iterator[int]:
        middle = (low + high) // 2
        if high - low < 2 or self._rise(low, high) <= JUMP:
            return
        if middle not in self.measured:
            yield middle
            return
        share = (middle - low) / (high - low)
        chord = self.measured[low] + share * self._rise(low, high)
        if abs(self.measured[middle] - chord) > JUMP / 2:  # else it is a slope
            yield from self._between(low, middle)
            yield from self._between(middle, high)


class Staircase:
    """What was measured, as a function that never falls: tokens more never make a model faster.

    Args:
        measured: patch tokens → time, relative to that with all of them.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self.counts = tuple(sorted(measured))
        self.times = tuple(_never_falling([measured[count] for count in self.counts]))

    def time(self, count: float) -> float:
        """The time with ``count`` patch tokens, between two measured ones on the line that joins them."""
        return float(np.interp(count, self.counts, self.times))

    @property
    def edges(self) -> tuple[int, ...]:
        """Counts that schedules should be made of, most first: right edges of stairs, where a token more costs time.

        Of more than :data:`MOST_EDGES`, those stay that are furthest below the line between their neighbours.
        """
        edges: list[int] = []
        for count in reversed(self.counts):
            if not edges or self.time(count) < self.time(edges[-1]) - _AS_FAST:
                edges.append(count)
        while len(edges) > MOST_EDGES:
            inner = list(zip(edges, edges[1:], edges[2:], strict=False))
            edges.remove(min(inner, key=lambda three: self._depth(*three))[1])
        return tuple(edges)

    def _depth(self, more: int, count: int, fewer: int) -> float:
        """How far a count is below the line between two others."""
        share = (count - fewer) / (more - fewer)
        return self.time(fewer) + share * (self.time(more) - self.time(fewer)) - self.time(count)

    @property
    def jump(self) -> float:
        """The largest rise between two counts that are neighbours; 0 where no two of those measured are."""
        steps = zip(self.counts, self.counts[1:], self.times, self.times[1:], strict=False)
        return max((after - before for low, high, before, after in steps if high - low == 1), default=0.0)


def _never_falling(values: list[float]) -> list[float]:
    """The nearest sequence, in squares, that never falls: neighbours that fall share their mean."""
    pools: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]
