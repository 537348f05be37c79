"""Labelled images by index: an image folder, WebDataset shards, or a Hugging Face dataset.

Random access everywhere, so that an epoch's order is a function of a seed and a killed run continues where it was.
A source is written as timm writes it: a folder's path, ``wds/FOLDER`` or ``hfds/NAME``.
"""

from __future__ import annotations

import csv
import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.data.preprocess import decode_image
from lifedeploy.errors import DataError
from lifedeploy.files import atomic_file
from lifedeploy.optional import require

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
_WDS_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")


class ImageSet(ABC):
    """Labelled images. ``targets[i]`` is the class of image ``i``, an index into ``classes``."""

    def __init__(self, source: str, classes: Sequence[str], targets: NDArray[np.int64]) -> None:
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
        self._whole = whole
        self._indices = indices

    def filename(self, index: int) -> str:
        return self._whole.filename(int(self._indices[index]))

    def image(self, index: int) -> Image.Image:
        return self._whole.image(int(self._indices[index]))


class FolderSet(ImageSet):
    """One folder per class, as timm and torchvision read it: classes in natural order of their names."""

    def __init__(self, root: Path) -> None:
        from timm.data.readers.reader_image_folder import find_images_and_targets

        found, numbers = find_images_and_targets(str(root))
        if not found:
            raise DataError(f"{root}/ holds no images", hint="expected one sub-folder of images per class")
        loose = [Path(path).name for path, _ in found if Path(path).parent == root]
        if loose:
            raise DataError(
                f"{root}/ holds images that are in no class: {loose[0]}",
                hint="expected one sub-folder of images per class",
            )
        super().__init__(str(root), sorted(numbers, key=lambda name: numbers[name]), _targets(t for _, t in found))
        self._root = root
        self._paths = [Path(path) for path, _ in found]

    def filename(self, index: int) -> str:
        return self._paths[index].relative_to(self._root).as_posix()

    def image(self, index: int) -> Image.Image:
        return decode_image(self._paths[index], str(self._paths[index]))


@dataclass(frozen=True)
class _Member:
    shard: int
    key: str
    offset: int
    size: int


class ShardSet(ImageSet):
    """WebDataset shards in a folder (``*.tar`` with ``KEY.jpg`` and ``KEY.cls``), indexed once and read by offset.

    Class names come from ``classes.txt`` beside the shards, one per line, if there is one.
    """

    def __init__(self, root: Path, shards: Sequence[Path]) -> None:
        members: list[_Member] = []
        targets: list[int] = []
        for number, shard in enumerate(shards):
            for member, target in _index_shard(number, shard):
                members.append(member)
                targets.append(target)
        if not members:
            raise DataError(f"{root}/ has {len(shards)} shards without a single pair of image and .cls in them")
        names = root / "classes.txt"
        classes = names.read_text(encoding="utf-8").split("\n") if names.is_file() else []
        classes = [name for name in classes if name] or [str(index) for index in range(max(targets) + 1)]
        if max(targets) >= len(classes) or min(targets) < 0:
            raise DataError(f"{root}/ has a class {max(targets)}, and {names.name} names {len(classes)}")
        super().__init__(f"wds/{root}", classes, _targets(targets))
        self._members = members
        self._shards = list(shards)

    def filename(self, index: int) -> str:
        member = self._members[index]
        return f"{self._shards[member.shard].name}/{member.key}"

    def image(self, index: int) -> Image.Image:
        member = self._members[index]
        with self._shards[member.shard].open("rb") as file:
            file.seek(member.offset)
            return decode_image(io.BytesIO(file.read(member.size)), self.filename(index))


def _index_shard(number: int, shard: Path) -> list[tuple[_Member, int]]:
    images: dict[str, _Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard) as archive:
            for entry in archive:
                folder, _, name = entry.name.rpartition("/")
                stem, _, ending = name.partition(".")  # a WebDataset key ends at the first dot
                key = f"{folder}/{stem}" if folder else stem
                if ending.lower() in _WDS_IMAGES:
                    images[key] = _Member(number, key, entry.offset_data, entry.size)
                elif ending == "cls":
                    content = archive.extractfile(entry)
                    labels[key] = int(content.read()) if content else -1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{shard} is no WebDataset shard that can be read: {error}") from error
    return [(member, labels[key]) for key, member in images.items() if key in labels]


class HubSet(ImageSet):
    """A Hugging Face dataset with an image and a class column, read by timm."""

    def __init__(self, name: str, split: str) -> None:
        require("datasets", extra="datasets")
        from timm.data.readers.reader_hfds import ReaderHfds

        try:
            self._reader: Any = ReaderHfds(name, split=split)
            targets = _targets(self._reader.iter_targets())
        except Exception as error:  # the library raises errors of its own, of pyarrow, of the hub and of the network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"Hugging Face dataset {name}, split {split}, cannot be read: {reason}") from error
        numbers = self._reader.class_to_idx
        classes = sorted(numbers, key=lambda label: numbers[label]) if numbers else map(str, range(targets.max() + 1))
        super().__init__(f"hfds/{name}", list(classes), targets)
        self._split = split

    def filename(self, index: int) -> str:
        return f"{self._split}/{index}"

    def image(self, index: int) -> Image.Image:
        content, _ = self._reader[index]
        with content:
            return decode_image(content, self.filename(index))


def _targets(values: Any) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """Images to train on and images to measure on. ``held_out`` says how the latter were chosen, if not given."""

    train: ImageSet
    val: ImageSet
    held_out: str = ""


def read_split(source: str, *, val_share: float = 0.1, seed: int = 0) -> Split:
    """Training and validation images of ``source``: as they lie, or with a share of every class held out.

    Raises:
        DataError: there are no images, or the two halves have other classes.
    """
    given = _halves(source)
    if len(given) == 1:
        whole = next(iter(given.values()))
        chosen = _held_out(whole.targets, val_share, seed)
        train, val = Subset(whole, np.flatnonzero(~chosen)), Subset(whole, np.flatnonzero(chosen))
        if not len(val) or not len(train):
            raise DataError(f"{len(whole)} images cannot be split: a share of {val_share:g} leaves {len(val)} held out")
        return Split(train, val, f"{val_share:g} of every class, seed {seed}")
    train_set, val_set = given["train"], given["val"]
    if train_set.classes != val_set.classes:
        odd = sorted(set(train_set.classes) ^ set(val_set.classes)) or ["their order"]
        raise DataError(f"training and validation images of {source} have other classes: {', '.join(odd[:5])}")
    return Split(train_set, val_set)


def read_images(source: str, *, split: str = "") -> ImageSet:
    """The images of ``source`` to measure on: its validation half if it has one, else all of it.

    ``split`` is ``train``, ``val``, ``all``, or a ``split.csv`` that training wrote (its validation half is taken).

    Raises:
        DataError: there are none, or the split does not exist.
    """
    given = _halves(source)
    if split.endswith(".csv"):
        return _listed(given.get("all") or given.get("train") or given["val"], Path(split))
    if split in ("", "val"):
        found = given.get("val") or (None if split else given.get("all") or given.get("train"))
    elif split == "train":
        found = given.get("train") or given.get("all")
    elif split == "all" and "all" in given:
        found = given["all"]
    else:
        found = None
    if found is None:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(given)}")
    return found


def write_split(path: Path, split: Split) -> None:
    """Which image is in which half, as CSV."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "split"])
        for name, half in (("train", split.train), ("val", split.val)):
            rows.writerows([half.filename(index), name] for index in range(len(half)))


def _listed(whole: ImageSet, path: Path) -> ImageSet:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            wanted = {row["file"] for row in csv.DictReader(file) if row["split"] == "val"}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no split file: expected columns file and split ({error})") from error
    if not wanted:
        raise DataError(f"{path} lists no validation images")
    chosen = [index for index in range(len(whole)) if whole.filename(index) in wanted]
    if len(chosen) != len(wanted):
        raise DataError(
            f"{path} lists {len(wanted)} validation images, and {len(chosen)} of them are in {whole.source}"
        )
    return Subset(whole, np.asarray(chosen, dtype=np.int64))


def _halves(source: str) -> dict[str, ImageSet]:
    """What ``source`` offers: ``train`` and ``val``, or ``train``, or ``all``."""
    kind, _, rest = source.partition("/")
    if kind == "hfds" and rest:
        return _hub_halves(rest)
    root = Path(rest if kind == "wds" and rest else source)
    if not root.is_dir():
        raise DataError(f"{root} is no folder", hint="--data takes a folder, wds/FOLDER or hfds/NAME")
    if kind == "wds" and rest:
        return _shard_halves(root)
    train, val = (_first_folder(root, names) for names in (TRAIN_NAMES, VAL_NAMES))
    if train is None:
        found = val if val is not None and _only_folder(root, val) else root
        return {"all" if found == root else "val": FolderSet(found)}
    halves: dict[str, ImageSet] = {"train": FolderSet(train)}
    return halves | ({"val": FolderSet(val)} if val is not None else {})


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _only_folder(root: Path, folder: Path) -> bool:
    return [path for path in root.iterdir() if path.is_dir()] == [folder]


def _shard_halves(root: Path) -> dict[str, ImageSet]:
    shards = sorted(root.glob("*.tar"))
    if not shards:
        raise DataError(f"{root}/ holds no .tar shards")
    halves = {
        name: [shard for shard in shards if shard.name.startswith(names)]
        for name, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES))
    }
    if halves["train"] and halves["val"]:
        return {name: ShardSet(root, part) for name, part in halves.items()}
    return {"all": ShardSet(root, shards)}


def _hub_halves(name: str) -> dict[str, ImageSet]:
    datasets: Any = require("datasets", extra="datasets")
    try:
        offered = list(datasets.get_dataset_split_names(name))
    except Exception as error:  # of the hub, of the network, of the file system
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"Hugging Face dataset {name} cannot be found: {reason}") from error
    train = next((split for split in TRAIN_NAMES if split in offered), offered[0])
    val = next((split for split in VAL_NAMES if split in offered), None)
    halves: dict[str, ImageSet] = {"train": HubSet(name, train)}
    return halves | ({"val": HubSet(name, val)} if val else {})


def _held_out(targets: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """A share of every class, drawn with ``seed``; at least one image of a class that has two."""
    if not 0 < share < 1:
        raise DataError(f"a share of {share:g} cannot be held out: it must be between 0 and 1")
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), dtype=bool)
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        chosen[generator.permutation(members)[:count]] = True
    return chosen


def describe(images: ImageSet) -> dict[str, Any]:
    """What a report says of a set."""
    counts = np.bincount(images.targets, minlength=len(images.classes))
    return {
        "source": images.source,
        "images": len(images),
        "classes": dict(zip(images.classes, counts.tolist(), strict=True)),
    }
