"""Small images, and the places they are kept in, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lifedeploy.data.sets import ImageSet


def picture(value: int, mode: str = "RGB") -> Image.Image:
    """An image that shows its number."""
    return Image.new("RGB", (12, 10), (value, 0, 255 - value)).convert(mode)


def encoded(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, kind)
    return buffer.getvalue()


def class_folders(root: Path, counts: Mapping[str, int]) -> Path:
    """Class folders with so many images each."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(10 * number + index).save(root / name / f"{index}.png")
    return root


def shard(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> None:
    """A tar file; a member whose content is ``LINK`` is a link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            if content == LINK:
                entry.type, entry.linkname = tarfile.SYMTYPE, "elsewhere"
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


LINK = b"a link"


def names(images: ImageSet) -> list[str]:
    return [images.filename(index) for index in range(len(images))]


def reasons(images: ImageSet) -> dict[str, int]:
    """Why images are left out, and how many."""
    counts: dict[str, int] = {}
    for left in images.left_out:
        counts[left.reason] = counts.get(left.reason, 0) + left.count
    return counts


class OneImage(ImageSet):
    """A set of one image, of the one class there is."""

    def __init__(self, shown: Image.Image) -> None:
        super().__init__("one", ("a",), np.zeros(1, dtype=np.int64))
        self._shown = shown

    def filename(self, index: int) -> str:
        return "one.png"

    def image(self, index: int) -> Image.Image:
        return self._shown
