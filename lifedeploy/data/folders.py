"""A folder with one sub-folder per class, or two such folders for training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lifedeploy.data.left_out import LeftOut
from lifedeploy.data.preprocess import read_image
from lifedeploy.data.sets import ImageSet, as_targets, nothing_found
from lifedeploy.data.walk import Listing, natural_key, once, walk
from lifedeploy.errors import DataError

TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "validation", "valid", "test")
_EXPECTED = "expected one sub-folder of images per class"


class FolderSet(ImageSet):
    """One folder per class, which is named by its path below ``root``; classes and images are in natural order.

    Raises:
        DataError: there are no images, or some are in no class.
    """

    def __init__(self, root: Path, names: Sequence[str], left_out: tuple[LeftOut, ...]) -> None:
        if not names:
            raise DataError(nothing_found(f"{root}/ holds no images", left_out), hint=_EXPECTED)
        loose = next((name for name in names if "/" not in name), None)
        if loose is not None:
            raise DataError(f"{root}/ holds images that are in no class: {loose}", hint=_EXPECTED)
        folders = [name.rpartition("/")[0] for name in names]
        classes = sorted(set(folders), key=natural_key)
        numbers = {name: number for number, name in enumerate(classes)}
        super().__init__(str(root), classes, as_targets(numbers[folder] for folder in folders))
        self.left_out = left_out
        self._root = root
        self._names = tuple(names)

    def filename(self, index: int) -> str:
        return self._names[index]

    def image(self, index: int) -> Image.Image:
        return read_image(self._root / self._names[index])


def folder_halves(root: Path, listing: Listing | None = None) -> dict[str, ImageSet]:
    """``train`` and ``val``, or ``train``, or ``val`` alone, or ``all``; what was found in ``root``, if that is known.

    Raises:
        DataError: a half, or the whole, is no folder of class folders.
    """
    listing = look_through(root) if listing is None else listing
    halves = half_folders(listing.folders)
    if not halves:
        return {"all": FolderSet(root, listing.files, listing.passed.but((), str(root)))}
    beside = _beside(listing, tuple(halves.values()))
    return {
        name: FolderSet(root / folder, listing.below(folder), (*listing.passed.of(folder, str(root / folder)), *beside))
        for name, folder in halves.items()
    }


def look_through(root: Path) -> Listing:
    """What a folder of images holds; halves before what lies beside them, which they may link to.

    Each real file is there once; of two links to one that lies elsewhere, the validation half's.

    Raises:
        DataError: it cannot be opened.
    """
    listing = walk(root, first=lambda folders: half_folders(folders).values())
    measured = half_folders(listing.folders).get("val")
    return once(listing, lambda name: measured is not None and name.startswith(measured + "/"))


def half_folders(folders: Sequence[str]) -> dict[str, str]:
    """Which of the folders in a root are its halves.

    A folder called like a validation half, with others beside it and none to train on, is a class like them.
    """
    halves = named_halves(folders)
    return halves if "train" in halves or len(folders) == 1 else {}


def named_halves(offered: Sequence[str]) -> dict[str, str]:
    """Which names mean ``train`` and ``val``, by the first of a half's names that there is, in any case.

    Never one by both, as none has a name of both kinds.
    """
    halves = {}
    for half, names in (("train", TRAIN_NAMES), ("val", _VAL_NAMES)):
        called = next((called for name in names for called in offered if called.lower() == name), None)
        if called is not None:
            halves[half] = called
    return halves


def _beside(listing: Listing, halves: Sequence[str]) -> tuple[LeftOut, ...]:
    """What lies in the root and in neither half."""
    reason = f"image outside {' and '.join(f'{half}/' for half in halves)}"
    for name in listing.files:
        if "/" not in name or name.partition("/")[0] not in halves:
            listing.passed.add(reason, name)
    return listing.passed.but(halves, str(listing.root))
