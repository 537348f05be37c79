"""``ia-red2``: a multi-head interpreter asks, before each group of layers, how informative every patch is.

Pan et al., "IA-RED²: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021), section 3.2:
I_i = mean over heads of sigmoid(F_q(x_i) · F_k(p)), with a learned policy token p. There it drops what falls below a
half, and there is no public code; here patches are ranked by I at a fixed budget.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import Plan, Reducer
from lifedeploy.model.reducers.scorers import ByScorers
from lifedeploy.schedule import Schedule


class Interpreter(nn.Module):
    """How informative patches are."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.policy = nn.Parameter(torch.randn(dim))
        self.queries = nn.Linear(dim, dim)
        self.keys = nn.Linear(dim, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, n, C) → (B, n).

        What patches are compared with is the same for all images, so of the product with it C numbers a head are left.
        """
        heads, width = self.heads, patches.shape[-1] // self.heads
        keys = self.keys(self.policy).reshape(heads, width, 1)  # (H, D, 1)
        towards = self.queries.weight.reshape(heads, width, -1).transpose(1, 2) @ keys  # (H, C, 1)
        bias = (self.queries.bias.reshape(heads, 1, width) @ keys).reshape(heads)
        logits: Tensor = patches @ towards.squeeze(2).transpose(0, 1) + bias  # (B, n, H)
        return logits.sigmoid().mean(dim=-1)


class IaRed2Reducer(ByScorers):
    """Drops before the block behind each drop layer, with an interpreter for each.

    Args:
        schedule: tokens per layer.
        interpreters: one for each drop layer.
    """

    def __init__(self, schedule: Schedule, interpreters: nn.ModuleList) -> None:
        super().__init__(schedule)
        self.interpreters = interpreters

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The reducer for a plan.

        Raises:
            UsageError: heads do not share the channels evenly.
        """
        if plan.width % plan.heads:
            raise UsageError(f"ia-red2 shares {plan.width} channels among {plan.heads} heads, which is not even")
        return cls(plan.schedule, nn.ModuleList(Interpreter(plan.width, plan.heads) for _ in plan.schedule.drop_layers))

    @property
    def scorers(self) -> nn.ModuleList:
        return self.interpreters

    def at(self, schedule: Schedule) -> Reducer:
        return IaRed2Reducer(schedule, self.interpreters)
