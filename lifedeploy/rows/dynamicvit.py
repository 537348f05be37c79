"""The row of ``dynamicvit``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import NoOptions
from lifedeploy.published import Published
from lifedeploy.schedule import Schedule


def _dynamicvit_schedule(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: NoOptions
) -> Schedule:
    """⌊ρ^k N⌋ tokens after the k-th drop, of the first count."""
    assert keep_rate is not None  # it has no budget of its own
    counts = [math.floor(round(patches * keep_rate**k, 6)) for k in range(1, len(drop_layers) + 1)]
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _dynamicvit_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    """A predictor maps C channels of every patch to C, C/2, C/4 and 2."""
    width = cost.width
    per_patch = width * width + width * (width // 2) + (width // 2) * (width // 4) + (width // 4) * 2
    return Work.of(schedule, per_patch * sum(schedule.tokens[layer - 1] for layer in schedule.leaving_layers))


DYNAMICVIT = Method(
    name="dynamicvit",
    title="DynamicViT",
    reducer="lifedeploy.model.reducers.dynamicvit:DynamicVitReducer",
    last_block="prefix",
    drop_layers=(3, 6, 9),
    work=_dynamicvit_work,
    schedule=_dynamicvit_schedule,
    published=Published(parameters=("score_predictor.",), arguments=("base_rate",)),
)
