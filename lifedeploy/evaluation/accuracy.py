"""How often a model is right: counted batch by batch, mergeable, and only then summed up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Average precision ranks all images, so their scores have to be kept: where there are few classes, they are.
MAX_RANKED_CLASSES = 20


@dataclass(frozen=True)
class ClassAccuracy:
    """One class. ``recall`` and ``precision`` are None where there is nothing to divide by."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Accuracy:
    """All numbers are shares (0…1) but the loss, which is the mean cross entropy in nats."""

    images: int
    top1: float
    top1_standard_error: float
    top5: float | None  # None where there are no more than five classes
    loss: float
    average_precision: float | None  # mean over classes; None where there are many, or a class has no image
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]  # [true class][given answer]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


class Tally:
    """Counts of one model's answers. ``classes`` are those of the model's head."""

    def __init__(self, classes: int) -> None:
        self._confusion = np.zeros((classes, classes), dtype=np.int64)
        self._loss = 0.0
        self._top5 = 0
        self._scores: list[NDArray[np.float32]] = []
        self._targets: list[NDArray[np.int64]] = []
        self._ranks = classes <= MAX_RANKED_CLASSES

    def add(self, logits: NDArray[Any], targets: NDArray[np.int64]) -> None:
        """Count a batch: logits (B, K), classes (B,)."""
        wide = logits.astype(np.float64)
        shifted = wide - wide.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        own = log_probabilities[np.arange(len(targets)), targets]
        self._loss -= float(own.sum())
        np.add.at(self._confusion, (targets, logits.argmax(axis=1)), 1)
        # Better placed than the right one: ties count against the model only if they come first, as argmax has it.
        rank = (log_probabilities > own[:, None]).sum(axis=1)
        self._top5 += int((rank < 5).sum())
        if self._ranks:
            self._scores.append(log_probabilities.astype(np.float32))
            self._targets.append(targets)

    def merge(self, other: Tally) -> None:
        """Count what ``other`` counted too."""
        self._confusion += other._confusion
        self._loss += other._loss
        self._top5 += other._top5
        self._scores += other._scores
        self._targets += other._targets

    def result(self, names: Sequence[str]) -> Accuracy:
        """What the counts come to; ``names`` of the head's classes, or none."""
        confusion = self._confusion
        images = int(confusion.sum())
        if images == 0:
            raise ValueError("nothing was counted")
        top1 = float(np.trace(confusion) / images)
        classes = tuple(self._class(index, names) for index in range(len(confusion)))
        known = [one.average_precision for one in classes if one.average_precision is not None]
        return Accuracy(
            images,
            top1,
            math.sqrt(top1 * (1 - top1) / images),
            self._top5 / images if len(confusion) > 5 else None,
            self._loss / images,
            float(np.mean(known)) if known and len(known) == len(classes) else None,
            classes,
            tuple(tuple(map(int, row)) for row in confusion),
        )

    def _class(self, index: int, names: Sequence[str]) -> ClassAccuracy:
        right = int(self._confusion[index, index])
        true, given = int(self._confusion[index].sum()), int(self._confusion[:, index].sum())
        precision = None
        if self._ranks and true:
            scores = np.concatenate(self._scores)[:, index]
            precision = average_precision(scores, np.concatenate(self._targets) == index)
        return ClassAccuracy(
            names[index] if names else f"class {index}",
            true,
            right / true if true else None,
            right / given if given else None,
            precision,
        )


def average_precision(scores: NDArray[np.floating[Any]], relevant: NDArray[np.bool_]) -> float:
    """Area under precision over recall as a sum of steps, equal scores taken together (scikit-learn's definition).

    Raises:
        ValueError: nothing is relevant.
    """
    if not relevant.any():
        raise ValueError("average precision needs at least one relevant image")
    order = np.argsort(-scores, kind="stable")
    ranked, ordered = relevant[order], scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # last place of every run of equal scores
    hits = np.cumsum(ranked)[ends]
    precision = hits / (ends + 1)
    gained = np.diff(hits, prepend=0) / ranked.sum()
    return float((gained * precision).sum())


@dataclass
class Agreement:
    """Two models on the same images: how often they answer the same, and keep the same tokens."""

    first: str
    second: str
    images: int = 0
    same: int = 0
    overlap: float = 0.0  # sum over images
    overlapped: int = 0

    def add(self, answers: tuple[NDArray[Any], NDArray[Any]], kept: tuple[Any, Any]) -> None:
        """Count a batch: answers (B,) and kept patch numbers (B, n), or None, of both."""
        self.images += len(answers[0])
        self.same += int((answers[0] == answers[1]).sum())
        if kept[0] is not None and kept[1] is not None:
            for one, other in zip(*kept, strict=True):
                self.overlap += len(np.intersect1d(one, other)) / max(min(len(one), len(other)), 1)
            self.overlapped += len(kept[0])

    def merge(self, other: Agreement) -> None:
        """Count what ``other`` counted too."""
        self.images += other.images
        self.same += other.same
        self.overlap += other.overlap
        self.overlapped += other.overlapped

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, in shares."""
        return {
            "first": self.first,
            "second": self.second,
            "images": self.images,
            "agreement": self.same / self.images if self.images else None,
            "overlap": self.overlap / self.overlapped if self.overlapped else None,
        }
