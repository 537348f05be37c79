"""Position embeddings: the grid of patches that a file's are of, and how they are brought to another grid.

The number of position embeddings does not tell their grid: 36 are 6x6, 4x9 or 9x4. A file of ours says it, and so does
one that timm's training wrote; of others only the backbone's own grid and a square one are taken for granted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.blocks import adapted

Grid = tuple[int, int]  # rows and columns of patches


def native_grid(vit: nn.Module) -> Grid | None:
    """The patches at the image size that the backbone was designed for, if it says."""
    config: Any = getattr(vit, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    return adapted(vit).grid_at((size[-2], size[-1])) if size else None


def guess_grid(patches: int, vit: nn.Module) -> tuple[Grid | None, str]:
    """The grid of ``patches`` position embeddings that nothing is said about; None where it could be another one too.

    It is the backbone's own grid or, if that is a square, the one that ``vit`` has now. Not if both have as many
    patches, and not if another square has; and a grid that is neither could be turned, so it has to be said.

    Returns:
        The grid, or None; and how it was told, or what it could be.
    """
    now, native = adapted(vit).grid, native_grid(vit)
    root = math.isqrt(max(patches, 0))
    possible = {grid for grid in (native, now, (root, root)) if grid is not None and grid[0] * grid[1] == patches}
    if possible == {native}:
        return native, "the backbone's own"
    if possible == {now} and now[0] == now[1]:
        return now, "the one asked for"
    return None, " or ".join(sorted(f"{rows}x{columns}" for rows, columns in possible))


def resample(embeddings: Tensor, old: Grid, new: Grid) -> Tensor:
    """Position embeddings of another grid: (1, P + rows·columns, C) of ``old`` → the same of ``new``.

    Bicubic with antialiasing, as timm does it; P prefix tokens stay as they are. The grid that they have already costs
    nothing and changes no bit.

    Raises:
        ValueError: there are fewer embeddings than the old grid has patches.
    """
    if old == new:
        return embeddings
    prefix = embeddings.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise ValueError(f"{embeddings.shape[1]} position embeddings are fewer than a {old[0]}x{old[1]} grid has")
    # Channels stay last in memory: where they are not, torch 2.15 is wrong if the result is one column wide.
    patches = embeddings[:, prefix:].float().contiguous().unflatten(1, old).permute(0, 3, 1, 2)  # (1, C, rows, columns)
    patches = F.interpolate(patches, size=new, mode="bicubic", antialias=True)
    moved = patches.flatten(2).transpose(1, 2).to(embeddings.dtype)  # (1, rows·columns, C)
    return torch.cat([embeddings[:, :prefix], moved], dim=1)
