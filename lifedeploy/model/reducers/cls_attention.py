"""What methods share that keep, anew at every drop, what CLS attends to."""

from __future__ import annotations

from torch import nn

from lifedeploy.model.reducers.base import Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.schedule import Schedule


class ByClsAttention(Reducer):
    """Between attention and MLP of a drop layer, keeps the patches that CLS attends to most: mean over heads.

    Args:
        schedule: tokens per layer.
        fused: how many of those that go on stand for dropped ones, 0 or 1; see :meth:`behind`.
    """

    def __init__(self, schedule: Schedule, fused: int = 0) -> None:
        super().__init__(schedule)
        self.take = nn.ModuleDict({str(t): TakeOrdered(schedule.after(t) - fused) for t in schedule.leaving_layers})
        self.sorts = len(self.take)

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule)

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(map(int, self.take))

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Score by the layer's own attention, whose softmax is over all tokens, and keep the best."""
        scores = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        kept: Tokens = self.take[str(layer)](tokens, scores)[0]
        return kept

    def at(self, schedule: Schedule) -> Reducer:
        return type(self)(schedule)
