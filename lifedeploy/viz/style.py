"""What plots of measurements have in common: a method has the same colour everywhere."""

from __future__ import annotations

from typing import Any

_COLOURS = {"dense": "#8c8c8c", "first-k": "#6baed6", "life": "#1b6ca8"}
_OTHER = "#c2571a"


def colour(method: str) -> str:
    """Of a method."""
    return _COLOURS.get(method, _OTHER)


def tidy(axis: Any) -> None:
    """Two spines, a grid behind everything, small numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e6e6")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def title(axis: Any, text: str) -> None:
    """What a row of axes is about."""
    axis.set_title(text, loc="left", fontsize=10, fontweight="bold")
