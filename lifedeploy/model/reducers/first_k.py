"""``first-k``: cut by position, score nothing. No method to use: the upper bound on speed for a schedule."""

from __future__ import annotations

import torch
from torch import nn

from lifedeploy.model.reducers.base import KeepPrefix, Reducer, Tokens
from lifedeploy.schedule import Schedule


class FirstKReducer(Reducer):
    """Keeps the first n_t patch tokens in raster order."""

    method = "first-k"

    def __init__(self, schedule: Schedule, prefix: int) -> None:
        super().__init__(schedule)
        self.keep = nn.ModuleDict({str(layer): KeepPrefix(prefix + schedule.after(layer)) for layer in drops(schedule)})

    def begin(self, tokens: Tokens) -> Tokens:
        batch, patches = tokens.x.shape[0], tokens.patches
        return tokens.but(positions=torch.arange(patches, device=tokens.x.device).expand(batch, patches))

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if str(layer) not in self.keep or tokens.positions is None:
            return tokens
        kept = self.schedule.after(layer)
        return tokens.but(x=self.keep[str(layer)](tokens.x), positions=tokens.positions[:, :kept])


def drops(schedule: Schedule) -> tuple[int, ...]:
    """The drop layers after which tokens really leave."""
    return tuple(layer for layer in schedule.drop_layers if schedule.after(layer) < schedule.tokens[layer - 1])
