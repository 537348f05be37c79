"""The row of ``life``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import option
from lifedeploy.recipe import TrainingStage
from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class LifeOptions:
    """How sharply a key fades around the end of its life."""

    temperature: Annotated[float, Meta(ge=0.001, le=1000)] = option(1.5, "U of eq. 7.", training=True)


def _life_work(schedule: Schedule, options: LifeOptions, cost: Cost) -> Work:
    """s_i = x̄_clsᵀ W x̄_i (eq. 2): W meets one token, and what comes of it each patch."""
    return Work.of(schedule, cost.width**2 + cost.width * schedule.patches if schedule.drop_layers else 0)


LIFE = Method(
    name="life",
    title="LifeViT",
    reducer="lifedeploy.model.reducers.life:LifeReducer",
    last_block="prefix",
    selection="once",
    predicts_lives=True,
    derives=True,
    options=LifeOptions,
    stages=(
        TrainingStage("predictor", reducer=True, backbone=False),
        TrainingStage("backbone", reducer=False, backbone=True),
    ),
    work=_life_work,
)
