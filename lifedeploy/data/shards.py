"""WebDataset shards: tar files with images and ``.cls`` files, indexed once and read by offset."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from lifedeploy.data.folders import TRAIN_NAMES
from lifedeploy.data.formats import endings, require_plausible
from lifedeploy.data.left_out import LeftOut, LeftOutCounter
from lifedeploy.data.preprocess import decode_image
from lifedeploy.data.sets import ImageSet, as_targets, nothing_found, numbered
from lifedeploy.data.tar import Entry, entries
from lifedeploy.data.walk import nameless, once, walk
from lifedeploy.errors import DataError, ImageError
from lifedeploy.files import is_lfs_pointer
from lifedeploy.reading import foreign, read_text, reason, require_regular
from lifedeploy.text import quoted
from lifedeploy.typed import MOST_CLASSES

CLASSES = "classes.txt"
_LABEL = ".cls"
_NO_LABEL = -1
_LONGEST_LABEL = 64  # bytes: white space and a number
_BOM = b"\xef\xbb\xbf"
_VAL_STARTS = ("val", "test")  # the second only where there are none of the first, as with folders
_GZIP = b"\x1f\x8b"


class ShardSet(ImageSet):
    """The images of ``*.tar`` files with ``KEY.jpg`` and ``KEY.cls`` in them, a class index as text.

    Class names come from ``classes.txt`` beside the shards, one per line, if there is one.

    Raises:
        DataError: a shard cannot be read, there is no labelled image, or a label has no name.
    """

    def __init__(self, root: Path, shards: Sequence[Path], left_out: tuple[LeftOut, ...] = ()) -> None:
        passed = LeftOutCounter()
        members = [member for shard in shards for member in _Index(shard, passed).members()]
        inside = passed.but((), f"wds/{root}", unit="member")
        if not members:
            message = f"{root}/ has {len(shards)} shards without a single pair of image and .cls in them"
            raise DataError(nothing_found(message, inside))
        top = max(member.label for member in members)
        classes = _class_names(root / CLASSES) or numbered(top, len(members), f"wds/{root}")
        if top >= len(classes):
            raise DataError(f"{root}/ has a class {top}, and {CLASSES} names {len(classes)}")
        super().__init__(f"wds/{root}", classes, as_targets(member.label for member in members))
        self.left_out = (*left_out, *inside)
        self._members = members

    def filename(self, index: int) -> str:
        member = self._members[index]
        return f"{member.shard.name}/{member.key}"

    def image(self, index: int) -> Image.Image:
        member = self._members[index]
        name = self.filename(index)
        require_plausible(member.size, name)
        with foreign(name, ImageError), member.shard.open("rb") as file:
            file.seek(member.offset)
            return decode_image(io.BytesIO(file.read(member.size)), name)


def shard_halves(root: Path) -> dict[str, ImageSet]:
    """``train`` and ``val``, if shards of both are there by their names, else ``all``.

    Raises:
        DataError: there are no shards, or they cannot be read.
    """
    listing = walk(root, {".tar"}, word="shard", known=(CLASSES,))
    listing = once(listing, lambda name: name.lower().startswith(_VAL_STARTS))
    names = [name for name in listing.files if "/" not in name]
    beside = listing.passed
    for name in listing.files:
        if "/" in name:
            beside.add("shard in a folder beside the others", name)
    if not names:
        raise DataError(nothing_found(f"{root}/ holds no .tar shards", beside.but((), str(root))))
    train = _starting(names, TRAIN_NAMES[0])
    val = next(filter(None, (_starting(names, start) for start in _VAL_STARTS)), [])
    if not (train and val):
        return {"all": ShardSet(root, [root / name for name in names], beside.but((), str(root)))}
    for name in names:
        if name not in train and name not in val:
            beside.add("shard of neither half by name", name)
    left = beside.but((), str(root))
    return {
        half: ShardSet(root, [root / name for name in part], left) for half, part in (("train", train), ("val", val))
    }


def _starting(names: Sequence[str], start: str) -> list[str]:
    return [name for name in names if name.lower().startswith(start)]


def _class_names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        text = read_text(path, DataError).replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    except DataError as error:
        raise DataError(f"{path} is no list of class names: {error.message}") from error
    if text.count("\n") >= MOST_CLASSES:
        raise DataError(f"{path} names {text.count(chr(10)) + 1:,} classes; expected at most {MOST_CLASSES:,}")
    names = text.split("\n")
    if names != [""] and "" in names:
        raise DataError(
            f"{path} has no name on line {names.index('') + 1}; expected the name of class {names.index('')}",
            hint="one class per line, in the order of the labels",
        )
    return [name for name in names if name]


@dataclass(frozen=True, kw_only=True)
class _Member:
    shard: Path
    key: str  # the name without its ending: unique in a shard
    offset: int
    size: int
    label: int


class _Index:
    """Images and labels of one shard, in pairs.

    A label has the name of its image up to the last ending, or else, as WebDataset has it, up to the first dot, which
    names a sample of perhaps several images: then it is the label of the one that is named like the sample.
    """

    def __init__(self, shard: Path, passed: LeftOutCounter) -> None:
        self._shard, self._passed = shard, passed
        self._entries: dict[str, Entry] = {}
        self._labels: dict[str, int] = {}
        size = require_regular(shard, DataError)
        try:
            with shard.open("rb") as file:
                for entry in entries(file, size):
                    self._take(entry, file)
        except Exception as error:
            raise _unreadable(shard, error) from error

    def members(self) -> list[_Member]:
        """The images with a label, in the order they lie in."""
        claims: dict[str, list[str]] = {}
        for name in self._entries:
            label = self._label_of(name)
            if label is None:
                self._pass("image without a label", name)
            else:
                claims.setdefault(label, []).append(name)
        chosen = {label: self._chosen(label, names) for label, names in claims.items()}
        for label in self._labels:
            if chosen.get(label) is None:
                self._pass("label of no image that is used", label + _LABEL)
        labels = {name: self._labels[label] for label, name in chosen.items() if name is not None}
        return [self._member(name, labels[name]) for name in self._entries if name in labels]

    def _take(self, entry: Entry, file: IO[bytes]) -> None:
        name = entry.name
        stem, ending = _split(name)
        if entry.folder:
            return
        unnamed = next(filter(None, (nameless(part) for part in name.split("/") if part != ".")), "")
        if unnamed:
            self._pass(unnamed, name)
        elif ending not in endings() and ending != _LABEL:
            self._passed.add("neither image nor label by ending", f"{self._shard.name}/{name}", ending=ending)
        elif not entry.plain:
            self._pass("no plain file", name)
        elif ending == _LABEL:
            if stem in self._labels:
                self._pass("replaced by a later member of the same name", name)
            self._labels[stem] = _number_in(file, entry)
        else:
            if self._entries.pop(name, None) is not None:
                self._pass("replaced by a later member of the same name", name)
            self._entries[name] = entry

    def _label_of(self, name: str) -> str | None:
        return next((key for key in (_split(name)[0], _sample(name)) if key in self._labels), None)

    def _chosen(self, label: str, names: list[str]) -> str | None:
        """The one image that a label is of, if that can be told; the others are passed over."""
        plain = [name for name in names if _split(name)[0] == _sample(name)]
        chosen = names[0] if len(names) == 1 else plain[0] if len(plain) == 1 else None
        for name in names:
            if name != chosen:
                self._pass("another image of its sample" if chosen else "one of several images for one label", name)
        if chosen is not None and self._labels[label] == _NO_LABEL:
            self._pass("image of label -1, which means none", chosen)
            return None
        return chosen

    def _member(self, name: str, label: int) -> _Member:
        entry = self._entries[name]
        return _Member(shard=self._shard, key=_split(name)[0], offset=entry.offset, size=entry.size, label=label)

    def _pass(self, reason: str, name: str) -> None:
        self._passed.add(reason, f"{self._shard.name}/{name}")


def _split(name: str) -> tuple[str, str]:
    """A member's name without its last ending, and that ending in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.rpartition(".")
    return (folder + slash + stem, dot + ending.lower()) if dot else (name, "")


def _sample(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _number_in(file: IO[bytes], entry: Entry) -> int:
    file.seek(entry.offset)
    content = file.read(min(entry.size, _LONGEST_LABEL + 1)).removeprefix(_BOM)
    if entry.size > _LONGEST_LABEL or not re.fullmatch(rb"\s*(-1|\d{1,9})\s*", content):
        shown = content[:20].decode("utf-8", "backslashreplace")
        raise ValueError(f"{entry.name} holds {quoted(shown)}; expected the index of a class, or -1 for none")
    return int(content)


def _unreadable(shard: Path, error: Exception) -> DataError:
    if shard.is_file() and is_lfs_pointer(shard):
        return DataError(f"{shard} is a Git LFS pointer, not the shard", hint="git lfs pull")
    hint = None
    if shard.is_file():
        with shard.open("rb") as file:
            hint = "it is compressed: gunzip it" if file.read(len(_GZIP)) == _GZIP else None
    return DataError(f"{shard} is no WebDataset shard that can be read: {reason(error)}", hint=hint)
