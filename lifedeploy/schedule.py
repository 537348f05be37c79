"""Token schedules: how many patch tokens take part in each layer, as plain integers fixed before any tracing.

Layers are counted from 1 to T, as in the paper. Tokens are dropped *after* a drop layer, or inside it between attention
and MLP: which of the two is the method's business. Prefix tokens (CLS, distillation, registers) are never dropped and
not counted here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from lifedeploy.errors import ScheduleError
from lifedeploy.typed import LastBlock, Layer, Patches, Rate

PAPER_DEPTH = 12
DEFAULT_KEEP_RATE = 0.7
PAPER_DROP_LAYERS = (4, 7, 10)


def default_drop_layers(depth: int, of_twelve: Sequence[int] = PAPER_DROP_LAYERS) -> tuple[int, ...]:
    """Drop layers of a backbone of twelve layers (the paper's: 4, 7 and 10), at the same relative depth of another."""
    layers = [round(layer * depth / PAPER_DEPTH) for layer in of_twelve]
    return tuple(sorted({layer for layer in layers if 1 <= layer < depth}))


@dataclass(frozen=True)
class Schedule:
    """``tokens[t - 1]`` patch tokens begin layer ``t``; they are dropped after each of ``drop_layers``.

    Build one with :meth:`from_keep_rate`, :meth:`from_counts` or :meth:`dense`; all of them refuse what cannot be.
    """

    tokens: Annotated[tuple[Patches, ...], Meta(min_length=1, max_length=1000)]
    drop_layers: Annotated[tuple[Layer, ...], Meta(max_length=1000)]
    keep_rate: Rate | None = None
    # Patch tokens that leave layer T, where it is a drop layer, as of a method that merges inside every layer.
    last: Patches | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ScheduleError("the schedule has no layers")
        require_layers(self.drop_layers, self.depth, self.depth - (self.last is None))
        if any(later <= earlier for earlier, later in pairwise(self.drop_layers)):
            layers = _join(self.drop_layers)
            raise ScheduleError(f"drop layers {layers} do not rise; each must be greater than the one before")
        for layer in range(1, self.depth + 1):
            before, after = self.tokens[layer - 1], self.after(layer)
            if after > before:
                raise ScheduleError(
                    f"token counts grow from {before} to {after} after layer {layer}; they may only stay or fall"
                )
            if after != before and layer not in self.drop_layers:
                raise ScheduleError(f"token counts change after layer {layer}, which is not a drop layer")
        if self.after(self.depth) < 1:
            raise ScheduleError(
                f"layer {self.depth} would have {self.after(self.depth)} patch tokens; at least 1 is needed"
            )

    @classmethod
    def dense(cls, patches: int, depth: int) -> Schedule:
        """Every token in every layer: the unpruned model."""
        return cls((patches,) * depth, ())

    @classmethod
    def from_keep_rate(
        cls, patches: int, depth: int, keep_rate: float, drop_layers: Sequence[int] | None = None
    ) -> Schedule:
        """Keep ``round(patches * keep_rate**k)`` tokens after the k-th drop layer.

        The LifeViT paper (section III-D) has n_{k+1} = ρ n_k; rounded once, from N, so that no roundings add up.

        Raises:
            ScheduleError: the keep rate is outside (0, 1], leaves no token, or the drop layers cannot be.
        """
        require_keep_rate(keep_rate)
        layers = default_drop_layers(depth) if drop_layers is None else tuple(drop_layers)
        counts = [round(patches * keep_rate**k) for k in range(1, len(layers) + 1)]
        return cls.of_keep_rate(patches, depth, keep_rate, counts, layers)

    @classmethod
    def of_keep_rate(
        cls, patches: int, depth: int, keep_rate: float, counts: Sequence[int], drop_layers: Sequence[int]
    ) -> Schedule:
        """What a method makes of a keep rate: ``counts[k]`` patch tokens after the k-th drop layer.

        Raises:
            ScheduleError: no token is left, or counts and drop layers cannot be.
        """
        if counts and counts[-1] < 1:
            raise ScheduleError(
                f"keep rate {keep_rate:g} leaves 0 of {patches} patch tokens after layer {drop_layers[-1]}; "
                "at least 1 is needed"
            )
        return replace(cls.from_counts(patches, depth, counts, drop_layers), keep_rate=keep_rate)

    @classmethod
    def from_counts(
        cls, patches: int, depth: int, counts: Sequence[int], drop_layers: Sequence[int] | None = None
    ) -> Schedule:
        """Keep exactly ``counts[k]`` patch tokens after the k-th drop layer.

        Raises:
            ScheduleError: the counts grow, fall below 1, exceed ``patches``, or do not match the drop layers.
        """
        layers = default_drop_layers(depth) if drop_layers is None else tuple(drop_layers)
        if len(counts) != len(layers):
            raise ScheduleError(
                f"{len(counts)} token counts ({_join(counts)}) for {len(layers)} drop layers ({_join(layers)}); "
                "give one count per drop layer"
            )
        for count, layer in zip(counts, layers, strict=True):
            if count < 1:
                raise ScheduleError(f"token count {count} after layer {layer} is not allowed: at least 1 is needed")
        tokens = _spread(patches, depth, counts, layers)
        return cls(tokens[:depth], layers, last=tokens[depth] if depth in layers else None)

    @property
    def depth(self) -> int:
        """Number of layers, T."""
        return len(self.tokens)

    @property
    def patches(self) -> int:
        """Number of patch tokens before any drop, N."""
        return self.tokens[0]

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens that are left after each drop layer."""
        return tuple(self.after(layer) for layer in self.drop_layers)

    @property
    def leaving_layers(self) -> tuple[int, ...]:
        """The drop layers after which tokens really leave."""
        return tuple(layer for layer in self.drop_layers if self.after(layer) < self.tokens[layer - 1])

    @property
    def prunes(self) -> bool:
        """Whether any token is ever dropped."""
        return self.after(self.depth) < self.patches

    @property
    def base_layer(self) -> int:
        """t_base, the layer after which all lives are predicted: the first drop layer.

        Raises:
            ScheduleError: the schedule has no drop layer.
        """
        if not self.drop_layers:
            raise ScheduleError("a schedule without drop layers has no layer to predict lives after")
        return self.drop_layers[0]

    @property
    def shortest_life(self) -> int:
        """The least number of layers that a patch lives: t_base, and 1 where only patches themselves can say so."""
        return self.drop_layers[0] if self.drop_layers else 1

    def after(self, layer: int) -> int:
        """Patch tokens that leave layer ``layer``, and go on to the next one where there is one."""
        if layer < self.depth:
            return self.tokens[layer]
        return self.tokens[-1] if self.last is None else self.last

    def under(self, last_block: LastBlock) -> Schedule:
        """What is left of it: where the last block computes prefix tokens alone nobody reads what leaves layer T."""
        return self.without_last_drop() if last_block == "prefix" else self

    def without_last_drop(self) -> Schedule:
        """The same with nothing leaving in layer T."""
        if self.depth not in self.drop_layers:
            return self
        return replace(self, drop_layers=self.drop_layers[:-1], last=None)

    @property
    def mean_life(self) -> float:
        """μ of eq. 9: the mean life, in layers, that this schedule grants a patch."""
        return sum(self.tokens) / self.patches  # a patch counts once in each layer of its life

    @property
    def std_life(self) -> float:
        """σ of eq. 10, with the square that the printed equation lost, in layers."""
        mean = self.mean_life
        ending = [before - after for before, after in pairwise((*self.tokens, 0))]  # lives of 1, 2 … T layers
        return math.sqrt(sum(count * (life - mean) ** 2 for life, count in enumerate(ending, 1)) / self.patches)


def require_keep_rate(keep_rate: float) -> None:
    """Make sure that a keep rate is one.

    Raises:
        ScheduleError: it is outside (0, 1].
    """
    if not (math.isfinite(keep_rate) and 0 < keep_rate <= 1):
        raise ScheduleError(f"keep rate {keep_rate:g} is out of range: it must be in (0, 1]")


def require_layers(drop_layers: Sequence[int], depth: int, most: int) -> None:
    """Make sure that drop layers are layers of a backbone of ``depth``, up to the layer ``most``.

    Raises:
        ScheduleError: one is not.
    """
    for layer in drop_layers:
        if not 1 <= layer <= most:
            raise ScheduleError(
                f"drop layer {layer} is out of range: this backbone has {depth} layers, so 1 to {most} are allowed"
            )


def _spread(patches: int, depth: int, counts: Sequence[int], layers: Sequence[int]) -> tuple[int, ...]:
    """Counts after drop layers → tokens that begin every layer, and those that leave the last."""
    after = dict(zip(layers, counts, strict=True))
    tokens = [patches]
    for layer in range(1, depth + 1):
        tokens.append(after.get(layer, tokens[-1]))
    return tuple(tokens)


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
