"""What every set of labelled images can do, wherever its images lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.data.left_out import LeftOut
from lifedeploy.errors import DataError
from lifedeploy.typed import MOST_CLASSES

_UNNAMED = 100_000  # classes that are taken to be there if a label says so, whatever the number of images
_LONGEST_NAME = 4096  # characters of a class's name: what a model's description may hold


class ImageSet(ABC):
    """Labelled images. ``targets[i]`` is the class of image ``i``, an index into ``classes``.

    ``left_out`` says what lies where they lie and is not among them, and why: with the images it is all that is there.
    """

    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, source: str, classes: Sequence[str], targets: NDArray[np.int64]) -> None:
        longest = max(map(len, classes), default=0)
        if longest > _LONGEST_NAME:
            raise DataError(
                f"{source} has a class whose name has {longest:,} characters; at most {_LONGEST_NAME:,} are taken"
            )
        self.source = source
        self.classes = tuple(classes)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def filename(self, index: int) -> str:
        """The image's name, unique in the set and the same on every machine: a path below the source."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image as RGB.

        Raises:
            ImageError: it cannot be decoded.
        """


class Subset(ImageSet):
    """Some images of another set, in the order given."""

    def __init__(self, whole: ImageSet, indices: NDArray[np.int64]) -> None:
        super().__init__(whole.source, whole.classes, whole.targets[indices])
        self.left_out = whole.left_out
        self._whole = whole
        self._indices = indices

    def filename(self, index: int) -> str:
        return self._whole.filename(int(self._indices[index]))

    def image(self, index: int) -> Image.Image:
        return self._whole.image(int(self._indices[index]))


def evenly(images: ImageSet, count: int) -> ImageSet:
    """At most ``count`` images, at even distances: folders come class by class, so the first ones would be of one."""
    if count >= len(images):
        return images
    return Subset(images, np.arange(count, dtype=np.int64) * len(images) // count)


def describe(images: ImageSet) -> dict[str, Any]:
    """What a report says of a set."""
    counts = np.bincount(images.targets, minlength=len(images.classes))
    return {
        "source": images.source,
        "images": len(images),
        "classes": dict(zip(images.classes, counts.tolist(), strict=True)),
        "left_out": [asdict(left) for left in images.left_out],
    }


def as_targets(values: Iterable[int]) -> NDArray[np.int64]:
    """Class indices, (N,)."""
    return np.fromiter(values, dtype=np.int64)


def numbered(largest: int, images: int, where: str) -> list[str]:
    """Names for classes that have none: their numbers.

    Raises:
        DataError: there would be more than data sets have, and more than ``images``: then ``largest`` is no class.
    """
    most = min(max(_UNNAMED, images), MOST_CLASSES)
    if largest >= most:
        raise DataError(f"{where} has a label {largest:,} and no names of classes; expected below {most:,}")
    return [str(index) for index in range(largest + 1)]


def nothing_found(what: str, left: Sequence[LeftOut]) -> str:
    """``what``, and the reasons why what is there was not taken."""
    return "; ".join([what, *map(str, left)])
