"""Which tensors of a model say which tokens it kept: names, and how to read them.

A model names its kept tokens after every drop: ``kept_4`` (B, n) holds the original index of each token that goes on
after layer 4, -1 for one that is no single patch any more (fused, merged). Where a method ranks once, all later ones
are the first of the first, and have no tensor of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lifedeploy.schedule import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_PATCH = -1  # in the place of an index: a token that is no single patch any more
_DROP = 2**32  # between the indices of one drop and those of the next: more than there are patches
_NAME = re.compile(r"kept_(\d+)")
_SCOPE = re.compile(r"reducer[./]")
# What models that ranked once called the kept tokens after the base layer, before there were other methods.
EARLIER_NAME = "life_order"


def kept_name(layer: int) -> str:
    """The name of the tensor of tokens kept after ``layer``."""
    return f"kept_{layer}"


def kept_layer(name: str) -> int | None:
    """The layer that a tensor so called is about; None: it holds no kept tokens."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_kept_name(name: str | None) -> bool:
    """Whether a tensor so called holds kept tokens."""
    return name is not None and (kept_layer(name) is not None or name == EARLIER_NAME)


def of_reducer(name: str | None) -> bool:
    """Whether a node so called was traced inside the reducer: it belongs to choosing tokens, not to the backbone."""
    return name is not None and _SCOPE.match(name) is not None


@dataclass(frozen=True)
class KeptTokens:
    """Where a model says what it kept: empty for one that chooses nothing."""

    names: Mapping[int, str]  # layer → tensor; not of every drop layer
    counts: Mapping[int, int]  # drop layer → tokens that go on after it
    leaving: tuple[int, ...] = ()  # those of ``names`` after which it chose

    @classmethod
    def of(cls, schedule: Schedule, layers: Collection[int], *, parks: bool = False) -> KeptTokens:
        """The kept tokens of a model that names them after ``layers``.

        It chose where tokens leave; one that ``parks`` others chose from all of them, whether more leave or not.
        """
        first = min(layers, default=schedule.depth)  # before it, nothing leaves
        counts = {layer: schedule.after(layer) for layer in schedule.drop_layers if layer >= first}
        leaving = tuple(layer for layer in sorted(layers) if parks or layer in schedule.leaving_layers)
        return cls({layer: kept_name(layer) for layer in sorted(layers)}, counts, leaving)

    @classmethod
    def of_method(cls, schedule: Schedule, selection: str, *, parks: bool = False) -> KeptTokens:
        """The kept tokens of a model in PyTorch, which says what goes on wherever its method chose.

        ``selection`` is that of its method.
        """
        chose = schedule.drop_layers if parks and schedule.prunes else schedule.leaving_layers
        return cls.of(schedule, {"none": (), "once": chose[:1]}.get(selection, chose), parks=parks)

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all tensors of kept tokens."""
        return tuple(self.names.values())

    @property
    def last_tap(self) -> tuple[str, ...]:
        """The tensor that tells the survivors; none where nothing is chosen."""
        return self.taps[-1:]

    def after(self, layer: int, answers: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Original indices of the tokens that go on after a drop layer, (B, n), of a model's tapped answers."""
        named = max(known for known in self.names if known <= layer)
        return answers[self.names[named]][:, : self.counts[layer]]

    def survivors(self, answers: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The same of those that reach the last layer."""
        return self.after(max(self.counts), answers)

    def whole(self, answers: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """What a model kept after every drop, side by side, told apart by their drop: (B, sum of n).

        Where it ranks once the survivors, which are the first of all others.
        """
        if len(self.names) < 2:
            return self.survivors(answers)
        import numpy as np

        parts = (self.after(layer, answers) for layer in self.leaving)
        return np.concatenate([part + number * _DROP * (part != NO_PATCH) for number, part in enumerate(parts)], axis=1)

    def parts(self, whole: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The inverse of :meth:`whole`: tensor → what it held."""
        if len(self.names) < 2:
            return dict.fromkeys(self.taps, whole)
        tensors, start = {}, 0
        for number, layer in enumerate(self.leaving):
            part = whole[:, start : start + self.counts[layer]]
            tensors[self.names[layer]] = part - number * _DROP * (part != NO_PATCH)
            start += self.counts[layer]
        return tensors


NOTHING_KEPT = KeptTokens({}, {})  # of a model that chooses nothing, or of which nothing is known
