"""What a user picks from: a model as fast as it was measured and as right as it was found to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from lifedeploy.bench.report import Choice, Row

T = TypeVar("T", bound=Row | Choice)


def row_of(entry: Row | Choice) -> Row:
    """The speed of a row or a choice."""
    return entry.row if isinstance(entry, Choice) else entry


def by_setting(entries: Iterable[T]) -> list[list[T]]:
    """Those of each mode and batch size, which can be compared, fastest first; settings in the order they came.

    Where there is no other device nothing has to be copied to it: that goes with what is measured with copies.
    """
    settings: dict[tuple[str, int, int, bool], list[T]] = {}
    for entry in entries:
        setting = row_of(entry).setting
        key = setting.mode, setting.streams, setting.batch, setting.copies is not False
        settings.setdefault(key, []).append(entry)
    return [sorted(entries, key=lambda entry: -row_of(entry).images_per_s) for entries in settings.values()]


def ranked(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """All of them, setting by setting, fastest first; the Pareto front of each setting marked."""
    return tuple(
        replace(choice, pareto=not any(_beats(other, choice) for other in rivals))
        for rivals in by_setting(choices)
        for choice in rivals
    )


def _beats(first: Choice, second: Choice) -> bool:
    ours, theirs = (first.row.images_per_s, first.top1), (second.row.images_per_s, second.top1)
    return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]
