"""Images whose classes do not matter: to calibrate on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from lifedeploy.data.images import ImageSet, read_images
from lifedeploy.data.preprocess import decode_image
from lifedeploy.errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class LooseSet(ImageSet):
    """The image files that lie in a folder, in the order of their names; they are of no class."""

    def __init__(self, root: Path) -> None:
        self._paths = sorted(path for path in root.iterdir() if _is_image(path))
        super().__init__(str(root), (), np.full(len(self._paths), -1, dtype=np.int64))

    def filename(self, index: int) -> str:
        return self._paths[index].name

    def image(self, index: int) -> Image.Image:
        return decode_image(self._paths[index], str(self._paths[index]))


def read_unlabelled(source: str, *, split: str = "") -> ImageSet:
    """Images of a folder, of class folders, of shards or of a hub data set; of its training half unless told.

    What a model is measured on should not be what it was calibrated on.

    Raises:
        DataError: there are none, or the split does not exist, or it cannot be told which images are meant.
    """
    root = Path(source)
    if root.is_dir():
        loose = LooseSet(root)
        inside = _first_inside(root)
        if len(loose) and inside is not None:
            raise DataError(
                f"{root}/ holds images and folders with images: {loose.filename(0)}, {inside.relative_to(root)}",
                hint="--data takes either: name one of the folders, or take the other images away",
            )
        if not len(loose) and inside is None:
            raise DataError(f"{root}/ holds no images", hint="expected images, or folders with images")
        if len(loose):
            if split not in ("", "all"):
                raise DataError(f"{root}/ is one set of images, so it has no split {split!r}", hint="leave out --split")
            return loose
    if split:
        return read_images(source, split=split)
    try:
        return read_images(source, split="train")
    except DataError as error:
        if "no split" in error.message:  # a validation half alone
            return read_images(source)
        raise


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS and path.is_file()


def _first_inside(root: Path) -> Path | None:
    """An image in a folder of ``root``, however deep, links followed as timm follows them; not in hidden folders."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(folder) != root:
            found = next((path for path in (Path(folder, name) for name in files) if _is_image(path)), None)
            if found is not None:
                return found
    return None
