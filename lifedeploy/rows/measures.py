"""The rows of what methods are measured by: nothing dropped, tokens cut by position, and chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.method import BASELINE, BOUND, Method
from lifedeploy.options import option
from lifedeploy.recipe import TrainingStage
from lifedeploy.rows.counting import every_token
from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class FirstKOptions:
    """Where it cuts: where the method does that it is the bound of."""

    inside: bool = option(False, "Between attention and MLP of a drop layer, not behind it.")


def _first_k_work(schedule: Schedule, options: FirstKOptions, cost: Cost) -> Work:
    return Work.inside(schedule) if options.inside else Work.of(schedule)


@dataclass(frozen=True)
class RandomOptions:
    """Which order it is."""

    draw: Annotated[int, Meta(ge=0, le=10**9)] = option(0, "Which random order: its seed.")


RANDOM = Method(
    name="random",
    title="random order",
    reducer="lifedeploy.model.reducers.random:RandomReducer",
    last_block="prefix",
    selection="once",
    derives=True,
    options=RandomOptions,
    stages=(TrainingStage("backbone", reducer=False, backbone=True),),
    recipe={"epochs": 2},
    work=lambda schedule, options, cost: Work.of(schedule, cost.width * schedule.patches * schedule.prunes),
)


DENSE = Method(
    name="dense",
    title="nothing dropped",
    reducer="lifedeploy.model.reducers.dense:DenseReducer",
    last_block="prefix",
    role=BASELINE,
    stem="dense",
    selection="none",
    stages=(TrainingStage("dense", reducer=False, backbone=True),),
    recipe={"backbone_lr": 2e-5, "head_lr": 2e-4},  # a new head starts from nothing; measured in benchmarks/real
    work=lambda schedule, options, cost: Work.dense(schedule),
)


PLAIN = Method(
    name="plain",
    title="timm's own, nothing dropped",
    reducer="lifedeploy.model.reducers.dense:DenseReducer",
    selection="none",
    work=lambda schedule, options, cost: Work.dense(schedule),
    schedule=every_token("plain", "leave them out"),
    own_budget="it computes every token of every layer, as timm does",
    drop_layers=lambda depth: (),
    takes_counts=False,
    takes_keep_rate=False,
)


FIRST_K = Method(
    name="first-k",
    title="tokens cut by position",
    reducer="lifedeploy.model.reducers.first_k:FirstKReducer",
    last_block="prefix",
    role=BOUND,
    stem="first-k",
    selection="none",
    options=FirstKOptions,
    work=_first_k_work,
)
