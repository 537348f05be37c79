"""Accuracy against speed: what there is to choose from, and the front beyond which there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise, product
from typing import Any

import numpy as np

from lifedeploy.bench.report import Choice
from lifedeploy.viz.style import colour

_MARKERS = "osD^vPX<>*hp"  # one per engine and precision
_WIDE = 6.0  # speeds further apart than this, as a ratio, are drawn on a logarithmic axis
# Where a label may be, from its point: direction, and distance in points; the nearest free place is taken.
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (7, 18, 32, 48)
_ACROSS = {-1: "right", 0: "center", 1: "left"}
_UP = {-1: "top", 0: "center", 1: "bottom"}


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


def label(axis: Any, choices: Sequence[Choice]) -> None:
    """Name the points, once the layout is known, where names cover no other, no point and no line."""
    from matplotlib.transforms import Bbox

    pixels = axis.figure.dpi / 72
    points, taken = [], []
    for choice in choices:
        low, middle, high = (choice.top1 + sign * choice.standard_error for sign in (-1, 0, 1))
        ends = [axis.transData.transform((choice.row.images_per_s, 100 * share)) for share in (low, middle, high)]
        points.append(ends[1])
        taken.append(Bbox([ends[0], ends[2]]).padded(5 * pixels))
    corners = axis.transData.transform(_front(choices))
    for start, end in pairwise(corners):
        for share in np.linspace(0, 1, 100):
            taken.append(Bbox([start + share * (end - start)] * 2).padded(pixels))
    for choice, point in zip(choices, points, strict=True):
        text = axis.annotate(
            f"{choice.row.subject.label} {choice.row.subject.method}",
            (choice.row.images_per_s, choice.top1 * 100),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=colour(choice.row.subject.method),
            zorder=4,
        )
        size = text.get_window_extent()
        places = [
            (across, up, distance, _box(point, across, up, distance * pixels, size))
            for distance, (across, up) in product(_DISTANCES, _DIRECTIONS)
        ]
        across, up, distance, box = min(
            places, key=lambda place: sum(_covered(place[3], other) for other in taken) + _outside(place[3], axis)
        )
        offset = (across * distance, up * distance)
        text.set(position=offset, ha=_ACROSS[across], va=_UP[up])
        if distance > _DISTANCES[0]:  # too far to see whose name it is
            axis.annotate(
                "",
                (choice.row.images_per_s, choice.top1 * 100),
                xytext=offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#999999"},
            )
        taken.append(box)


def _box(point: Any, across: int, up: int, distance: float, size: Any) -> Any:
    """Where a text of ``size`` is, ``distance`` from ``point`` in one of the directions; in pixels."""
    from matplotlib.transforms import Bbox

    left = point[0] + across * distance - size.width * (1 - across) / 2
    bottom = point[1] + up * distance - size.height * (1 - up) / 2
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _covered(box: Any, other: Any) -> float:
    """The area that two boxes share."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _outside(box: Any, axis: Any) -> float:
    """The area of a box that is outside of the axes."""
    return float(box.width * box.height) - _covered(box, axis.bbox)
