"""``first-k``: cut by position, score nothing. No method to use: the upper bound on speed for a schedule."""

from __future__ import annotations

from torch import nn

from lifedeploy.model.reducers.base import KeepPrefix, Plan, Reducer
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.schedule import Schedule


class FirstKReducer(Reducer):
    """Keeps the first n_t patch tokens in raster order; with ``inside``, drops between a layer's attention and MLP."""

    sorts = 0

    def __init__(self, schedule: Schedule, *, inside: bool = False) -> None:
        super().__init__(schedule)
        self.inside = inside
        self.keep = nn.ModuleDict({str(layer): KeepPrefix(schedule.after(layer)) for layer in schedule.leaving_layers})

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule, inside=plan.options.inside)

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(map(int, self.keep)) if self.inside else frozenset()

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        cut: Tokens = self.keep[str(layer)](tokens)
        return cut

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        return self.keep[str(layer)](tokens) if str(layer) in self.keep and not self.inside else tokens

    def at(self, schedule: Schedule) -> Reducer:
        return FirstKReducer(schedule, inside=self.inside)
