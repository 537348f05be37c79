"""Curves of a training run: loss, accuracy and learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from lifedeploy.training.log import LogRow
from lifedeploy.viz.style import new_figure, save, tidy

_LARGEST = 1e30
_TRAIN, _VAL, _RATE = "#6baed6", "#c2571a", "#8c8c8c"


def draw_curves(rows: Sequence[LogRow], path: Path, *, title: str = "") -> None:
    """Loss and accuracy of training and validation, the learning rate below; stages are marked.

    Raises:
        UsageError: a format that cannot be written.
    """
    figure = new_figure(path, 9.5, 4.6)
    axes: Any = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1))
    train = _even([row for row in rows if row.kind == "train"])
    val = [row for row in rows if row.kind == "val"]
    for axis, name, scale in ((axes[0][0], "loss", 1), (axes[0][1], "accuracy", 100)):
        values = [_drawn(getattr(row, name) * scale) for row in train]
        axis.plot([row.step for row in train], values, color=_TRAIN, linewidth=1.2, label="training")
        values = [_drawn(getattr(row, name) * scale) for row in val]
        axis.plot([row.step for row in val], values, "o", color=_VAL, label="validation, hard forward")
        axis.set_ylabel(name if scale == 1 else f"{name}, %")
    for axis in axes[1]:
        axis.plot([row.step for row in train], [row.lr for row in train], color=_RATE, linewidth=1.2)
        axis.set_ylabel("rate", fontsize=8)
        axis.set_xlabel("step")
        axis.set_yscale("log" if len({row.lr for row in train if row.lr > 0}) > 1 else "linear")
    _stages(axes, rows)
    for axis in axes.flat:
        tidy(axis)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9, color="#555555")
    save(figure, path)


def _drawn(value: float) -> float:
    """A gap where a number is too large to have an axis."""
    return value if abs(value) <= _LARGEST else math.nan


def _even(rows: Sequence[LogRow]) -> list[LogRow]:
    """Rows of about the same number of steps: those cut short by a checkpoint or an epoch's end join the next one."""
    gaps = [later.step - earlier.step for earlier, later in pairwise(rows)]
    usual = max(gaps, default=1)
    even: list[LogRow] = []
    steps, loss, right, last = 0, 0.0, 0.0, 0
    for row, after in zip_longest(rows, rows[1:]):
        gap, last = row.step - last, row.step
        steps, loss, right = steps + gap, loss + gap * row.loss, right + gap * row.accuracy
        if steps and (steps >= usual or after is None or after.stage != row.stage):
            even.append(replace(row, loss=loss / steps, accuracy=right / steps))
            steps, loss, right = 0, 0.0, 0.0
    return even


def _stages(axes: Any, rows: Sequence[LogRow]) -> None:
    """A line where a stage begins, its name beside it."""
    begins: dict[str, int] = {}
    last = 0
    for row in rows:
        begins.setdefault(row.stage, last)
        last = row.step
    for stage, step in begins.items():
        for axis in axes.flat:
            if step:
                axis.axvline(step, linestyle="--", linewidth=1, color="#999999")
        for axis in axes[0]:
            axis.annotate(
                stage,
                (step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                textcoords="offset points",
                fontsize=8,
                color="#555555",
            )
