"""Images whose classes do not matter: to calibrate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lifedeploy.data.folders import look_through
from lifedeploy.data.images import offered
from lifedeploy.data.preprocess import read_image
from lifedeploy.data.sets import ImageSet, nothing_found
from lifedeploy.data.walk import Listing
from lifedeploy.errors import DataError


class LooseSet(ImageSet):
    """The image files that lie in a folder, in the order of their names; they are of no class."""

    def __init__(self, root: Path, listing: Listing) -> None:
        self._root = root
        self._names = sorted(name for name in listing.files if "/" not in name)
        super().__init__(str(root), (), np.full(len(self._names), -1, dtype=np.int64))
        self.left_out = listing.passed.but((), str(root))

    def filename(self, index: int) -> str:
        return self._names[index]

    def image(self, index: int) -> Image.Image:
        return read_image(self._root / self._names[index])


def read_unlabelled(source: str, *, split: str = "") -> ImageSet:
    """Images of a folder, of class folders, of shards or of a hub data set; of its training half unless told.

    What a model is measured on should not be what it was calibrated on.

    Raises:
        DataError: there are none, or the split does not exist, or it cannot be told which images are meant.
    """
    root, listing = Path(source), None
    if source and root.is_dir():
        listing = look_through(root)
        loose = LooseSet(root, listing)
        inside = next((name for name in listing.files if "/" in name), None)
        if len(loose) and inside is not None:
            raise DataError(
                f"{root}/ holds images and folders with images: {loose.filename(0)}, {inside}",
                hint="--data takes either: name one of the folders, or take the other images away",
            )
        if not listing.files:
            message = nothing_found(f"{root}/ holds no images", loose.left_out)
            raise DataError(message, hint="expected images, or folders with images")
        if len(loose):
            if split not in ("", "all"):
                raise DataError(f"{root}/ is one set of images, so it has no split {split!r}", hint="leave out --split")
            return loose
    given = offered(source, listing)
    trained_on = "train" in given.sets or "all" in given.sets
    return given.pick(split or ("train" if trained_on else ""))  # without: a validation half alone
