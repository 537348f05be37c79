"""What the method does: which tokens leave, and what becomes of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifedeploy.errors import UsageError
from lifedeploy.methods import Schedule
from lifedeploy.model.reducers import BlockAttention, Plan, Reducer, TakeOrdered, Tokens


class OutsideReducer(Reducer):
    """Keeps what CLS attends to, and fuses the rest.

    It is built for one schedule: lifedeploy refuses to train it at many keep rates, since it has no ``at`` of its own.
    """

    def __init__(self, schedule: Schedule, *, fuse: bool, explore: float = 0.0) -> None:
        super().__init__(schedule)
        self.fuse = fuse
        self.explore = explore
        self.take = nn.ModuleDict(
            {str(layer): TakeOrdered(schedule.after(layer) - fuse) for layer in schedule.leaving_layers}
        )
        self.sorts = len(self.take)

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The reducer of a model.

        Raises:
            UsageError: nothing is left beside the fused token.
        """
        for layer in plan.schedule.leaving_layers:
            if plan.options.fuse and plan.schedule.after(layer) < 2:
                raise UsageError(
                    f"1 token is kept after layer {layer}, and would stand for all that are dropped",
                    hint="a larger keep rate, or --no-fuse",
                )
        return cls(plan.schedule, fuse=plan.options.fuse, explore=plan.options.explore)

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(map(int, self.take))

    def scores(self, layer: int, attention: BlockAttention, prefix: int) -> Tensor:
        """Of every patch token, from what the block's attention saw: (B, n)."""
        return attention.cls_row()[:, prefix:]

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        prefix = tokens.prefix
        scores = self.scores(layer, attention, prefix)  # (B, n)
        kept, best = self.take[str(layer)](tokens, scores)  # best: (B, k)
        if not self.fuse:
            return kept
        # What is dropped is all less what is kept: indices of what is dropped are not needed, nor another Gather.
        fused = scores.unsqueeze(1) @ tokens.x[:, prefix:] - best.unsqueeze(1) @ kept.x[:, prefix:]  # (B, 1, C)
        return kept.append(fused)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The form for training: noise on the scores, so that more tokens than those kept are learnt from."""
        hard = self.at(schedule)
        return Exploring(schedule, fuse=self.fuse, explore=self.explore) if self.explore else hard


class Exploring(OutsideReducer):
    """The same with noise on the scores."""

    def scores(self, layer: int, attention: BlockAttention, prefix: int) -> Tensor:
        scores = super().scores(layer, attention, prefix)
        return scores * (1 + self.explore * torch.randn_like(scores))
