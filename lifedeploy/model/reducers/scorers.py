"""What methods share that score the patches before the block behind each drop layer, with a network for each."""

from __future__ import annotations

from torch import nn

from lifedeploy.model.reducers.base import Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule


class ByScorers(Reducer):
    """Drops before the block behind each drop layer, and keeps the patches that its scorer finds best.

    A method keeps its scorers under the name that they have in its authors' files, and gives them by :meth:`scorers`.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.take = nn.ModuleDict({str(t): TakeOrdered(schedule.after(t)) for t in schedule.leaving_layers})
        self.sorts = len(self.take)

    @property
    def scorers(self) -> nn.ModuleList:
        """One for each drop layer: patches (B, n, C) → scores (B, n)."""
        raise NotImplementedError

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Score the patches there are, and keep the best."""
        behind = layer - 1
        if str(behind) not in self.take:
            return tokens
        scorer = self.scorers[self.schedule.drop_layers.index(behind)]
        kept: Tokens
        kept, _ = self.take[str(behind)](tokens, scorer(tokens.x[:, tokens.prefix :]))
        return kept
