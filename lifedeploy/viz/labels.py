"""Names beside points, where they cover no other name, no point and no line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Where a label may be, from its point: direction, and distance in points; the nearest free place is taken.
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (7, 18, 32, 48)
_ACROSS = {-1: "right", 0: "center", 1: "left"}
_UP = {-1: "top", 0: "center", 1: "bottom"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """A point with a name, and its whisker, in the units of the axes."""

    x: float
    y: float
    low: float
    high: float
    text: str
    colour: str


def place(axis: Any, named: Sequence[Named], lines: Sequence[Sequence[tuple[float, float]]] = ()) -> None:
    """Write the names, once the layout is known; ``lines`` are further things to keep off.

    A name far from its point is joined to it.
    """
    from matplotlib.transforms import Bbox

    pixels = axis.figure.dpi / 72
    points, taken = [], []  # boxes in pixels: left, bottom, right, top
    for point in named:
        ends = [axis.transData.transform((point.x, value)) for value in (point.low, point.y, point.high)]
        points.append(ends[1])
        taken.append(Bbox([ends[0], ends[2]]).padded(5 * pixels).extents)
    pieces = (axis.transData.transform(piece) for line in lines for piece in pairwise(line))
    for start, end in pieces:
        for share in np.linspace(0, 1, 100):
            taken.append(Bbox([start + share * (end - start)] * 2).padded(pixels).extents)
    for point, where in zip(named, points, strict=True):
        text = axis.annotate(
            point.text,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=point.colour,
            zorder=4,
        )
        size = text.get_window_extent()
        places = [
            (across, up, distance, _box(where, across, up, distance * pixels, size))
            for distance, (across, up) in product(_DISTANCES, _DIRECTIONS)
        ]
        others = np.array(taken)

        def cost(choice: Any, others: NDArray[Any] = others) -> float:
            return float(_covered(choice[3], others).sum()) + _outside(choice[3], axis)

        across, up, distance, box = min(places, key=cost)
        offset = (across * distance, up * distance)
        text.set(position=offset, ha=_ACROSS[across], va=_UP[up])
        if distance > _DISTANCES[0]:  # too far to see whose name it is
            axis.annotate(
                "",
                (point.x, point.y),
                xytext=offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#999999"},
            )
        taken.append(box.extents)


def _box(point: Any, across: int, up: int, distance: float, size: Any) -> Any:
    """Where a text of ``size`` is, ``distance`` from ``point`` in one of the directions; in pixels."""
    from matplotlib.transforms import Bbox

    left = point[0] + across * distance - size.width * (1 - across) / 2
    bottom = point[1] + up * distance - size.height * (1 - up) / 2
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _covered(box: Any, others: NDArray[Any]) -> NDArray[Any]:
    """The areas that a box shares with each of others, (n, 4)."""
    width = np.minimum(box.x1, others[:, 2]) - np.maximum(box.x0, others[:, 0])
    height = np.minimum(box.y1, others[:, 3]) - np.maximum(box.y0, others[:, 1])
    shared: NDArray[Any] = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return shared


def _outside(box: Any, axis: Any) -> float:
    """The area of a box that is outside of the axes."""
    return float(box.width * box.height) - float(_covered(box, axis.bbox.extents[None]).sum())
