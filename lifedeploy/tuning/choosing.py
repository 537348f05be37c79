"""What is asked of a schedule, which of a front come near to it, and which of those that were measured is best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lifedeploy.errors import UsageError
from lifedeploy.tuning.front import Choice, Front
from lifedeploy.tuning.report import Point

_TIGHTER = (1.0, 0.98, 0.96)  # of the time allowed: so that one of them keeps it where the model is a little off
_ROUND = 8  # schedules that are asked about at a time, at first
MOST_ASKED = 16
MOST_VERIFIED = 3


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One of these limits; without any, as little loss as the schedule that the model has."""

    speedup: float | None = None  # over the baseline, at least
    latency_ms: float | None = None  # of a request, at most
    max_kl: float | None = None  # nats, at most

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise UsageError("--speedup, --latency-ms and --max-kl exclude each other: one of them is the goal")
        if any(not 0 < value < 1e9 for value in given.values()):
            raise UsageError("a goal of 0 or less is not allowed: --speedup, --latency-ms and --max-kl are positive")

    @property
    def limits_time(self) -> bool:
        """Whether time is limited, and loss is to be least."""
        return self.speedup is not None or self.latency_ms is not None

    def most_time(self, dense_ms: float) -> float:
        """The time allowed, relative to the baseline, which takes ``dense_ms``; of a goal that limits time."""
        return 1 / self.speedup if self.speedup is not None else (self.latency_ms or 0.0) / dense_ms

    @property
    def words(self) -> str:
        """The goal as the table names it."""
        if self.speedup is not None:
            return f"at least {self.speedup:g}× as fast as dense"
        if self.latency_ms is not None:
            return f"at most {self.latency_ms:g} ms a request"
        if self.max_kl is not None:
            return f"a KL divergence of at most {self.max_kl:g} nats"
        return "no more loss than with the schedule that the model has"


def require_within_front(front: Front, goal: Goal, dense_ms: float) -> None:
    """Make sure that a front has schedules that are as fast as is asked for.

    Raises:
        UsageError: it ends before; with its end.
    """
    if not goal.limits_time:
        return
    asked = f"--speedup {goal.speedup:g}" if goal.speedup is not None else f"--latency-ms {goal.latency_ms:g}"
    best, most = front.best(), goal.most_time(dense_ms)
    if not best:
        raise UsageError(f"{asked} is beyond what this engine has: fewer tokens make it no faster")
    end = best[0]
    if end.time > most:
        raise UsageError(
            f"{asked} is beyond what this engine has: the fastest schedule, {end.words}, is {1 / end.time:.2f}× as "
            f"fast as dense, {end.time * dense_ms:.4g} ms"
        )


def near_time(front: Front, most: float, each: int) -> list[Choice]:
    """Schedules that lose least within the time allowed, and within a little less: ``each`` of them."""
    chosen = [choice for share in _TIGHTER for choice in front.least_loss(most * share, each)]
    return list({choice.words: choice for choice in chosen}.values())


def candidates(
    front: Front, goal: Goal, before: Choice, dense_ms: float, ask: Callable[[Choice], float] | None
) -> list[Choice]:
    """The schedules to verify, the best first; none where fewer tokens are no faster.

    Args:
        front: all schedules.
        goal: what is asked of them.
        before: the schedule that the model has.
        dense_ms: of a request to the dense model.
        ask: the true KL divergence of a schedule, in nats; None: only what is expected is known.

    Raises:
        UsageError: all of them lose more than is allowed.
    """
    if goal.limits_time:
        most = goal.most_time(dense_ms)
        if ask is None:
            return near_time(front, most, each=1)
        losses = {choice: ask(choice) for choice in near_time(front, most, each=MOST_ASKED // len(_TIGHTER))}
        within = ([choice for choice in losses if choice.time <= most * share] for share in _TIGHTER)
        return list(dict.fromkeys(min(fit, key=lambda choice: losses[choice]) for fit in within if fit))
    if ask is None:
        return list(front.fastest(before.loss, MOST_VERIFIED))
    limit = goal.max_kl if goal.max_kl is not None else ask(before)
    asked = ask_near_loss(front, limit, ask)
    kept = [choice for choice, kl in asked if kl <= limit]
    if asked and not kept and goal.max_kl is not None:
        least, kl = min(asked, key=lambda pair: pair[1])
        raise UsageError(
            f"--max-kl {limit:g} is beyond what dropping tokens allows: the least that was measured is {kl:.3g} nats, "
            f"with {least.words}"
        )
    return sorted(kept, key=lambda choice: choice.time)[:MOST_VERIFIED]


def keeps(point: Point, goal: Goal, dense_ms: float) -> bool:
    """Whether what was measured, or asked, of a schedule is within the goal."""
    if goal.limits_time:
        return point.measured_time <= goal.most_time(dense_ms)
    return goal.max_kl is None or (point.true is not None and point.true.kl <= goal.max_kl)


def best_of(before: Point, verified: Sequence[Point], goal: Goal, dense_ms: float, *, may_stay: bool = True) -> Point:
    """The best of what was measured; the schedule that the model has, where none is better for certain.

    Args:
        before: that schedule.
        verified: the others.
        goal: what is asked of them.
        dense_ms: of a request to the dense model.
        may_stay: whether that schedule is one that may be chosen, as it is not where another base layer is asked for.
    """
    allowed = (*([before] if may_stay else []), *verified) or (before,)
    if goal.limits_time:
        within = [point for point in allowed if keeps(point, goal, dense_ms)]
        if within:
            return min(within, key=lambda point: (point.known_loss, point.measured_time))
        return min(allowed, key=lambda point: point.measured_time)
    stays = may_stay and keeps(before, goal, dense_ms)
    better = [point for point in verified if not stays or point.is_faster]
    return min(better, key=lambda point: point.measured_time, default=before)


def ask_near_loss(front: Front, limit: float, ask: Callable[[Choice], float]) -> list[tuple[Choice, float]]:
    """Schedules of a front with their true losses, those near ``limit`` asked about closely.

    What the front expects and what is true rise together, at scales of their own: so first some all along the front
    are asked about, then those between the two that ``limit`` lies between.

    Args:
        front: all schedules.
        limit: of the true loss.
        ask: the true loss of one.
    """
    pool = front.best()  # fastest first: the loss falls
    if not pool:  # fewer tokens are no faster
        return []
    low, high = 0, len(pool) - 1
    asked: dict[int, float] = {}
    while (len(asked) < MOST_ASKED and high - low > 1) or not asked:
        for place in _spread(low, high, _ROUND if not asked else min(4, MOST_ASKED - len(asked))):
            if place not in asked:
                asked[place] = ask(pool[place])
        keep = [place for place, loss in asked.items() if loss <= limit]
        miss = [place for place, loss in asked.items() if loss > limit]
        new_high = min(keep, default=len(pool) - 1)
        new_low = max((place for place in miss if place < new_high), default=0)
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return [(pool[place], asked[place]) for place in sorted(asked)]


def _spread(low: int, high: int, count: int) -> Sequence[int]:
    """Up to ``count`` places from ``low`` to ``high``, evenly."""
    if count < 2 or high <= low:
        return [low, high][: max(count, 1)]
    return sorted({low + round((high - low) * step / (count - 1)) for step in range(count)})
