"""What tuning says: the staircase, the front, what was verified, and the schedule that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lifedeploy.bench.stats import CONFIDENCE, Interval
from lifedeploy.section import plain
from lifedeploy.tuned import Tuned
from lifedeploy.tuning.book import Divergence, Probe
from lifedeploy.tuning.front import Choice
from lifedeploy.tuning.staircase import JUMP, Staircase

SCHEMA = 1
MOST_OFF = 0.03  # share of the predicted time that a measured one may be off by: more is a failure of the model
_SHOWN = 12  # rows of the front in a table


@dataclass(frozen=True, kw_only=True)
class Point:
    """A schedule: what is expected of it, and what was asked and measured. Times are relative to the dense model's."""

    counts: tuple[int, ...]
    drop_layers: tuple[int, ...]
    time: float  # expected
    loss: float  # expected, in what the report's ``loss_is`` says
    true: Divergence | None = None  # as deployed; None: no images were given, or it was not asked about
    measured: Interval | None = None  # speed-up over dense
    over_before: Interval | None = None  # speed over the schedule that the model has

    @classmethod
    def of(cls, choice: Choice, **more: Any) -> Point:
        """A choice, and what more is known of it."""
        schedule = choice.schedule
        return cls(counts=schedule.counts, drop_layers=schedule.drop_layers, time=choice.time, loss=choice.loss, **more)

    @property
    def off(self) -> float | None:
        """By how much the measured time is longer than the expected one, as a share of that."""
        return None if self.measured is None else 1 / self.measured.median / self.time - 1

    @property
    def measured_time(self) -> float:
        """Its time relative to the dense model's: measured where it was, else expected."""
        return self.time if self.measured is None else 1 / self.measured.median

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than the schedule that the model has for certain, with enough rounds to say so."""
        ratio = self.over_before
        return ratio is not None and ratio.low > 1 and ratio.coverage >= CONFIDENCE

    @property
    def known_loss(self) -> float:
        """Its true loss where it was asked about, else what is expected."""
        return self.loss if self.true is None else self.true.kl


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """What was tuned, and what came of it."""

    model: str
    goal: str  # in words
    tuned: Tuned
    improves: bool  # whether it is another schedule than the model has
    machine: dict[str, Any]
    created: str
    command: str
    images: int
    data: str  # '': the packaged photographs
    loss_is: str
    dense_ms: float  # of a request
    ordering: float  # time that ordering takes, relative to the dense model
    slicing: float  # and each later drop
    probes: dict[int, Probe]
    new_probes: int
    fitted: dict[int, float]  # the staircase, never falling
    edges: tuple[int, ...]  # counts that schedules were made of
    jump: float  # the largest of it between two neighbouring counts
    schedules: int  # that were looked at
    before: Point  # the schedule that the model has
    chosen: Point
    front: tuple[Point, ...]  # fastest first
    verified: tuple[Point, ...]
    asked: tuple[Point, ...] = ()  # whose true divergence is known, fastest first
    correlations: dict[str, float] = field(default_factory=dict)  # proxy → rank correlation with the true divergence
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Point, ...]:
        """Some points of the front, evenly over its time."""
        if len(self.front) <= _SHOWN:
            return self.front
        times = np.array([point.time for point in self.front])
        wanted = np.linspace(times[0], times[-1], _SHOWN)
        return tuple(self.front[place] for place in sorted({int(np.abs(times - time).argmin()) for time in wanted}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        body: dict[str, Any] = plain(dict(vars(self)))
        body["probes"] = {str(tokens): probe for tokens, probe in body["probes"].items()}
        body["fitted"] = {str(tokens): time for tokens, time in body["fitted"].items()}
        return {"schema": SCHEMA, **body}


def said_of(unit: str, stairs: Staircase, *, asked: bool, elastic: bool, complete: bool) -> tuple[str, ...]:
    """What a reader should know of how it came about.

    Args:
        unit: of the losses that were expected.
        stairs: the staircase.
        asked: whether true divergences were asked for.
        elastic: whether the weights were trained at many keep rates.
        complete: whether there was time to look for all stairs.
    """
    notes = []
    if not asked:
        notes.append(f"losses are a guess ({unit}): how far the classes change was not asked")
    elif not elastic:
        notes.append(
            "the weights were not trained at many keep rates (train --elastic): trained under the schedule chosen they "
            "will lose less than they do now"
        )
    if stairs.jump <= JUMP:
        notes.append("no stair was seen: on this engine, in this setting, time follows the number of tokens evenly")
    if not complete:
        notes.append("the budget was over before all stairs were looked for: run it again, and it goes on from there")
    return tuple(notes)


def warned_of(chosen: Point, verified: Sequence[Point], before: Point, *, missed: str) -> tuple[str, ...]:
    """What is not as it should be.

    Args:
        chosen: the schedule that came of it.
        verified: the schedules that were measured.
        before: the schedule that the model has, measured too.
        missed: the goal in words, where nothing that was measured keeps it.
    """
    warnings = []
    off = max((point.off or 0.0 for point in (before, *verified)), key=abs, default=0.0)
    if abs(off) > MOST_OFF:
        warnings.append(
            f"a schedule takes {abs(off):.1%} {'longer' if off > 0 else 'less'} than expected, more than the "
            f"{MOST_OFF:.0%} that measuring may be off by: do not trust the times of the front, but those verified"
        )
    if missed:
        warnings.append(f"nothing that was measured keeps the goal, {missed}: this is the fastest of it")
    elif chosen is before:
        warnings.append("nothing is better for certain than the schedule that the model has: it stays")
    if chosen.measured is not None and chosen.measured.low <= 1:
        warnings.append("the schedule chosen is not faster than the dense model for certain: drop nothing instead")
    return tuple(warnings)


def rank_correlation(expected: Sequence[float], true: Sequence[float]) -> float | None:
    """Spearman's, equal values sharing their mean rank; None of fewer than three, or where one never changes."""
    if len(expected) < 3 or len(set(expected)) < 2 or len(set(true)) < 2:
        return None
    return float(np.corrcoef(_ranks(expected), _ranks(true))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
