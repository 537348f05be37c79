"""Pictures of lives: the paper's Figure 4, and lives over a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.evaluation.lives import PatchLives, granted
from lifedeploy.schedule import Schedule
from lifedeploy.text import shortened
from lifedeploy.viz.style import new_figure, save

_COLOURS = "viridis"  # even steps for every eye
_DARK = 0.15  # brightness of a dropped patch
_NUMBERED_GRID = 16  # more patches than this a side, and their numbers cannot be read
_PANEL = 2.6  # inches
_LABEL = 34  # characters below a panel


def draw_lives(drawn: Sequence[PatchLives], schedule: Schedule, path: Path, *, note: str = "") -> None:
    """One row an image: the image, the life of every patch if the model predicts lives, and what is left after every
    drop layer.

    Raises:
        UsageError: a format that cannot be written.
    """
    layers = [layer for layer in schedule.drop_layers if schedule.after(layer) < schedule.tokens[layer - 1]]
    lived = drawn[0].life is not None
    columns = 1 + lived + len(layers)
    height, width = drawn[0].pixels.shape[:2]
    panel = (_PANEL * width / max(height, width), _PANEL * height / max(height, width))
    figure = new_figure(path, columns * panel[0] + 1.0, len(drawn) * (panel[1] + 0.3) + 0.55, layout="compressed")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes: Any = figure.subplots(len(drawn), columns, squeeze=False)
    scale = Normalize(schedule.base_layer, schedule.depth)
    for row, image in zip(axes, drawn, strict=True):
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row[0].imshow(image.pixels)
        row[0].set_xlabel(_label(image), fontsize=8)
        if image.life is not None:
            _draw_life(row[1], image.life, image, schedule, scale)
        for axis, layer in zip(row[1 + lived :], layers, strict=True):
            axis.imshow(dimmed(image, layer))
            axis.set_xlabel(_left(image, layer, schedule), fontsize=8)
    titles = ["image", *(["life, in layers"] if lived else []), *(f"after layer {layer}" for layer in layers)]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, fontweight="bold")
    if lived:
        shrink = 0.9 / len(drawn) ** 0.5
        bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=list(axes.flat), shrink=shrink, pad=0.01)
        bar.set_label("last layer that a patch takes part in", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    fuses = any(any(image.fused.values()) for image in drawn)
    dark = "dark: dropped, or in a fused token" if fuses else "dark: dropped"
    figure.supxlabel(" · ".join(filter(None, (note, dark))), fontsize=7, color="#666666", x=0.01, ha="left")
    save(figure, path)


def dimmed(image: PatchLives, layer: int) -> NDArray[np.uint8]:
    """The image with the patches dark that do not go on after ``layer``: (H, W, 3)."""
    bright = np.where(spread(image.alive[layer], image), 1.0, _DARK)
    return (image.pixels * bright[..., None]).astype(np.uint8)


def spread(values: NDArray[Any], image: PatchLives) -> NDArray[Any]:
    """A value per patch (N,) → per pixel (H, W)."""
    rows, columns = image.grid
    height, width = image.pixels.shape[:2]
    return values.reshape(rows, columns).repeat(height // rows, axis=0).repeat(width // columns, axis=1)


def _left(image: PatchLives, layer: int, schedule: Schedule) -> str:
    """What goes on after a layer, in words."""
    text, fused = f"{int(image.alive[layer].sum())} of {schedule.patches} patches", image.fused[layer]
    return text if not fused else f"{text} + {fused} fused token{'s' * (fused != 1)}"


def _draw_life(axis: Any, life: NDArray[Any], image: PatchLives, schedule: Schedule, scale: Any) -> None:
    clamped = life.clip(schedule.base_layer, schedule.depth)
    grey = image.pixels.mean(axis=2)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axis.imshow(spread(clamped, image), cmap=_COLOURS, norm=scale, alpha=0.72)
    rows, columns = image.grid
    if max(rows, columns) > _NUMBERED_GRID:
        return
    high, wide = image.pixels.shape[0] / rows, image.pixels.shape[1] / columns
    middle = (schedule.base_layer + schedule.depth) / 2
    for number, life in enumerate(clamped):
        row, column = divmod(number, columns)
        axis.text(
            (column + 0.5) * wide - 0.5,
            (row + 0.5) * high - 0.5,
            f"{life:.0f}",
            ha="center",
            va="center",
            fontsize=60 / max(rows, columns),
            color="black" if life > middle else "white",
        )


def _label(image: PatchLives) -> str:
    name = shortened(image.name, _LABEL)
    return f"{name}\n{shortened(image.guess, _LABEL)}" if image.guess else name


def draw_histogram(life: NDArray[Any], schedule: Schedule, path: Path, *, note: str = "") -> None:
    """Lives (B, N), clamped to t_base…T, as a histogram against the shares that the schedule grants each life.

    Raises:
        UsageError: a format that cannot be written.
    """
    figure = new_figure(path, 7.2, 3.8)
    axis: Any = figure.subplots()
    flat = life.clip(schedule.base_layer, schedule.depth).ravel()
    edges = np.arange(schedule.base_layer - 0.25, schedule.depth + 0.5, 0.5)
    label = f"predicted: mean {flat.mean():.2f}, deviation {flat.std():.2f}"
    axis.hist(flat, bins=edges, weights=np.full(len(flat), 100 / len(flat)), color="#9ecae1", label=label)
    shares = granted(schedule)
    label = f"granted by the schedule: mean {schedule.mean_life:.2f}, deviation {schedule.std_life:.2f}"
    places, heights = list(shares), [100 * share for share in shares.values()]
    axis.vlines(places, 0, heights, color="#1b6ca8", linewidth=2.5, label=label)
    axis.plot(places, heights, "o", color="#1b6ca8", markersize=6)
    for place, height in zip(places, heights, strict=True):
        offset = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axis.annotate(f"{height:.0f} %", (place, height), fontsize=8, color="#1b6ca8", **offset)
    axis.set_xlabel("life: last layer that a patch takes part in")
    axis.set_ylabel("share of patches, %")
    axis.margins(y=0.12)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    axis.set_title(note, fontsize=8, color="#666666", loc="left")
    save(figure, path)
