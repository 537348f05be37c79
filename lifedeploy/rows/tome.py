"""The row of ``tome``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.errors import ScheduleError
from lifedeploy.method import Method
from lifedeploy.options import option
from lifedeploy.recipe import TrainingStage
from lifedeploy.rows.evit import FINE_TUNING
from lifedeploy.schedule import Schedule
from lifedeploy.text import quoted, shortened

_PUBLISHED = 13, 196, 12  # of DeiT-S: tokens merged in every layer, patches, layers
_NUMBERS = re.compile("([0-9]{1,5}(,[0-9]{1,5}){0,999})?")


@dataclass(frozen=True)
class TomeOptions:
    """How many tokens are merged where.

    Raises:
        ValueError: r is no number, and no list of numbers.
    """

    r: Annotated[str, Meta(max_length=6000)] = option(
        "",
        "Tokens merged in every layer: 13, or a number for each: 16,16,14.  [without --rho: 13 of 196 in 12 layers, "
        "and as many of others in proportion]",
        budget=True,
    )
    inflect: Annotated[float, Meta(ge=-1, le=1)] = option(
        0.0,
        "Merge more in early layers (-1: twice r in the first, none in the last) or in late ones (1).",
        budget=True,
    )

    def __post_init__(self) -> None:
        if not _NUMBERS.fullmatch(self.r):
            raise ValueError(f"r is {quoted(self.r)}: expected a number, or one for each layer, as 16,16,14")


def _tome_schedule(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: TomeOptions
) -> Schedule:
    """By r: as many as it says in every drop layer, in numbers that rise or fall evenly around it with ``inflect``.

    By a keep rate: as many as it takes that ρ³ N are left at the end, as of methods that drop three times, evenly.
    """
    if keep_rate is None:
        counts = _counts(patches, options.r or str(_usual(patches, depth)), options.inflect, len(drop_layers))
    else:
        if options.r or options.inflect:
            said = f"r {options.r}" if options.r else f"inflect {options.inflect:g}"
            raise ScheduleError(
                f"{said} and keep rate {keep_rate:g} both say how many tokens are merged",
                hint="--r and --inflect, or --rho",
            )
        leave = patches - round(patches * keep_rate**3)
        counts = [patches - round(leave * number / len(drop_layers)) for number in range(1, len(drop_layers) + 1)]
    for layer, before, after in zip(drop_layers, [patches, *counts], counts, strict=False):
        if before - after > before // 2:
            raise ScheduleError(
                f"layer {layer} has {before} patch tokens, of which at most {before // 2} can be merged, and "
                f"{before - after} are asked for",
                hint="a smaller --r" if keep_rate is None else "a larger --rho",
            )
    if keep_rate is None:
        return Schedule.from_counts(patches, depth, counts, drop_layers)
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _counts(patches: int, r: str, inflect: float, layers: int) -> list[int]:
    """Tokens that are left after each of so many layers: less r, of a single number at most half of what there is, as
    the paper's authors have it.

    Raises:
        ScheduleError: it cannot be meant.
    """
    merged, counts, left = _merged(r, inflect, layers), [], patches
    if sum(merged) >= patches:
        raise ScheduleError(
            f"r {shortened(r, 40)} merges {sum(merged)} tokens in {layers} layers, and there are {patches}",
            hint=f"--r {(patches - 1) // layers} at most, in every layer",
        )
    for number in merged:
        left -= number if "," in r or left == patches else min(number, left // 2)
        counts.append(left)
    return counts


def _usual(patches: int, depth: int) -> int:
    """r of a backbone, unless told otherwise: as large a share of its tokens in all as of DeiT-S."""
    merged, of, layers = _PUBLISHED
    return merged * layers * patches // (of * depth)


def _merged(r: str, inflect: float, layers: int) -> list[int]:
    """Tokens to merge in each of so many layers, as the paper's authors make them of r and its inflection."""
    given = [int(number) for number in re.findall(r"\d+", r)]
    if len(given) > 1:
        if inflect:
            raise ScheduleError(
                "inflect says how r changes from layer to layer, and r has a number for each already",
                hint="--inflect with a single number as --r, or no --inflect",
            )
        if len(given) > layers:
            raise ScheduleError(
                f"r has {len(given)} numbers, for {layers} layers that merge",
                hint=f"a single number, or {layers} at most, the first layer's first",
            )
        return given + [0] * (layers - len(given))
    least = int(given[0] * (1 - inflect))
    step = (2 * given[0] - 2 * least) / max(layers - 1, 1)
    return [int(least + step * number) for number in range(layers)]


def _tome_work(schedule: Schedule, options: TomeOptions, cost: Cost) -> Work:
    """The MLP of a layer has fewer tokens than its attention. Keys are compared, source with target, in the channels of
    one head; what is merged is multiplied with a matrix of weights, a row for each target.
    """
    scoring = 0
    for layer in schedule.leaving_layers:
        tokens, merged = schedule.tokens[layer - 1], schedule.tokens[layer - 1] - schedule.after(layer)
        targets = (tokens + cost.prefix % 2) // 2
        scoring += (tokens - targets) * targets * (cost.width // cost.heads) + targets * merged * cost.width
    return Work.inside(schedule, scoring)


TOME = Method(
    name="tome",
    title="ToMe",
    reducer="lifedeploy.model.reducers.tome:TomeReducer",
    last_block="prefix",
    inside=True,
    fate="merged",
    options=TomeOptions,
    stages=(TrainingStage("backbone", reducer=False, backbone=True),),
    recipe=FINE_TUNING,  # it needs none, and has none of its own: what merging costs is trained away as EViT's is
    work=_tome_work,
    schedule=_tome_schedule,
    own_budget="it merges as many tokens in every layer as 13 of 196 in 12",
    drop_layers=lambda depth: tuple(range(1, depth + 1)),
    takes_counts=False,
)
