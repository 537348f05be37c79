"""All schedules that an engine's staircase leaves, by time and loss; and which of them is best for what is asked.

Time and loss of a schedule are sums over its layers, of how long a layer takes with so many tokens, and of what is lost
in it by having no more. So both are tables of layers and counts; and of few cuts among few counts there are some
hundred thousand schedules, of which none is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lifedeploy.schedule import Schedule

MOST_CUTS = 4
_EQUAL = 1e-9  # what sums of the same numbers may differ by
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What a schedule costs, by layer and by tokens in it.

    ``counts`` are patch tokens, most first: all of them, N, at place 0. Times are relative to the baseline's; losses in
    whatever unit the proxy has, 0 where nothing is dropped.
    """

    counts: tuple[int, ...]
    time: Floats  # (T, counts): saved is what time[:, 0] has more
    loss: Floats  # (T, counts), behind the base layer that lives are predicted after
    ordering: float  # time that it takes to order tokens once
    slicing: float  # and for each later cut

    @property
    def depth(self) -> int:
        """Number of layers, T."""
        return len(self.time)


@dataclass(frozen=True)
class Choice:
    """A schedule, how long it should take, relative to the baseline, and what it should lose."""

    schedule: Schedule
    time: float
    loss: float

    @property
    def words(self) -> str:
        """Its counts and layers: ``127, 95, 63 tokens after layers 4, 7, 10``."""
        counts, layers = (", ".join(map(str, numbers)) for numbers in (self.schedule.counts, self.schedule.drop_layers))
        return f"{counts} tokens after layer{'s' * (len(self.schedule.drop_layers) > 1)} {layers}"


class Front:
    """Every schedule of up to :data:`MOST_CUTS` cuts, but for those that are no better in anything than another with
    the same drop layers.

    Args:
        tables: base layer → what schedules cost that predict lives after it.
    """

    def __init__(self, tables: Mapping[int, Tables]) -> None:
        self.tables = tables
        self.looked_at = 0
        self._sets: list[tuple[int, tuple[int, ...]]] = []  # base layer, later layers
        self._places: list[NDArray[np.int16]] = []  # of the counts of those that are kept, set by set
        times, losses = [], []
        for base, table in tables.items():
            places = {cuts: _falling(len(table.counts), cuts) for cuts in range(1, MOST_CUTS + 1)}
            for later in _later_layers(base, table.depth):
                chosen = places[1 + len(later)]
                time, loss = _of_layers(table, (base, *later), chosen)
                self.looked_at += len(time)
                kept = _undominated(time, loss)
                times.append(time[kept])
                losses.append(loss[kept])
                self._sets.append((base, later))
                self._places.append(chosen[kept].astype(np.int16))
        self._time, self._loss = np.concatenate(times), np.concatenate(losses)
        self._begins = np.cumsum([0, *map(len, times)])

    def best(self) -> tuple[Choice, ...]:
        """Those that nothing is both as fast as and loses no more than, fastest first."""
        return tuple(map(self._choice, _undominated(self._time, self._loss)))

    def fastest(self, loss: float, count: int) -> tuple[Choice, ...]:
        """The fastest that lose no more than ``loss``, fastest first."""
        within = np.flatnonzero(self._loss <= loss * (1 + _EQUAL))
        order = within[np.lexsort((self._loss[within], self._time[within]))]
        return tuple(map(self._choice, order[:count]))

    def least_loss(self, time: float, count: int) -> tuple[Choice, ...]:
        """Those that lose least of what takes no more than ``time``, the best first."""
        within = np.flatnonzero(self._time <= time * (1 + _EQUAL))
        order = within[np.lexsort((self._time[within], self._loss[within]))]
        return tuple(map(self._choice, order[:count]))

    def _choice(self, index: np.intp) -> Choice:
        number = int(np.searchsorted(self._begins, index, side="right")) - 1
        base, later = self._sets[number]
        table = self.tables[base]
        counts = [table.counts[place] for place in self._places[number][index - self._begins[number]]]
        schedule = Schedule.from_counts(table.counts[0], table.depth, counts, (base, *later))
        return Choice(schedule, float(self._time[index]), float(self._loss[index]))


def _later_layers(base: int, depth: int) -> Iterator[tuple[int, ...]]:
    """Sets of drop layers behind the base layer."""
    for cuts in range(MOST_CUTS):
        yield from combinations(range(base + 1, depth), cuts)


def _falling(counts: int, cuts: int) -> NDArray[np.intp]:
    """Places of counts at each cut, (schedules, cuts): fewer tokens at each, but at the first, which may only order."""
    falling = [places for places in combinations(range(counts), cuts) if cuts > 1 or places[0]]
    return np.array(falling, dtype=np.intp).reshape(-1, cuts)


def _of_layers(table: Tables, layers: Sequence[int], places: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Time and loss of all schedules with these drop layers."""
    time = np.full(len(places), table.time[: layers[0], 0].sum() + table.ordering + table.slicing * (len(layers) - 1))
    loss = np.full(len(places), table.loss[: layers[0], 0].sum())
    for cut, (begin, end) in enumerate(zip(layers, (*layers[1:], table.depth), strict=True)):
        time += table.time[begin:end].sum(axis=0)[places[:, cut]]
        loss += table.loss[begin:end].sum(axis=0)[places[:, cut]]
    return time, loss


def _undominated(time: Floats, loss: Floats) -> NDArray[np.intp]:
    """Places of those that nothing is as fast as and loses no more than, fastest first."""
    order = np.lexsort((loss, time))
    lowest = np.minimum.accumulate(loss[order])
    first = np.concatenate([np.ones(min(1, len(order)), dtype=bool), lowest[1:] < lowest[:-1]])
    return np.asarray(order[first], dtype=np.intp)
