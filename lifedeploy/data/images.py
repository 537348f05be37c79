"""Labelled images by index: an image folder, WebDataset shards, or a Hugging Face dataset.

Random access everywhere, so that an epoch's order is a function of a seed and a killed run continues where it was.
A source is written as timm writes it: a folder's path, ``wds/FOLDER`` or ``hfds/NAME``, the last with
``?image=COLUMN&label=COLUMN`` behind it where it has several such columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.folders import folder_halves
from lifedeploy.data.hub import hub_halves
from lifedeploy.data.sets import ImageSet, Subset
from lifedeploy.data.shards import shard_halves
from lifedeploy.data.walk import Listing
from lifedeploy.errors import DataError
from lifedeploy.reading import foreign, read_text
from lifedeploy.writing import atomic_file


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
    given = offered(source)
    if not ("train" in given.sets and "val" in given.sets):
        only = next((name for name in ("all", "train") if name in given.sets), "")
        whole = given.pick(only or ("val" if len(given.sets) == 1 else "train"))
        chosen = _held_out(whole.targets, val_share, seed)
        train, val = Subset(whole, np.flatnonzero(~chosen)), Subset(whole, np.flatnonzero(chosen))
        if not len(val) or not len(train):
            raise DataError(f"{len(whole)} images cannot be split: a share of {val_share:g} leaves {len(val)} held out")
        return Split(train, val, f"{val_share:g} of every class, seed {seed}")
    train_set, val_set = given.sets["train"](), given.sets["val"]()
    if train_set.classes != val_set.classes:
        odd = sorted(set(train_set.classes) ^ set(val_set.classes)) or ["their order"]
        raise DataError(f"training and validation images of {source} have other classes: {', '.join(odd[:5])}")
    return Split(train_set, val_set)


def read_images(source: str, *, split: str = "") -> ImageSet:
    """The images of ``source`` to measure on: its validation half if it has one, else all of it.

    ``split`` is ``train``, ``val``, ``all``, a split of the hub by its own name, or a ``split.csv`` that training wrote
    (its validation half is taken).

    Raises:
        DataError: there are none, or the split does not exist.
    """
    return offered(source).pick(split)


def write_split(path: Path, split: Split) -> None:
    """Which image is in which half, as CSV."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "split"])
        for name, half in (("train", split.train), ("val", split.val)):
            rows.writerows([half.filename(index), name] for index in range(len(half)))


def _listed(whole: ImageSet, path: Path) -> ImageSet:
    try:
        text = read_text(path, DataError)
        with foreign(str(path), DataError):
            wanted = {row["file"] for row in csv.DictReader(io.StringIO(text, newline="")) if row["split"] == "val"}
    except DataError as error:
        raise DataError(f"{path} is no split file: expected columns file and split ({error.message})") from error
    if not wanted:
        raise DataError(f"{path} lists no validation images")
    chosen = [index for index in range(len(whole)) if whole.filename(index) in wanted]
    if len(chosen) != len(wanted):
        raise DataError(
            f"{path} lists {len(wanted)} validation images, and {len(chosen)} of them are in {whole.source}"
        )
    return Subset(whole, np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Offered:
    """What a source has: sets by name, each read when it is asked for."""

    source: str
    sets: Mapping[str, Callable[[], ImageSet]]

    def pick(self, split: str) -> ImageSet:
        """The set that a split's name means, as :func:`read_images` describes it.

        Raises:
            DataError: there is no such split.
        """
        if split.endswith(".csv"):
            # Where both halves were given, the file lists the names in each, and they may be the same in both.
            return _listed(self.pick("val" if {"train", "val"} <= self.sets.keys() else ""), Path(split))
        aliases = {"": ("val", "all", "train"), "train": ("train", "all")}.get(split, (split,))
        read = next((self.sets[name] for name in aliases if name in self.sets), None)
        if read is None:
            wanted = f"no split {split!r}" if split else "neither a validation split nor a training split"
            raise DataError(
                f"{self.source} has {wanted}; it has: {', '.join(self.sets)}", hint="--split takes one of these"
            )
        return read()


def offered(source: str, listing: Listing | None = None) -> Offered:
    """The halves of ``source``: ``train`` and ``val`` or one of them, or ``all``; on the hub, all its splits too.

    ``listing`` is what its folder holds, where that is known.

    Raises:
        DataError: there is no such source, or it holds no images.
    """
    if not source:
        raise DataError("no data is named", hint="--data takes a folder, wds/FOLDER or hfds/NAME")
    kind, _, rest = source.partition("/")
    if kind == "hfds" and rest:
        return Offered(source, hub_halves(rest))
    root = Path(rest if kind == "wds" and rest else source)
    if not root.is_dir():
        raise DataError(f"{root} is no folder", hint="--data takes a folder, wds/FOLDER or hfds/NAME")
    halves = shard_halves(root) if kind == "wds" and rest else folder_halves(root, listing)
    return Offered(source, {name: partial(_itself, half) for name, half in halves.items()})


def _itself(images: ImageSet) -> ImageSet:
    return images


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
