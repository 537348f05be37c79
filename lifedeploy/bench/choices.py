"""What a user picks from: a model as fast as it was measured and as right as it was found to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Choice:
    """One method on one engine in one precision, in one setting. Shares are 0…1. None: does not apply."""

    model: str
    method: str
    engine: str
    precision: str  # what really ran
    mode: str
    streams: int
    batch: int
    copies: bool | None
    images_per_s: float
    base: str | None
    over_base: float | None
    over_base_low: float | None
    over_base_high: float | None
    images: int  # that it was evaluated on
    top1: float
    standard_error: float
    average_precision: float | None
    same_top1: float | None  # share of images with the base's answer; None of the base itself
    kept_overlap: float | None  # share of kept tokens in common with the same method on the first engine
    pareto: bool = False  # nothing in its setting is better in img/s or top-1, and as good in the other


class Measured(Protocol):
    """A speed, and the setting that it is of."""

    @property
    def mode(self) -> str: ...
    @property
    def streams(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def copies(self) -> bool | None: ...
    @property
    def images_per_s(self) -> float: ...


T = TypeVar("T", bound=Measured)


def by_setting(entries: Iterable[T]) -> list[list[T]]:
    """Those of each mode and batch size, which can be compared, fastest first; settings in the order they came.

    Where there is no other device nothing has to be copied to it: that goes with what is measured with copies.
    """
    settings: dict[tuple[str, int, int, bool], list[T]] = {}
    for entry in entries:
        settings.setdefault((entry.mode, entry.streams, entry.batch, entry.copies is not False), []).append(entry)
    return [sorted(own, key=lambda entry: -entry.images_per_s) for own in settings.values()]


def ranked(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """All of them, setting by setting, fastest first; the Pareto front of each setting marked."""
    made: list[Choice] = []
    for own in by_setting(choices):
        made += [replace(choice, pareto=not any(_beats(other, choice) for other in own)) for choice in own]
    return tuple(made)


def _beats(one: Choice, other: Choice) -> bool:
    mine, theirs = (one.images_per_s, one.top1), (other.images_per_s, other.top1)
    return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]
