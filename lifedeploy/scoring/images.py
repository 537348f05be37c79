"""The images in a part of an input: by their names below a folder, at addresses, or in a shard."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lifedeploy.data.formats import largest_file, require_plausible
from lifedeploy.data.preprocess import decode_image
from lifedeploy.data.tar import entries
from lifedeploy.data.walk import nameless
from lifedeploy.errors import DataError, ImageError, UsageError
from lifedeploy.reading import reason
from lifedeploy.scoring.listing import is_image
from lifedeploy.scoring.manifests import manifest_at
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.scoring.places import LocalPlace, Place, located, place_of
from lifedeploy.scoring.sources import Source

if TYPE_CHECKING:  # a heavy library
    from PIL import Image


class Reader:
    """The images in parts of a source."""

    def __init__(self, source: Source) -> None:
        self._root = place_of(source.root)
        self._table = manifest_at(place_of(source.manifest), source.column).resolved() if source.manifest else None

    def items(self, part: Part) -> Iterator[Item]:
        """The images in a part, in their order.

        Raises:
            DataError: the manifest cannot be read any more, or a shard cannot be reached.
        """
        if self._table is None:
            yield from self._in_shard(part)
            return
        for name in self._table.names(part):
            yield Item(name, partial(read_at, self._root, name) if name else _unnamed)

    def _in_shard(self, part: Part) -> Iterator[Item]:
        with _shard_here(located(self._root, part.shard)) as shard, shard.path.open("rb") as file:
            try:
                for entry in entries(file, shard.size):
                    hidden = any(nameless(step) for step in entry.name.split("/") if step != ".")
                    if not entry.folder and not hidden and is_image(entry.name):
                        name = f"{part.shard}/{entry.name}"
                        where = (entry.offset, entry.size) if entry.plain else None
                        yield Item(name, partial(shard.image, name, where))
            except (ValueError, OSError) as error:  # what lies behind a damaged header is lost, and nothing else
                yield Item(part.shard, partial(_refuse, f"{part.shard} cannot be read on: {reason(error)}"))


def read_at(root: Place, name: str) -> Image.Image:
    """The image called ``name``, as RGB.

    Raises:
        ImageError: it is not there, or cannot be decoded.
        DataError: where it is cannot be reached: later it may be.
    """
    try:
        place = located(root, name)
    except UsageError as error:  # of a manifest's row, which is one of many
        raise ImageError(error.message) from error
    if isinstance(place, LocalPlace):
        return decode_image(place.path, name)
    try:
        data = place.read(0, largest_file() + 1)
    except FileNotFoundError as error:
        raise ImageError(f"image {name} does not exist") from error
    except DataError as error:
        if not place.alone:
            raise
        raise ImageError(error.message) from error  # one host of many
    require_plausible(len(data), name)
    return decode_image(io.BytesIO(data), name)


@contextmanager
def _shard_here(place: Place) -> Iterator[_Shard]:
    try:
        with place.here() as path:
            yield _Shard(path)
    except FileNotFoundError as error:
        raise DataError(f"{place} does not exist any more") from error


class _Shard:
    """A tar file on this machine. It can be read when its name is gone, for as long as images of it are to be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def image(self, name: str, where: tuple[int, int] | None) -> Image.Image:
        """The image that lies at an offset, and of a size."""
        if where is None:
            _refuse(f"{name} is no plain file in its shard")
        offset, size = where
        require_plausible(size, name)
        return decode_image(io.BytesIO(os.pread(self._descriptor, size, offset)), name)


def _unnamed() -> NoReturn:
    _refuse("the manifest names no image here")


def _refuse(message: str) -> NoReturn:
    raise ImageError(message)
