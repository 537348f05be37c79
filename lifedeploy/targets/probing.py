"""The staircase of an engine, measured in turns with the dense model, until nothing more is to be told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from lifedeploy.bench.measure import Stop
from lifedeploy.errors import UsageError
from lifedeploy.progress import Progress, Step
from lifedeploy.targets.session import Session
from lifedeploy.targets.workbench import Workbench, times
from lifedeploy.tuning.book import Book, Probe
from lifedeploy.tuning.staircase import MOST_PROBES, first_counts, next_counts

GROUP = 5  # counts that take turns with each other and the dense model
# Turns are short, so that many rounds fit: their median is what counts on a machine that is shared. Shorter ones would
# be of one or two requests, of which the first still finds the other engines' threads awake.
_STOP = Stop(half_width=0.01, min_rounds=5, max_rounds=40, round_s=0.15)
_GROUPS = 10  # that the budget is shared by
_MOST_S = 15.0  # of a group, whatever the budget


@dataclass(frozen=True)
class Deadline:
    """When measuring has to end."""

    at: float  # of the monotonic clock, in seconds
    budget_s: float

    @classmethod
    def after(cls, budget_s: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + budget_s, budget_s)

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return self.at - time.monotonic()


@dataclass(frozen=True)
class Probed:
    """What is known of the staircase."""

    probes: dict[int, Probe]
    measured: int  # of them just now; the others were measured before
    complete: bool  # whether there was time for all that would tell something

    @property
    def times(self) -> dict[int, float]:
        """Patch tokens → time, relative to all of them."""
        return {tokens: probe.time for tokens, probe in self.probes.items()}


def probe_staircase(
    bench: Workbench,
    dense: Session,
    book: Book,
    machine: Mapping[str, Any],
    deadline: Deadline,
    progress: Progress,
) -> Probed:
    """Measure what is not in the book yet; what was measured is in it after every group.

    Args:
        bench: makes the models.
        dense: the baseline, open.
        book: what was measured before.
        machine: that times are of.
        deadline: when to stop.
        progress: told how far it is.

    Raises:
        UsageError: the time did not do for the counts that are measured first.
        EngineError: the runtime refused.
    """
    spec = bench.baseline.manifest.spec
    conditions, patches = {"machine": dict(machine), **bench.conditions}, spec.schedule.patches
    usual = first_counts(patches, spec.prefix_tokens)
    # With those that the model has now: what it takes is held against the others.
    first = tuple(sorted({*usual, *bench.slimmed.manifest.spec.schedule.counts}, reverse=True))
    stop = replace(_STOP, budget_s=min(_MOST_S, deadline.budget_s / _GROUPS))
    # What was measured in a hurry is measured again where there is more time.
    kept = {count: it for count, it in book.probes(conditions).items() if 2 * it.seconds >= stop.budget_s}
    probes = kept | {patches: Probe(time=1.0, low=1.0, high=1.0, rounds=1, seconds=stop.budget_s)}
    known = len(probes)
    while True:
        missing = tuple(tokens for tokens in first if tokens not in probes)
        wanted = missing or next_counts(first, {tokens: it.time for tokens, it in probes.items()}, GROUP)
        if not wanted:
            return Probed(probes, len(probes) - known, complete=True)
        if deadline.left_s <= 0:
            break
        told = _further(progress, len(probes), max(MOST_PROBES, len(first)))
        probes |= _group(bench, dense, wanted[:GROUP], stop, told)
        book.keep_probes(conditions, probes)
    if missing:
        raise UsageError(
            f"a budget of {deadline.budget_s:g} s was over after {len(probes)} of {len(first)} token counts that are "
            "measured first, and no schedule can be told from these",
            hint="run it again, and it goes on from there; or give it a longer --budget",
        )
    return Probed(probes, len(probes) - known, complete=False)


def _further(progress: Progress, known: int, most: int) -> Progress:
    """How far the whole is, told of a group."""

    def show(step: Step) -> None:
        share = (known + GROUP * step.share) / most
        progress(Step("measuring the staircase", min(1.0, share), f"{known} of up to {most} token counts"))

    return show


def _group(
    bench: Workbench, dense: Session, counts: tuple[int, ...], stop: Stop, progress: Progress
) -> dict[int, Probe]:
    with ExitStack() as stack:
        sessions = {"": dense} | {str(count): stack.enter_context(bench.shortened(count)) for count in counts}
        samples = bench.compare(sessions, stop, "", progress)
    ratios = times(samples, "")
    return {
        count: Probe(time=it.median, low=it.low, high=it.high, rounds=samples.count, seconds=stop.budget_s)
        for count in counts
        for it in (ratios[str(count)],)
    }
