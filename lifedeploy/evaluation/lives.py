"""Lives out of an engine's scores, and who is alive when: numpy twins of what the model does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class PatchLives:
    """One image, and what the model makes of its patches."""

    name: str
    pixels: NDArray[np.uint8]  # (H, W, 3), as the model sees it
    grid: tuple[int, int]  # rows and columns of patches
    life: NDArray[np.float64]  # (N,), in layers
    alive: dict[int, NDArray[np.bool_]]  # drop layer → (N,), who goes on after it
    guess: str = ""  # best class with its probability, where the model has any


def lives(scores: NDArray[Any], schedule: Schedule) -> NDArray[np.float64]:
    """τ of eq. 3: scores (B, N) → lives (B, N) in layers. An image of equal scores gets the mean everywhere."""
    centred = scores.astype(np.float64) - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt(np.maximum((centred**2).mean(axis=1, keepdims=True), 1e-12))
    return centred / deviation * schedule.std_life + schedule.mean_life


def alive_after(order: NDArray[Any], schedule: Schedule) -> dict[int, NDArray[np.bool_]]:
    """Drop layer → mask (B, N) of the patches that go on; ``order`` (B, n) holds survivors, longest life first."""
    masks = {}
    for layer in schedule.drop_layers:
        mask = np.zeros((len(order), schedule.patches), dtype=bool)
        np.put_along_axis(mask, order[:, : schedule.after(layer)].astype(np.int64), True, axis=1)
        masks[layer] = mask
    return masks


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
    for side in range(1, min(height, width) + 1):
        if height % side == 0 and width % side == 0 and (height // side) * (width // side) == patches:
            return height // side, width // side
    raise ValueError(f"{patches} square patches do not tile {height} x {width} pixels")
