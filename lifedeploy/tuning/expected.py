"""What schedules are expected to lose, by layer and count: of the attention that CLS pays, or of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifedeploy.schedule import Schedule

Floats = NDArray[np.float64]
ATTENTION = "attention of CLS to patches that is lost, as a share"
SINGLE_CUTS = "KL divergence of single cuts, added up, in nats"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The proxies of one model. ``attention`` is of every base layer that it may have; ``cuts`` of its only one."""

    attention: Mapping[int, Floats]  # base layer → (T, N + 1), by patch tokens
    cuts: Floats | None = None  # (T, counts), at ``cut_counts``, most first
    cut_counts: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        """What losses are, in words."""
        return ATTENTION if self.cuts is None else SINGLE_CUTS

    def losses(self, base: int, counts: Sequence[int]) -> Floats:
        """The loss of each layer at each count, lives being predicted after ``base``: (T, counts)."""
        if self.cuts is None:
            return self.attention[base][:, list(counts)]
        rising, table = self.cut_counts[::-1], self.cuts[:, ::-1]
        return np.stack([np.interp(counts, rising, row) for row in table])

    def of(self, schedule: Schedule) -> dict[str, float]:
        """What each proxy expects of a schedule."""
        layers = np.arange(schedule.depth)
        lost = self.attention[schedule.base_layer][layers, list(schedule.tokens)].sum()
        if self.cuts is None:
            return {ATTENTION: float(lost)}
        added = self.losses(schedule.base_layer, schedule.tokens)[layers, layers].sum()
        return {ATTENTION: float(lost), SINGLE_CUTS: float(added)}
