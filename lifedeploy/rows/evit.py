"""The rows of ``evit``, and of ``topk``, which is what is left of it without its fused token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import NoOptions, option
from lifedeploy.published import Published
from lifedeploy.recipe import LR_BASE_SIZE, TrainingStage
from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class EvitOptions:
    """What becomes of dropped tokens."""

    fuse: bool = option(True, "Fuse the tokens that are dropped into one; else they are gone.")


def _evit_schedule(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: EvitOptions
) -> Schedule:
    """Of n tokens, earlier fused ones among them, ⌈ρ n⌉ stay at each drop, and the fused one comes to them.

    Where that is no fewer than before nothing is dropped: one token alone would be fused with itself.
    """
    assert keep_rate is not None  # it has no budget of its own
    counts: list[int] = []
    for _ in drop_layers:
        tokens = counts[-1] if counts else patches
        counts.append(min(math.ceil(round(keep_rate * tokens, 6)) + options.fuse, tokens))
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _evit_work(schedule: Schedule, options: EvitOptions, cost: Cost) -> Work:
    """The MLP of a drop layer has fewer tokens than its attention; the CLS row is computed apart from that."""
    scoring = 0
    for layer in schedule.leaving_layers:
        before, after = schedule.tokens[layer - 1], schedule.after(layer)
        scoring += cost.width * (cost.prefix + before)  # q_cls Kᵀ
        if options.fuse:
            scoring += cost.width * (before - after + 1)  # the weighted sum of those that are dropped
    return Work.inside(schedule, scoring)


def _topk_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    return _evit_work(schedule, EvitOptions(fuse=False), cost)


# What EViT fine-tunes with: a cosine from 2e-5 · batch / 512 to a tenth of it. There for 30 epochs, at batch 1024.
FINE_TUNING = {
    "epochs": 2,
    "backbone_lr": 2e-5,
    LR_BASE_SIZE: 512,
    "lr_min": 0.1,
    "weight_decay": 1e-6,
    "warmup": 0.0,
}

EVIT = Method(
    name="evit",
    title="EViT",
    reducer="lifedeploy.model.reducers.evit:EvitReducer",
    last_block="prefix",
    inside=True,
    options=EvitOptions,
    stages=(TrainingStage("backbone", reducer=False, backbone=True),),
    recipe=FINE_TUNING | {"keep_ramp": (1 / 30, 11 / 30)},  # as from scratch, where it is from epoch 10 to 110 of 300
    work=_evit_work,
    schedule=_evit_schedule,
    published=Published(arguments=("base_keep_rate", "drop_loc", "fuse_token")),
)


TOPK = Method(
    name="topk",
    title="Top-K by CLS attention",
    reducer="lifedeploy.model.reducers.topk:TopKReducer",
    last_block="prefix",
    inside=True,
    stages=(TrainingStage("backbone", reducer=False, backbone=True),),
    recipe=FINE_TUNING,
    work=_topk_work,
)
