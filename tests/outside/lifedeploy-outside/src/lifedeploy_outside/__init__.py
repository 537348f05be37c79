"""The row: what lifedeploy has to know of the method before it makes a model. Nothing here imports a framework."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from lifedeploy.methods import Cost, Method, Schedule, TrainingStage, Work, option

__all__ = ["METHOD", "Options"]


@dataclass(frozen=True)
class Options:
    """The method's own options; each becomes one of the command line."""

    fuse: bool = option(True, "One token stands for those that are dropped; else they are gone.")
    explore: Annotated[float, Meta(ge=0, le=1)] = option(
        0.0, "Noise on the scores while it trains, as a share of them.", training=True
    )


def schedule(patches: int, depth: int, keep_rate: float, drop_layers: Sequence[int], options: Options) -> Schedule:
    """Of n tokens, ⌈ρ n⌉ go on after a drop layer: with ``fuse`` one of them stands for the others."""
    counts = []
    for _ in drop_layers:
        tokens = counts[-1] if counts else patches
        counts.append(math.ceil(round(keep_rate * tokens, 6)))  # 0.07 · 100 is more than 7 in floating point
    return replace(Schedule.from_counts(patches, depth, counts, drop_layers), keep_rate=keep_rate)


def work(schedule: Schedule, options: Options, cost: Cost) -> Work:
    """Tokens leave between attention and MLP, so that in a drop layer the MLP sees fewer of them than attention."""
    scoring = 0
    for layer in schedule.drop_layers:
        before, after = schedule.tokens[layer - 1], schedule.after(layer)
        if after < before:
            # One query against all keys; attention has it of every query, and with it as much again for A·V.
            scoring += cost.pairs[layer - 1] // 2 * (cost.prefix + before)
            if options.fuse:  # the sum of all, and that of those that are kept
                scoring += cost.width * (before + after - 1)
    mlp = tuple(schedule.after(layer) for layer in range(1, schedule.depth + 1))
    return Work(attention=schedule.tokens, mlp=mlp, scoring=scoring)


METHOD = Method(
    name="outside",
    title="OutsideViT",
    reducer="lifedeploy_outside.reducer:OutsideReducer",
    selection="every drop",  # it scores anew at every drop
    inside=True,  # the MLP of a drop layer has fewer tokens than its attention
    last_block="prefix",  # behind the last layer it reads CLS alone, as the block makes it
    options=Options,
    stages=(TrainingStage("finetune", reducer=False, backbone=True),),  # it has no parameters of its own
    work=work,
    schedule=schedule,
)
