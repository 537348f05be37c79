"""What methods share that score the patches before the block behind each drop layer, with a network for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.reducers.base import Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule

_ALIVE = "alive"  # (B, N), 1 for a patch that no drop has taken yet, else 0
# What a masked key counts instead of nothing: its logarithm has a gradient, which in half precision does not vanish.
_MASKED = 1e-4


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


class Masking(Reducer):
    """The form for training: every token stays, and what :meth:`decide` drops is masked as a key from there on.

    What was masked is not asked about again. The decisions are numbers that a gradient may flow through: a weight of a
    key, in the softmax of every later layer, is its decisions' product (DynamicViT, section 3.2; that a masked
    token still attends to itself there is of no consequence where classes are read from CLS; a head that pools patches
    reads masked ones too, as long as it trains).
    """

    def decide(self, drop: int, patches: Tensor, alive: Tensor, carry: dict[str, Tensor]) -> Tensor:
        """At the ``drop``-th drop layer, from 0: 1 for each patch to keep, else 0. (B, N, C), (B, N) → (B, N).

        ``carry`` goes along with the tokens: what the loss needs is noted there.
        """
        raise NotImplementedError

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Decide, and mask."""
        behind = layer - 1
        if behind not in self.schedule.drop_layers:
            return tokens
        patches = tokens.x[:, tokens.prefix :]
        alive = tokens.carry.get(_ALIVE)
        if alive is None:
            alive = torch.ones_like(patches[..., 0], dtype=torch.float32)
        carry = dict(tokens.carry)
        alive = alive * self.decide(self.schedule.drop_layers.index(behind), patches, alive, carry)
        bias = F.pad((alive + _MASKED).log(), (tokens.prefix, 0)).to(tokens.x.dtype)
        return tokens.but(key_bias=bias[:, None, None, :], carry=carry | {_ALIVE: alive})

    def alive(self, tokens: Tokens) -> Tensor | None:
        """The patches that every drop has kept."""
        alive = tokens.carry.get(_ALIVE)
        return None if alive is None else alive.detach()

    def loss_inputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """What decisions have noted."""
        return {name: value for name, value in tokens.carry.items() if name != _ALIVE}
