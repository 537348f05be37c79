"""The row of ``dynamicvit``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import option
from lifedeploy.published import Published
from lifedeploy.recipe import TrainingStage
from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class DynamicVitOptions:
    """How its predictors learn."""

    ratio_weight: Annotated[float, Meta(ge=0, le=1000)] = option(
        2.0, "Weight of the ratio loss, which holds the share of patches kept to the schedule's.", training=True
    )


def _dynamicvit_schedule(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: DynamicVitOptions
) -> Schedule:
    """⌊ρ^k N⌋ tokens after the k-th drop, of the first count."""
    assert keep_rate is not None  # it has no budget of its own
    counts = [math.floor(round(patches * keep_rate**k, 6)) for k in range(1, len(drop_layers) + 1)]
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _dynamicvit_work(schedule: Schedule, options: DynamicVitOptions, cost: Cost) -> Work:
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
    options=DynamicVitOptions,
    stages=(
        TrainingStage("predictor", reducer=True, backbone=False),
        TrainingStage("backbone", reducer=False, backbone=True),
    ),
    # Section 4 and the authors' scripts: everything in one stage, for two of 30 epochs the predictors alone.
    recipe={
        "single_stage": True,
        "backbone_delay": 2 / 30,
        "predictor_lr": 1e-3,
        "backbone_lr": 1e-5,
        "backbone_curve": "capped",
        "frozen": ("cls_token", "pos_embed"),
        "weight_decay": 0.05,
        "warmup": 0.0,
        "distill": True,
        "distill_labels": 1.0,
        "distill_logits": 0.5,
        "distill_tokens": 0.5,
    },
    work=_dynamicvit_work,
    schedule=_dynamicvit_schedule,
    published=Published(parameters=("score_predictor.",), arguments=("base_rate",)),
)
