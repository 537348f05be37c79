"""What a model gets right: top-1, top-5, loss, confusion and average precision, gathered batch by batch.

A tally keeps four numbers per image (and, for few classes, the scores), so that merging the tallies of several
processes gives what one process would have found, to the last bit, whatever the order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import DataError, EngineError
from lifedeploy.text import quoted, shortened

AP_CLASSES = 20  # up to here every score is kept, for average precision
MATRIX_CLASSES = 100  # up to here the confusion matrix is reported; what lies beyond nobody reads


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """One class. None: there is no such image, or none was taken for it."""

    index: int
    name: str
    images: int
    recall: float | None
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One model on one set of images. Shares are 0…1."""

    images: int
    top1: float
    standard_error: float  # of top1, by the images drawn
    top5: float | None  # None below six classes, where it says nothing
    loss: float  # mean cross-entropy, in nats
    average_precision: float | None  # mean over the classes that have images; None above 20 classes
    per_class: tuple[ClassAccuracy, ...]  # those that occur, as truth or as answer
    confusion: tuple[tuple[int, ...], ...] | None  # [truth][answer]; None above 100 classes


class Tally:
    """Gathers one model's answers."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._targets: list[NDArray[np.int64]] = []
        self._predicted: list[NDArray[np.int64]] = []
        self._top5: list[NDArray[np.bool_]] = []
        self._losses: list[NDArray[np.float64]] = []
        self._odds: list[NDArray[np.float64]] = []

    def add(self, logits: Array, targets: NDArray[np.int64]) -> None:
        """Take a batch: (B, classes) and (B,).

        Raises:
            EngineError: the logits have another shape.
        """
        if logits.shape != (len(targets), self.classes):
            raise EngineError(f"the output is {logits.shape}, expected {(len(targets), self.classes)}")
        values = logits.astype(np.float64)
        rows = np.arange(len(targets))
        of_target = values[rows, targets][:, None]
        # Of equal logits the lower index is ahead, as it is for argmax: a constant output earns nothing.
        ahead = (values > of_target) | ((values == of_target) & (np.arange(self.classes) < targets[:, None]))
        self._targets.append(targets.astype(np.int64))
        self._predicted.append(values.argmax(axis=1))
        self._top5.append(ahead.sum(axis=1) < 5)
        self._losses.append(np.logaddexp.reduce(values, axis=1) - of_target[:, 0])
        if self.classes <= AP_CLASSES:
            self._odds.append(_log_odds(values))

    def merge(self, other: Tally) -> None:
        """Take what another tally of the same model gathered on other images."""
        for mine, theirs in zip(self._lists(), other._lists(), strict=True):
            mine.extend(theirs)

    def _lists(self) -> tuple[list[Any], ...]:
        return self._targets, self._predicted, self._top5, self._losses, self._odds

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class given to each image, in the order they came."""
        return np.concatenate(self._predicted) if self._predicted else np.empty(0, dtype=np.int64)

    def result(self, names: Sequence[str] = ()) -> Accuracy:
        """All of it, with the classes' ``names`` (their numbers where there are none).

        Raises:
            DataError: nothing was gathered.
        """
        if not self._targets:
            raise DataError("no image was evaluated")
        targets, predicted = np.concatenate(self._targets), self.predicted
        images = len(targets)
        top1 = float((targets == predicted).mean())
        precisions = self._average_precisions(targets)
        measured = [value for value in precisions if value is not None]
        return Accuracy(
            images=images,
            top1=top1,
            standard_error=math.sqrt(top1 * (1 - top1) / images),
            top5=float(np.concatenate(self._top5).mean()) if self.classes > 5 else None,
            loss=math.fsum(np.concatenate(self._losses)) / images,
            average_precision=math.fsum(measured) / len(measured) if measured else None,
            per_class=self._per_class(targets, predicted, precisions, names),
            confusion=_matrix(targets, predicted, self.classes) if self.classes <= MATRIX_CLASSES else None,
        )

    def _average_precisions(self, targets: NDArray[np.int64]) -> list[float | None]:
        if not self._odds:
            return [None] * self.classes
        odds = np.concatenate(self._odds)
        return [
            average_precision(targets == index, odds[:, index]) if (targets == index).any() else None
            for index in range(self.classes)
        ]

    def _per_class(
        self,
        targets: NDArray[np.int64],
        predicted: NDArray[np.int64],
        precisions: Sequence[float | None],
        names: Sequence[str],
    ) -> tuple[ClassAccuracy, ...]:
        truths, answers, right = (
            np.bincount(values, minlength=self.classes)
            for values in (targets, predicted, targets[targets == predicted])
        )
        return tuple(
            ClassAccuracy(
                index=index,
                name=names[index] if names else str(index),
                images=int(truths[index]),
                recall=float(right[index] / truths[index]) if truths[index] else None,
                precision=float(right[index] / answers[index]) if answers[index] else None,
                average_precision=precisions[index],
            )
            for index in map(int, np.flatnonzero(truths + answers))
        )


def average_precision(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, highest first: (N,), (N,) → 0…1. Needs one positive."""
    order = np.argsort(-scores, kind="stable")
    # Equal scores are one threshold: their order among each other must not matter.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(positive[order])[ends]
    return math.fsum(np.diff(hits, prepend=0) / hits[-1] * (hits / (ends + 1)))


def agreement(first: Tally, second: Tally, names: tuple[Sequence[str], Sequence[str]]) -> float:
    """Share of images given the same class, by the ``names`` of the two models' classes."""
    ours, theirs = np.asarray(names[0])[first.predicted], np.asarray(names[1])[second.predicted]
    return float((ours == theirs).mean())


@dataclass(frozen=True)
class ClassMap:
    """Where the classes of a data set are among a model's: ``indices[class of the set]`` is the model's.

    ``names`` are the model's classes in its order, by the set's names where matched by position: the same class has
    the same name in all models then.
    """

    indices: NDArray[np.int64]
    by: str  # "name" or "position"
    names: tuple[str, ...]
    warning: str = ""  # where matched by position: what was taken for what


def map_classes(set_names: Sequence[str], names: Sequence[str], classes: int, *, source: str, model: str) -> ClassMap:
    """Match the classes ``set_names`` of ``source`` with the ``classes`` of ``model``, called ``names`` if it has any.

    By name if the model knows all of them; by position if it knows none of them, and there are as many.

    Raises:
        DataError: neither.
    """
    numbers = {name: index for index, name in enumerate(names)}
    unknown = [name for name in set_names if name not in numbers]
    if names and not unknown:
        times = Counter(names)
        twice = next((name for name in set_names if times[name] > 1), None)
        if twice is not None:
            raise DataError(f"class {quoted(twice)} of {source} is the name of several classes of {model}")
        return ClassMap(np.asarray([numbers[name] for name in set_names], dtype=np.int64), "name", tuple(names))
    if names and len(unknown) < len(set_names):  # by position, those that do match would be swapped or not, unnoticed
        raise DataError(
            f"{source} has {len(set_names)} classes, and {len(unknown)} of them are none of the {classes} of {model}: "
            f"{', '.join(unknown[:5])}",
            hint=f"the model's classes: {shortened(', '.join(names[:10]))}{', …' if len(names) > 10 else ''}",
        )
    if len(set_names) != classes:
        raise DataError(
            f"{source} has {len(set_names)} classes, and {model} has {classes}",
            hint="folders named as the model's classes may be fewer than these; otherwise there must be as many",
        )
    warning = (
        f"classes are matched BY POSITION, since none of {source} has the name of one of the model's: "
        f"{by_position(set_names, names)} are taken. If their order is not the same, every figure of accuracy here is "
        "wrong; folders named as the model's classes are matched by name"
    )
    return ClassMap(np.arange(classes, dtype=np.int64), "position", tuple(set_names), warning)


def by_position(set_names: Sequence[str], names: Sequence[str]) -> str:
    """What is taken for what, to be read, where the n-th class of one is that of the other: the first and the last."""
    shown = [index for index in range(len(set_names)) if index < 2 or index == len(set_names) - 1]
    pairs = [f"{quoted(set_names[index])} for {quoted(names[index]) if names else f'class {index}'}" for index in shown]
    return ", ".join([*pairs[:2], *(["…"] if len(set_names) > 3 else []), *pairs[2:]])


def _log_odds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p / (1 − p) of every class: orders images as the probability does, and does not saturate at 0 and 1."""
    classes = values.shape[1]
    others = [np.logaddexp.reduce(np.delete(values, index, axis=1), axis=1) for index in range(classes)]
    odds: NDArray[np.float64] = values - np.stack(others, axis=1)
    return odds


def _matrix(targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return tuple(map(tuple, counts.reshape(classes, classes).tolist()))
