"""How long an engine takes for a model under any schedule, after what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lifedeploy.schedule import Schedule
from lifedeploy.tuning.expected import Expected
from lifedeploy.tuning.front import Choice, Tables
from lifedeploy.tuning.staircase import Staircase


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Times relative to the dense model's, which takes ``dense_ms`` for a request.

    A dense model with fewer tokens in every layer saves what they cost in all of them; of that a layer saves its share
    of the work. So nothing has to be known of what does not depend on tokens, such as embedding and head.
    """

    stairs: Staircase
    shares: tuple[float, ...]  # of the dense model's work, by layer
    ordering: float = 0.0  # what ordering tokens takes
    slicing: float = 0.0  # and each later cut
    dense_ms: float = 1.0

    @classmethod
    def of(
        cls,
        stairs: Staircase,
        macs: Sequence[int],
        schedule: Schedule,
        *,
        sliced: float,
        ordered: float,
        dense_ms: float,
    ) -> Pace:
        """The pace of an engine.

        Args:
            stairs: its staircase.
            macs: the dense model's, by layer.
            schedule: that two models were measured under.
            sliced: time of the one that only slices.
            ordered: time of the one that orders its tokens first.
            dense_ms: of a request to the dense model.
        """
        bare = cls(stairs=stairs, shares=tuple(layer / sum(macs) for layer in macs))
        computed, later = bare.time(schedule), len(_later_cuts(schedule))
        slicing = max(0.0, (sliced - computed) / len(schedule.leaving_layers))
        ordering = ordered - computed - slicing * later
        return replace(bare, ordering=ordering, slicing=slicing, dense_ms=dense_ms)

    def time(self, schedule: Schedule) -> float:
        """The time that a model should take under a schedule."""
        layers = sum(share * self.stairs.time(n) for share, n in zip(self.shares, schedule.tokens, strict=True))
        return layers + self.ordering + self.slicing * len(_later_cuts(schedule))

    def tables(self, expected: Expected, base: int) -> Tables:
        """What schedules among the edges of its stairs cost that predict lives after layer ``base``."""
        counts = self.stairs.edges
        return Tables(
            counts=counts,
            time=np.outer(self.shares, [self.stairs.time(count) for count in counts]),
            loss=expected.losses(base, counts),
            ordering=self.ordering,
            slicing=self.slicing,
        )

    def price(self, schedule: Schedule, expected: Expected) -> Choice:
        """Any schedule, with its time and loss."""
        return Choice(schedule, self.time(schedule), expected.of(schedule)[expected.unit])


def _later_cuts(schedule: Schedule) -> list[int]:
    """Drop layers that tokens are sliced after: all where some leave, but the first, which orders them."""
    return [layer for layer in schedule.leaving_layers if layer != schedule.base_layer]
