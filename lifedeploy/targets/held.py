"""Contests that are held once: under the same conditions, among the same engines, an earlier one is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lifedeploy.bench.contests import Conditions, Contest, Contests, contestant, digest_of
from lifedeploy.machine import gpu_state, gpus, identity
from lifedeploy.optional import versions
from lifedeploy.progress import Progress, Say
from lifedeploy.targets.contest import Rules, contest
from lifedeploy.targets.select import Variants
from lifedeploy.targets.target import Target


def held(
    chosen: Sequence[Variants],
    setting: tuple[str, int, int],
    rules: Rules,
    contests: Contests,
    *,
    fresh: bool,
    say: Say,
    progress: Progress,
) -> tuple[Contest, bool]:
    """A contest of built engines in one setting (mode, batch size, requests in flight), and whether it was held before.

    Args:
        chosen: who takes part.
        setting: how they are asked.
        rules: how it is held.
        contests: those that are over; this one is kept among them.
        fresh: hold it again in any case.
        say: told what is done.
        progress: told after every round.

    Raises:
        EngineError, EngineInputError, OSError: as :func:`contest`, and :meth:`Contests.keep`.
    """
    mode, batch, streams = setting
    before = gpu_state()
    conditions = Conditions(
        machine=machine_conditions(before),
        engines=tuple(variants.label for variants in chosen),
        mode=mode,
        batch=batch,
        streams=streams,
        threads=rules.options.threads,
        copies=rules.copies,
        like=rules.like,
    )
    wanted = {
        contestant(variants.label, target.shown_method): digest_of(_files(target))
        for variants in chosen
        for target in variants.targets
    }
    earlier = None if fresh else contests.find(conditions, wanted, rules.stop.budget_s)
    if earlier is not None:
        return earlier, True
    rows = contest(chosen, mode, batch, streams, rules, say, progress)
    measured = [row for of_engine in rows.values() for row in of_engine]
    states = {"before": before, "after": gpu_state()} if before else {}
    return contests.keep(conditions, wanted, rules.stop.budget_s, measured, states), False


def machine_conditions(state: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What of the machine a speed holds for; ``state`` is that of its GPUs."""
    return {
        "processor": identity(),
        "gpu": gpus(),
        "driver": sorted({gpu["driver_version"] for gpu in state}),
        "versions": versions(),
    }


def _files(target: Target) -> dict[str, str]:
    """What an engine of ours is made of, by SHA-256."""
    assert target.artifact is not None and target.artifact.manifest.engine is not None  # it was built
    return dict(target.artifact.manifest.engine.files)
