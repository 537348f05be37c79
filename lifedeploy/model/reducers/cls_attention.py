"""What methods share that keep, anew at every drop, what CLS attends to."""

from __future__ import annotations

from torch import nn

from lifedeploy.model.reducers.base import Reducer, TakeOrdered
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.schedule import Schedule


class ByClsAttention(Reducer):
    """Between attention and MLP of a drop layer, keeps the patches that CLS attends to most: mean over heads.

    Args:
        schedule: tokens per layer.
        all_ordered: order all of them, those that are to be dropped too.
    """

    def __init__(self, schedule: Schedule, *, all_ordered: bool = False) -> None:
        super().__init__(schedule)
        counts = {t: schedule.tokens[t - 1] if all_ordered else schedule.after(t) for t in schedule.leaving_layers}
        self.take = nn.ModuleDict({str(layer): TakeOrdered(count) for layer, count in counts.items()})
        self.sorts = len(self.take)

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
