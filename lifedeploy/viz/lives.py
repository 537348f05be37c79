"""Pictures of lives: the paper's Figure 4, and lives over a data set."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.evaluation.lives import PatchLives, granted
from lifedeploy.schedule import Schedule
from lifedeploy.viz.panels import COLOURS, draw_groups, draw_image, draw_kept, draw_life
from lifedeploy.viz.style import new_figure, save

_PANEL = 2.6  # inches
_MOST_LAYERS = 4  # panels of what is kept, in a row
_SMALL, _LETTERS = 7, 125  # size of the caption, in points; letters of one point in an inch, nearly


def draw_lives(drawn: Sequence[PatchLives], schedule: Schedule, path: Path, *, note: str = "") -> None:
    """One row an image: the image, the life of every patch if the model predicts lives, what is left after every layer
    where it chose, or after some of them where these are many, and the groups that it merged patches to, if any.

    Raises:
        UsageError: a format that cannot be written.
    """
    layers = spaced(list(drawn[0].alive))
    lived, grouped = drawn[0].life is not None, drawn[0].groups is not None
    titles = [
        "image",
        *(["life, in layers"] if lived else []),
        *(f"after layer {layer}" for layer in layers),
        *(["groups"] if grouped else []),
    ]
    height, width = drawn[0].pixels.shape[:2]
    panel = (_PANEL * width / max(height, width), _PANEL * height / max(height, width))
    across = len(titles) * panel[0] + 1.0
    caption = _wrapped(" · ".join(filter(None, (note, _legend(drawn)))), across, _SMALL)
    high = len(drawn) * (panel[1] + 0.3) + 0.55 + 0.12 * caption.count("\n")
    figure = new_figure(path, across, high, layout="compressed")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes: Any = figure.subplots(len(drawn), len(titles), squeeze=False)
    scale = Normalize(schedule.shortest_life, schedule.depth)
    for row, image in zip(axes, drawn, strict=True):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        draw_image(row[0], image)
        if lived:
            draw_life(row[1], image, scale)
        for axis, layer in zip(row[1 + lived :], layers, strict=False):
            draw_kept(axis, image, layer)
        if grouped:
            draw_groups(row[-1], image)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, fontweight="bold")
    if lived:
        shrink = 0.9 / len(drawn) ** 0.5
        bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=list(axes.flat), shrink=shrink, pad=0.01)
        bar.set_label("last layer that a patch takes part in", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    figure.supxlabel(caption, fontsize=_SMALL, color="#666666", x=0.01, ha="left")
    save(figure, path)


def spaced(layers: Sequence[int]) -> list[int]:
    """Layers to draw: all, or as many as there is room for, evenly chosen, the last one among them."""
    panels = min(len(layers), _MOST_LAYERS)
    return [layers[-(-len(layers) * number // panels) - 1] for number in range(1, panels + 1)]


def _legend(drawn: Sequence[PatchLives]) -> str:
    """How patches look that do not go on, in words."""
    fate = drawn[0].fate
    if fate == "halted":
        return "the number: its last layer, then it halts and is masked"
    if fate == "parked":
        return "dim: waits, and comes back"
    if drawn[0].groups is not None:
        return "in the colour of its group: merged"
    if fate == "merged":
        return "dark: merged into another"
    fuses = any(any(image.fused.values()) for image in drawn)
    return "dark: dropped, or in a fused token" if fuses else "dark: dropped"


def _wrapped(text: str, inches: float, size: int) -> str:
    """In lines that fit a picture so wide; a word that does not is left whole, to be shortened."""
    width = int(inches * _LETTERS / size)
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def draw_histogram(life: NDArray[Any], schedule: Schedule, path: Path, *, note: str = "") -> None:
    """Lives (B, N), clamped to t_base…T, as a histogram; against the shares that the schedule grants each life, where
    it grants any: else every patch says itself how long it lives.

    Raises:
        UsageError: a format that cannot be written.
    """
    figure = new_figure(path, 7.2, 3.8)
    axis: Any = figure.subplots()
    flat = life.clip(schedule.shortest_life, schedule.depth).ravel()
    edges = np.arange(schedule.shortest_life - 0.25, schedule.depth + 0.5, 0.5)
    how = "predicted" if schedule.prunes else "counted"
    label = f"{how}: mean {flat.mean():.2f}, deviation {flat.std():.2f}"
    axis.hist(flat, bins=edges, weights=np.full(len(flat), 100 / len(flat)), color="#9ecae1", label=label)
    if schedule.prunes:
        _draw_granted(axis, schedule)
    axis.set_xlabel("life: last layer that a patch takes part in")
    axis.set_ylabel("share of patches, %")
    axis.margins(y=0.12)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    axis.set_title(_wrapped(note, 7.2, 8), fontsize=8, color="#666666", loc="left")
    save(figure, path)


def _draw_granted(axis: Any, schedule: Schedule) -> None:
    """A line as high as the share of patches to which the schedule grants a life."""
    shares = granted(schedule)
    label = f"granted by the schedule: mean {schedule.mean_life:.2f}, deviation {schedule.std_life:.2f}"
    places, heights = list(shares), [100 * share for share in shares.values()]
    axis.vlines(places, 0, heights, color="#1b6ca8", linewidth=2.5, label=label)
    axis.plot(places, heights, "o", color="#1b6ca8", markersize=6)
    for place, height in zip(places, heights, strict=True):
        offset = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axis.annotate(f"{height:.0f} %", (place, height), fontsize=8, color="#1b6ca8", **offset)
