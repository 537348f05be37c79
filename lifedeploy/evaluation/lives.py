"""Lives out of an engine's scores, and who is alive when: numpy twins of what the model does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.method import Fate
from lifedeploy.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PatchLives:
    """One image, and what the model makes of its patches."""

    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3), as the model sees it
    grid: tuple[int, int]  # rows and columns of patches
    life: NDArray[np.float64] | None  # (N,), in layers; None: the model predicts none
    alive: dict[int, NDArray[np.bool_]]  # layer after which it chose → (N,), who goes on
    fused: dict[int, int]  # the same layers → tokens that go on and are no single patch
    fate: Fate = "dropped"  # of those that do not go on
    groups: NDArray[np.int64] | None = None  # (N,), the patch that stands for each at the end; None: nothing was merged
    guess: str = ""  # best class with its probability, where the model has any


def lives(scores: NDArray[Any], schedule: Schedule, *, counted: bool = False) -> NDArray[np.float64]:
    """τ of eq. 3: scores (B, N) → lives (B, N) in layers. An image of equal scores gets the mean everywhere.

    ``counted`` scores are lives already.
    """
    if counted:
        return scores.astype(np.float64)
    centred: NDArray[np.float64] = scores.astype(np.float64) - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation: NDArray[np.float64] = np.sqrt(np.maximum((centred**2).mean(axis=1, keepdims=True), 1e-12))
    return centred / deviation * schedule.std_life + schedule.mean_life


def alive(kept: NDArray[Any], patches: int) -> NDArray[np.bool_]:
    """Kept tokens (B, n), by original index, -1 for what is no single patch → mask (B, N) of the patches among them."""
    mask = np.zeros((len(kept), patches + 1), dtype=bool)
    np.put_along_axis(mask, kept.astype(np.int64), True, axis=1)  # -1 falls behind the last patch
    return mask[:, :patches]


def group_means(pixels: NDArray[np.uint8], grid: tuple[int, int], groups: NDArray[Any]) -> NDArray[np.float64]:
    """The mean colour (N, 3) of the group that each patch is in, of an image (H, W, 3)."""
    rows, columns = grid
    height, width = pixels.shape[:2]
    patches = pixels.reshape(rows, height // rows, columns, width // columns, 3).mean(axis=(1, 3)).reshape(-1, 3)
    sums = np.zeros_like(patches)
    np.add.at(sums, groups, patches)
    means: NDArray[np.float64] = sums[groups] / np.bincount(groups, minlength=len(groups))[groups, None]
    return means


def granted(schedule: Schedule) -> dict[int, float]:
    """Life in layers → the share of patches to which the schedule grants exactly that."""
    shares = {}
    for layer in range(1, schedule.depth):
        dying = schedule.tokens[layer - 1] - schedule.tokens[layer]
        if dying:
            shares[layer] = dying / schedule.patches
    return shares | {schedule.depth: schedule.tokens[-1] / schedule.patches}


def patch_grid(image_size: tuple[int, int], patches: int) -> tuple[int, int]:
    """Rows and columns of square patches that tile the image.

    Raises:
        ValueError: no square patch gives that many.
    """
    height, width = image_size
    for size in range(1, min(height, width) + 1):
        if height % size == 0 and width % size == 0 and (height // size) * (width // size) == patches:
            return height // size, width // size
    raise ValueError(f"{patches} square patches do not tile {height} x {width} pixels")
