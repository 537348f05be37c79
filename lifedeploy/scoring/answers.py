"""What is kept of a model's answer to each image: its best classes, its logits, or its embedding; in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import UsageError
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.session import most_probable

Kept = Literal["top", "logits", "embeddings"]
KEPT: tuple[Kept, ...] = ("top", "logits", "embeddings")
NAME, PROBLEM = "image", "error"  # the first column, and the last one: why there is no answer


@dataclass(frozen=True)
class Column:
    """A column of answers."""

    name: str
    kind: Literal["index", "text", "number", "vector"]
    width: int = 1  # of a vector


@dataclass(frozen=True)
class Rows:
    """Images with their answers, in their order.

    ``values`` has, for each column, a value for each image that was answered: those where ``problems`` is ''.
    """

    names: tuple[str, ...]
    problems: tuple[str, ...]
    values: tuple[Sequence[Any] | Array, ...]

    @property
    def bad(self) -> int:
        """Images without an answer."""
        return sum(map(bool, self.problems))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Which answers are kept, and in which columns they go."""

    kept: Kept
    top: int
    width: int  # numbers that the model gives for an image
    classes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns between the image's name and what is wrong with it."""
        if self.kept != "top":
            return (Column(self.kept, "vector", self.width),)
        named = bool(self.classes)
        columns: list[Column] = []
        for place in range(1, self.top + 1):
            columns.append(Column(f"class_{place}", "index"))
            columns += [Column(f"name_{place}", "text")] * named
            columns.append(Column(f"probability_{place}", "number"))
        return tuple(columns)

    def values(self, given: NDArray[np.floating[Any]]) -> tuple[Sequence[Any] | Array, ...]:
        """What a model gave for some images, (B, width), column by column."""
        if self.kept != "top":
            return (given.astype(np.float32, copy=False),)
        best, shares = most_probable(given, self.top)
        values: list[Sequence[Any] | Array] = []
        for place in range(self.top):
            values.append(best[:, place].astype(np.int32))
            if self.classes:
                values.append([self.classes[index] for index in best[:, place].tolist()])
            values.append(shares[:, place].astype(np.float32))
        return tuple(values)


def usual(spec: ModelSpec) -> Kept:
    """What is kept of a model's answer where nobody says."""
    return "top" if spec.num_classes else "embeddings"


def require_given(kept: Kept, spec: ModelSpec, model: str) -> None:
    """Make sure that a model gives what is to be kept.

    Raises:
        UsageError: it has a head, and gives no embeddings; or has none, and gives nothing else.
    """
    if kept == "embeddings" and spec.num_classes:
        raise UsageError(
            f"{model} has a classification head, behind which there are no embeddings",
            hint="lifedeploy export --num-classes 0 with the same weights makes a model without one",
        )
    if kept != "embeddings" and not spec.num_classes:
        raise UsageError(
            f"{model} has no classification head: {spec.backbone} gives embeddings", hint="--keep embeddings"
        )
