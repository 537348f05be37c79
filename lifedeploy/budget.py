"""Keep rates under which different methods cost the same: "keep 0.7" is other work for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifedeploy.cost import Cost
from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.last_block import last_block_of
from lifedeploy.method import Method
from lifedeploy.schedule import Schedule

_STEPS = 10_000  # keep rates that are tried: this many, at equal distances


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A backbone as far as its work goes."""

    patches: int
    depth: int
    cost: Cost
    no_prefix_block: str = ""  # why its last block needs all tokens, in words; '': prefix tokens are enough

    def schedule(self, method: Method, keep_rate: float | None, options: Mapping[str, Any]) -> Schedule:
        """Token counts of a method at a keep rate; None: by its own budget.

        Raises:
            ScheduleError: it leaves no token.
        """
        return method.make_schedule(self.patches, self.depth, keep_rate=keep_rate, options=options)

    def macs(self, method: Method, schedule: Schedule, options: Mapping[str, Any]) -> int:
        """What the method costs under a schedule, its last block as usual."""
        last_block = last_block_of(method, "", self.no_prefix_block)
        return self.cost.total(method.count_work(schedule, options, self.cost, last_block))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A keep rate, and what a method costs under it."""

    method: str
    keep_rate: float | None  # None: by its own budget
    macs: int


def at_keep_rate(method: Method, keep_rate: float, backbone: Sized) -> Budget:
    """What a method costs at a keep rate; one that has a budget of its own with that.

    Raises:
        ScheduleError: it leaves no token.
    """
    return _budget(method, None if method.own_budget else keep_rate, backbone)


def _budget(method: Method, keep_rate: float | None, backbone: Sized) -> Budget:
    options = method.plain_options({})
    schedule = backbone.schedule(method, keep_rate, options)
    return Budget(method=method.name, keep_rate=keep_rate, macs=backbone.macs(method, schedule, options))


def at_macs(method: Method, macs: float, backbone: Sized) -> Budget:
    """The keep rate under which a method's work comes nearest to ``macs``, rounded as far as
    that changes no token count.

    Raises:
        UsageError: it can leave tokens at no keep rate.
    """
    if not method.takes_keep_rate:
        return _budget(method, None, backbone)
    low, high = 0, _STEPS  # work at ``high`` is at least what is asked for, or the most there is
    while high - low > 1:
        middle = (low + high) // 2
        tried = _tried(method, middle / _STEPS, backbone)
        low, high = (low, middle) if tried is not None and tried.macs >= macs else (middle, high)
    tried_last = (_tried(method, step / _STEPS, backbone) for step in (low, high) if step)
    near = [budget for budget in tried_last if budget is not None]
    if not near:
        raise UsageError(f"{method.name} leaves no token of {backbone.patches} at any keep rate")
    best = min(near, key=lambda budget: abs(budget.macs - macs))
    assert best.keep_rate is not None
    for digits in (1, 2, 3):
        rounder = _tried(method, round(best.keep_rate, digits), backbone)
        if rounder is not None and rounder.macs == best.macs:
            return rounder
    return best


def nearer(macs: Sequence[float], speeds: Sequence[float]) -> float:
    """Work with which a method would be as fast as another, after what was measured: its speeds over the other's.

    After one measurement time is taken for proportional to work, then for linear in it.
    """
    last, speed = macs[-1], speeds[-1]
    if len(macs) > 1 and macs[-2] != last and 1 / speeds[-2] != 1 / speed:
        slope = (1 / speed - 1 / speeds[-2]) / (last - macs[-2])
        if slope > 0:  # else the measurements are nearer to each other than they are exact
            return last + (1 - 1 / speed) / slope
    return last * speed


def _tried(method: Method, keep_rate: float, backbone: Sized) -> Budget | None:
    """None: it leaves no token."""
    try:
        return _budget(method, keep_rate, backbone)
    except ScheduleError:
        return None
