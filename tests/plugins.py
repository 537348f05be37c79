"""Methods as other packages add them: what the entry points of tests name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from lifedeploy import methods
from lifedeploy.methods import Cost, Method, Schedule, TrainingStage, Work, option


class Package(NamedTuple):
    """Who adds a method."""

    name: str
    version: str


class Entry(EntryPoint):
    """One method of ``lifedeploy-other``."""

    dist = Package("lifedeploy-other", "1.2")


class AnotherEntry(EntryPoint):
    """One method of another package."""

    dist = Package("lifedeploy-another", "0.3")


def entry(value: str, name: str = "other", kind: type[EntryPoint] = Entry) -> EntryPoint:
    return kind(name, value, methods.GROUP)


@dataclass(frozen=True)
class OtherOptions:
    merged: Annotated[int, Meta(ge=1, le=64)] = option(8, "Tokens merged in a layer.")
    fuse: bool = option(True, "Whether what is dropped goes on as one token.")
    pooled_by: Literal["mean", "max"] = option("mean", "How tokens become one.")
    sharpness: Annotated[float, Meta(gt=0, le=10)] = option(2.0, "Of its mask.", training=True)


def budget(patches: int, depth: int, keep_rate: float, drop_layers: Sequence[int], options: OtherOptions) -> Schedule:
    """One of its own: half of the keep rate; a quarter where nothing is fused."""
    return Schedule.from_keep_rate(patches, depth, keep_rate / (2 if options.fuse else 4), drop_layers)


def other_work(schedule: Schedule, options: OtherOptions, cost: Cost) -> Work:
    return Work.of(schedule, options.merged * cost.width)


OTHER = Method(
    name="other",
    title="Somebody's method",
    reducer="tests.model.other_methods:Evit",
    options=OtherOptions,
    stages=(TrainingStage("other", reducer=True, backbone=True),),
    work=other_work,
    schedule=budget,
    drop_layers=(3, 6, 9),
    takes_counts=False,
    prefix=2,
)
INSIDE = replace(OTHER, name="inside", inside=True)
LIFE = replace(OTHER, name="life")
BASELINE = replace(OTHER, name="other", role=methods.BASELINE, stem="other")
UNTRAINED = replace(OTHER, name="untrained", stages=())
NO_METHOD = {"name": "other"}
