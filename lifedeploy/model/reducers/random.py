"""``random``: tokens in an order that nothing but chance decides. No method to use: the lower bound on accuracy.

The order has to be the same wherever the model runs, so no engine may draw it. Patch i is scored by r_i · u_i, where
u_i is its token after the first drop layer, less the mean of all patches and brought to length 1, and r_i a direction
of its own, drawn once. Whatever the image, these scores are independent and normally distributed over the draw, since
the normal distribution is the same in every direction: so each order is as likely as any other. And images whose tokens
differ are ordered differently.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.reducers.base import KeepPrefix, Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule


class RandomReducer(Reducer):
    """Orders once, at the first drop, then slices.

    Args:
        schedule: tokens per layer.
        width: channels C of a token.
        draw: which order: its seed.
    """

    directions: Tensor  # (N, C)

    def __init__(self, schedule: Schedule, width: int, draw: int) -> None:
        super().__init__(schedule)
        self.draw = draw
        directions = np.random.default_rng(draw).standard_normal((schedule.patches, width), dtype=np.float32)
        # No part of the weights: made again from the draw, and for another image size of another shape.
        self.register_buffer("directions", torch.from_numpy(directions), persistent=False)
        first = schedule.base_layer if schedule.leaving_layers else 0
        later = [layer for layer in schedule.leaving_layers if layer != first]
        self.order = nn.ModuleDict({str(first): TakeOrdered(schedule.after(first))} if first else {})
        self.keep = nn.ModuleDict({str(layer): KeepPrefix(schedule.after(layer)) for layer in later})
        self.sorts = len(self.order)

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule, plan.width, plan.options.draw)

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Order after the first drop layer, whether any leave there or not; slice after the others."""
        key = str(layer)
        if key in self.order:
            taken: Tokens = self.order[key](tokens, self._scores(tokens.x[:, tokens.prefix :]))[0]
            return taken
        return self.keep[key](tokens) if key in self.keep else tokens

    def _scores(self, patches: Tensor) -> Tensor:
        """(B, N, C) → (B, N)."""
        units = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=-1)
        return (units * self.directions).sum(dim=-1)

    def at(self, schedule: Schedule) -> Reducer:
        return RandomReducer(schedule, self.directions.shape[1], self.draw).to(self.directions.device)
