"""The rows of ``avit``, as published, and of ``avit-ranked``, its scores under a fixed budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import option
from lifedeploy.published import Published
from lifedeploy.recipe import LR_BASE_SIZE, TrainingStage
from lifedeploy.rows.counting import every_token
from lifedeploy.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class AvitOptions:
    """How readily tokens halt: h = sigmoid(gate_scale · x - gate_center) of a token's first channel x; and what makes
    them, in training.
    """

    gate_scale: Annotated[float, Meta(ge=0.001, le=1000)] = option(10.0, "γ.")
    gate_center: Annotated[float, Meta(ge=-1, le=1000)] = option(
        -1.0, "β; -1: as published, 30 for 192 channels (DeiT-T) and 75 for others (DeiT-S)."
    )
    ponder_weight: Annotated[float, Meta(ge=0, le=1000)] = option(
        5e-4, "Weight of the ponder loss: of the number of layers that tokens take.", training=True
    )
    prior_weight: Annotated[float, Meta(ge=0, le=1000)] = option(
        1e-3, "Weight of the divergence of the layers they halt in from a normal distribution.", training=True
    )
    halting_depth: Annotated[float, Meta(ge=0, le=1)] = option(
        2 / 3, "Mean of that distribution, as a share of all layers.", training=True
    )


_STAGES = (TrainingStage("backbone", reducer=False, backbone=True),)
# Of 100 epochs five to warm up; as for DeiT-S, whose rates are for a batch of 512.
_RECIPE = {"epochs": 2, "backbone_lr": 3e-4, LR_BASE_SIZE: 512, "warmup": 0.05}


def _avit_work(schedule: Schedule, options: AvitOptions, cost: Cost) -> Work:
    """The outputs of every layer are added up, of prefix tokens alone: nothing else is read."""
    return Work.of(schedule, cost.width * cost.prefix * schedule.depth)


AVIT = Method(
    name="avit",
    title="A-ViT",
    reducer="lifedeploy.model.reducers.avit:AvitReducer",
    last_block="prefix",
    fate="halted",
    selection="none",
    predicts_lives=True,
    counts_lives=True,
    options=AvitOptions,
    stages=_STAGES,
    recipe=_RECIPE,
    work=_avit_work,
    schedule=every_token("avit", "--method avit-ranked"),  # which of them still count is the image's business
    published=Published(
        arguments=("gate_scale", "gate_center", "ponder_token_scale", "distr_prior_alpha"),
        options=(("gate_scale", "gate_scale"), ("gate_center", "gate_center")),
        of=("avit-ranked",),
        backbone_alone=False,
    ),
    own_budget="it computes every token, and masks those that halted",
    drop_layers=lambda depth: (),
    takes_counts=False,
    takes_keep_rate=False,
)

AVIT_RANKED = Method(
    name="avit-ranked",
    title="A-ViT scores, fixed budget",
    shown_by_title=True,
    reducer="lifedeploy.model.reducers.avit:AvitRankedReducer",
    last_block="prefix",
    options=AvitOptions,
    stages=_STAGES,
    recipe=_RECIPE,
    work=_avit_work,
    published=Published(of=("avit",), backbone_alone=False),
)
