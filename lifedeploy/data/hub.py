"""Data sets of the Hugging Face Hub, or of its library in a folder: an image column and a label column."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.data.folders import named_halves
from lifedeploy.data.left_out import LeftOutCounter
from lifedeploy.data.preprocess import decode_image
from lifedeploy.data.sets import ImageSet, numbered
from lifedeploy.errors import DataError, ImageError
from lifedeploy.optional import require
from lifedeploy.reading import foreign, reason

_NO_LABEL = -1
# What integers have to be called to be taken for classes: others are widths, ages and identifiers.
_LABELS = ("label", "labels", "target", "targets", "class", "classes", "cls", "category", "fine", "coarse")
_LABELS_IN_TWO_WORDS = ("fine_label", "coarse_label", "label_id", "class_id", "category_id")
_ROWS = 100_000  # looked at together


@dataclass(frozen=True)
class _Source:
    """``NAME?image=COLUMN&label=COLUMN``, taken apart."""

    name: str
    image: str = ""
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> _Source:
        name, _, query = text.partition("?")
        pairs = parse_qsl(query, keep_blank_values=True)
        chosen = dict(pairs)
        unknown = [key for key in chosen if key not in ("image", "label")]
        if unknown or not all(chosen.values()) or len(chosen) < len(pairs) or (query and not chosen):
            raise DataError(
                f"hfds/{name} is asked for {query!r}; expected columns of image and label",
                hint="hfds/NAME?image=COLUMN&label=COLUMN",
            )
        return cls(name, **chosen)


class HubSet(ImageSet):
    """One split of a Hugging Face dataset: ``NAME``, or ``NAME?image=COLUMN&label=COLUMN`` where it has several.

    Without being told, the one column of images is taken, and the one of class labels, or else the one of integers
    that is named like them; of several, the one called ``image`` or ``label``. Rows without an image, and those with no
    label or -1 for one, are left out.

    Raises:
        DataError: it cannot be read, has no such columns or several, or none of its rows has a label.
    """

    def __init__(self, name: str, split: str) -> None:
        datasets: Any = require("datasets", extra="datasets")
        source = _Source.parse(name)
        where = f"Hugging Face dataset {source.name}, split {split},"
        with foreign(where, DataError):  # it raises errors of its own, of pyarrow, of the hub and of the network
            rows = datasets.load_dataset(source.name, split=split)
        image = _column(source, "image", rows.features, lambda key, kind: _holds_images(kind, datasets), where)
        label = _label_column(source, rows.features, datasets, where)
        names = list(getattr(rows.features[label], "names", None) or ())
        with foreign(where, DataError):
            rows = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
            labels, there = _labels_and_images(rows, label, image)
        _check_labels(labels, there, names, f"{where} column {label},")
        used = np.flatnonzero(there & (labels != _NO_LABEL))
        passed = LeftOutCounter()
        for why, rest in (
            ("no image", ~there),
            (f"no label in {label}, or -1 for none", there & (labels == _NO_LABEL)),
        ):
            if rest.any():
                passed.add(why, f"{split}/{int(np.flatnonzero(rest)[0])}", count=int(rest.sum()))
        classes = names or numbered(int(labels.max()), len(used), f"{where} column {label},")
        super().__init__(f"hfds/{name}", classes, labels[used])
        self.left_out = passed.but((), f"hfds/{source.name}", unit="row")
        self._rows = rows.select_columns([image])
        self._used, self._image, self._split = used, image, split

    def filename(self, index: int) -> str:
        return f"{self._split}/{self._used[index]}"

    def image(self, index: int) -> Image.Image:
        name = f"{self.source} {self.filename(index)}"
        with foreign(name, ImageError):
            content = self._rows[int(self._used[index])][self._image]
            if content["bytes"]:
                return decode_image(io.BytesIO(content["bytes"]), name)
            return decode_image(Path(content["path"] or ""), f"{name} ({content['path']})")


def hub_halves(source: str) -> dict[str, Callable[[], ImageSet]]:
    """``train`` and ``val``, as far as they are there, and every split under its own name; ``all`` if there is one.

    Raises:
        DataError: there is no such data set.
    """
    datasets: Any = require("datasets", extra="datasets")
    name = _Source.parse(source).name
    try:
        offered = list(datasets.get_dataset_split_names(name))
    except Exception as error:  # of the hub, of the network, of the file system
        raise DataError(f"Hugging Face dataset {name} cannot be found: {reason(error)}") from error
    halves = {"all": offered[0]} if len(offered) == 1 else named_halves(offered)
    return {key: partial(HubSet, source, split) for key, split in (halves | {key: key for key in offered}).items()}


def _label_column(source: _Source, features: Mapping[str, Any], datasets: Any, where: str) -> str:
    def labels(key: str, kind: Any) -> bool:
        return isinstance(kind, datasets.ClassLabel)

    def integers(key: str, kind: Any) -> bool:
        whole = str(getattr(kind, "dtype", "")).startswith(("int", "uint"))
        return whole and (key == source.label or key.lower() in (*_LABELS, *_LABELS_IN_TWO_WORDS))

    named = any(labels(key, kind) for key, kind in features.items() if source.label in ("", key))
    return _column(source, "label", features, labels if named else integers, where)


def _column(
    source: _Source, role: str, features: Mapping[str, Any], fits: Callable[[str, Any], bool], where: str
) -> str:
    """The column that was chosen for a role, or the only one that fits it, or of several the one called like it."""
    chosen = getattr(source, role)
    fitting = [key for key, kind in features.items() if fits(key, kind) and chosen in ("", key)]
    if len(fitting) == 1:
        return fitting[0]
    if role in fitting:
        return role
    columns = ", ".join(f"{key} ({_kind(kind)})" for key, kind in features.items())
    if chosen:
        problem = f"has no {role} column {chosen!r}" if chosen not in features else f"has no {role}s in {chosen!r}"
    else:
        several = f"has {len(fitting)} columns that may be the {role}: {', '.join(fitting)}"
        problem = several if fitting else f"has no {role} column"
    known = f"image={source.image}&" if role == "label" and source.image else ""
    raise DataError(f"{where} {problem}; its columns are: {columns}", hint=f"hfds/{source.name}?{known}{role}=COLUMN")


def _holds_images(kind: Any, datasets: Any) -> bool:
    """Also what a table without the library's own notes on it makes of them: bytes and path."""
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def _kind(kind: Any) -> str:
    names = getattr(kind, "names", None)
    if names:
        return f"{type(kind).__name__} of {len(names)}"
    return str(getattr(kind, "dtype", type(kind).__name__)) if type(kind).__name__ == "Value" else type(kind).__name__


def _labels_and_images(rows: Any, label: str, image: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Every row's label, -1 where there is none, and whether it has an image, (N,) each; no image is read."""
    labels, there = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for start in range(0, len(rows), _ROWS):
        table = rows.with_format("arrow")[start : start + _ROWS]
        labels.append(np.asarray(table.column(label).fill_null(_NO_LABEL).to_numpy(), dtype=np.int64))
        for chunk in table.column(image).chunks:
            bytes_or_path = ~_null(chunk.field("bytes")) | ~_null(chunk.field("path"))
            there.append(bytes_or_path & ~_null(chunk))
    return np.concatenate(labels), np.concatenate(there)


def _null(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _check_labels(labels: NDArray[np.int64], there: NDArray[np.bool_], names: Sequence[str], where: str) -> None:
    if not len(labels):
        raise DataError(f"{where} has no rows")
    if not (there & (labels != _NO_LABEL)).any():
        kind = "no row with an image" if not there.any() else f"no label: all {len(labels):,} rows have none, or -1"
        raise DataError(f"{where} has {kind}", hint="its other splits may have them")
    low, high = int(labels.min()), int(labels.max())
    if low < _NO_LABEL or (names and high >= len(names)):
        last = f"0 to {len(names) - 1}" if names else "0 or more"
        raise DataError(f"{where} has a label {low if low < _NO_LABEL else high}; expected {last}, or -1 for none")
