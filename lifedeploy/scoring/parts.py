"""The unit of work: a part of the input, from which one file of rows is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a heavy library
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images that are scored together: some rows of a manifest, or all of a shard."""

    number: int
    begin: int = 0  # of a manifest: its first row, or where that begins, in bytes
    end: int = 0  # and where the part behind it begins
    images: int | None = None  # None: of a shard, not known before it is read
    shard: str = ""  # the name of a shard, below the folder of all
    size: int = 0  # of a shard, bytes


@dataclass(frozen=True)
class Item:
    """An image to be scored. ``read`` decodes it to RGB, and raises ImageError of one that cannot be."""

    name: str
    read: Callable[[], Image.Image]
