"""Accuracy against speed: what there is to choose from, and the front beyond which there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from lifedeploy.bench.report import Choice, Subject
from lifedeploy.viz.labels import Named, place
from lifedeploy.viz.style import colour, in_lines

_MARKERS = "osD^vPX<>*hp"  # one per engine and precision
_WIDE = 6.0  # speeds further apart than this, as a ratio, are drawn on a logarithmic axis


def marked(choices: Sequence[Choice]) -> dict[str, str]:
    """A marker for each engine and precision, the same in all settings."""
    engines = dict.fromkeys(choice.row.subject.label for choice in choices)
    return dict(zip(engines, cycle(_MARKERS), strict=False))


def draw(axis: Any, choices: Sequence[Choice], markers: dict[str, str]) -> None:
    """One setting: top-1 with one standard error against images per second; the Pareto front as a line."""
    for choice in choices:
        axis.errorbar(
            choice.row.images_per_s,
            choice.top1 * 100,
            yerr=choice.standard_error * 100,
            fmt=markers[choice.row.subject.label],
            markersize=7 if choice.pareto else 5,
            capsize=3,
            elinewidth=1,
            color=colour(choice.row.subject.method),
            zorder=3,
        )
    axis.plot(*zip(*_front(choices), strict=True), color="#333333", linewidth=1, linestyle="--", zorder=2)
    speeds = [choice.row.images_per_s for choice in choices]
    if max(speeds) > _WIDE * min(speeds):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(f"{value:e}")[0] in "25" else "")
        axis.tick_params(which="minor", labelsize=8)
    axis.margins(x=0.15, y=0.18)  # room for names
    axis.set_xlabel("images/s", fontsize=9)
    axis.set_ylabel("top-1, %")
    axis.grid(axis="x", color="#f0f0f0")


def _front(choices: Sequence[Choice]) -> list[tuple[float, float]]:
    return sorted((choice.row.images_per_s, choice.top1 * 100) for choice in choices if choice.pareto)


def label(axis: Any, choices: Sequence[Choice], *, engines: bool = True) -> None:
    """Name the points, once the layout is known; without ``engines`` by their method alone."""
    named = [
        Named(
            x=choice.row.images_per_s,
            y=choice.top1 * 100,
            low=100 * (choice.top1 - choice.standard_error),
            high=100 * (choice.top1 + choice.standard_error),
            text=_text(choice.row.subject, engines=engines),
            colour=colour(choice.row.subject.method),
        )
        for choice in choices
    ]
    place(axis, named, [_front(choices)])


def _text(subject: Subject, *, engines: bool) -> str:
    """What a point is called; with its engine before it, or above a name of several lines."""
    name = in_lines(subject.shown)
    if not engines:
        return name
    return f"{subject.label}\n{name}" if "\n" in name else f"{subject.label} {name}"
