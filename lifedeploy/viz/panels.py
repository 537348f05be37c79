"""Panels of a picture of patches: the image, and what a model makes of its patches; a function for each kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.evaluation.lives import PatchLives, group_means
from lifedeploy.text import shortened

COLOURS = "viridis"  # even steps for every eye
# Brightness of patches that do not go on, by what becomes of them.
_BRIGHTNESS = {"parked": 0.45}
_DARK = 0.15
_NUMBERED_GRID = 16  # more patches than this a side, and their numbers cannot be read
_LABEL = 34  # characters below a panel
_BORDERS = (("#222222", 1.3), ("white", 0.6))  # a line on both is seen on bright and on dark patches


def draw_image(axis: Any, image: PatchLives) -> None:
    """The image as the model sees it."""
    name = shortened(image.name, _LABEL)
    _show(axis, image.pixels, f"{name}\n{shortened(image.guess, _LABEL)}" if image.guess else name)


def draw_life(axis: Any, image: PatchLives, scale: Any) -> None:
    """The life of every patch, as a colour of ``scale`` and as a number."""
    assert image.life is not None
    clamped = image.life.clip(scale.vmin, scale.vmax)
    axis.imshow(image.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axis.imshow(spread(clamped, image), cmap=COLOURS, norm=scale, alpha=0.72)
    rows, columns = image.grid
    if max(rows, columns) > _NUMBERED_GRID:
        return
    high, wide = image.pixels.shape[0] / rows, image.pixels.shape[1] / columns
    for number, life in enumerate(clamped):
        row, column = divmod(number, columns)
        axis.text(
            (column + 0.5) * wide - 0.5,
            (row + 0.5) * high - 0.5,
            f"{life:.0f}",
            ha="center",
            va="center",
            fontsize=60 / max(rows, columns),
            color="black" if life > (scale.vmin + scale.vmax) / 2 else "white",
        )


def draw_kept(axis: Any, image: PatchLives, layer: int) -> None:
    """What goes on after ``layer`` as it is, the other patches by what became of them, and how many there are."""
    _show(axis, kept(image, layer), _left(image, layer))
    if image.groups is not None:
        _outline(axis, image, ~image.alive[layer])


def draw_groups(axis: Any, image: PatchLives) -> None:
    """Every group of merged patches in its mean colour, with its outline."""
    assert image.groups is not None
    sizes = np.unique_counts(image.groups).counts
    most = int(sizes.max())
    _show(axis, _mean_coloured(image), f"{len(sizes)} groups, the largest of {most} patch{'es' * (most != 1)}")
    _outline(axis, image, np.ones(len(image.groups), dtype=bool))


def kept(image: PatchLives, layer: int) -> NDArray[np.uint8]:
    """The image with the patches that do not go on after ``layer`` in the colour of their group, where they have one,
    else darker: (H, W, 3)."""
    goes_on = spread(image.alive[layer], image)[..., None]
    if image.groups is not None:
        return np.where(goes_on, image.pixels, _mean_coloured(image))
    bright = np.where(goes_on, 1.0, _BRIGHTNESS.get(image.fate, _DARK))
    return (image.pixels * bright).astype(np.uint8)


def spread(values: NDArray[Any], image: PatchLives) -> NDArray[Any]:
    """A value per patch (N,) or (N, C) → per pixel (H, W) or (H, W, C)."""
    rows, columns = image.grid
    height, width = image.pixels.shape[:2]
    grid = values.reshape(rows, columns, *values.shape[1:])
    return grid.repeat(height // rows, axis=0).repeat(width // columns, axis=1)


def _mean_coloured(image: PatchLives) -> NDArray[np.uint8]:
    assert image.groups is not None
    return spread(group_means(image.pixels, image.grid, image.groups).round().astype(np.uint8), image)


def borders(image: PatchLives, drawn: NDArray[np.bool_]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Edges between patches of different groups, where either is one of ``drawn`` (N,): their ends, in pixels."""
    assert image.groups is not None
    rows, columns = image.grid
    high, wide = image.pixels.shape[0] / rows, image.pixels.shape[1] / columns
    groups, shown = image.groups.reshape(rows, columns), drawn.reshape(rows, columns)
    edges = []
    for row, column in zip(*np.nonzero(_apart(groups, shown)), strict=True):  # one below the other
        y, x = (row + 1) * high - 0.5, column * wide - 0.5
        edges.append(((x, y), (x + wide, y)))
    for column, row in zip(*np.nonzero(_apart(groups.T, shown.T)), strict=True):  # side by side
        y, x = row * high - 0.5, (column + 1) * wide - 0.5
        edges.append(((x, y), (x, y + high)))
    return edges


def _apart(groups: NDArray[Any], shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a row and the next one are of different groups, and either is shown: (n - 1, m)."""
    apart: NDArray[np.bool_] = (groups[1:] != groups[:-1]) & (shown[1:] | shown[:-1])
    return apart


def _outline(axis: Any, image: PatchLives, drawn: NDArray[np.bool_]) -> None:
    from matplotlib.collections import LineCollection

    edges = borders(image, drawn)
    for colour, width in _BORDERS:
        lines = LineCollection(edges, colors=colour, linewidths=width, capstyle="projecting")
        axis.add_collection(lines, autolim=False)


def _left(image: PatchLives, layer: int) -> str:
    """What goes on after a layer, in words."""
    patches, alive, fused = len(image.alive[layer]), int(image.alive[layer].sum()), image.fused[layer]
    if image.groups is not None:
        return f"{alive + fused} tokens of {patches} patches"
    if image.fate == "parked":
        return f"{alive} of {patches} patches, {patches - alive} wait"
    text = f"{alive} of {patches} patches"
    return text if not fused else f"{text} + {fused} fused token{'s' * (fused != 1)}"


def _show(axis: Any, pixels: NDArray[np.uint8], label: str) -> None:
    axis.imshow(pixels)
    axis.set_xlabel(label, fontsize=8)
