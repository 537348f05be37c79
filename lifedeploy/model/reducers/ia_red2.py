"""``ia-red2``: a multi-head interpreter asks, before each group of layers, how informative every patch is.

Pan et al., "IA-RED²: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021), section 3.2:
I_i = mean over heads of sigmoid(F_q(x_i) · F_k(p)), with a learned policy token p. There it drops what falls below a
half, and there is no public code; here patches are ranked by I at a fixed budget.

Interpreters are trained by REINFORCE (section 3.3), a group of layers after the other: a patch stays with probability
I, and what is rewarded is a right answer, and the share of patches that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import Plan, Reducer
from lifedeploy.model.reducers.scorers import ByScorers, Masking
from lifedeploy.schedule import Schedule

# (B,) each, of the group that is learning: log-probability of what was drawn, a mean over patches; share that is gone.
_LIKELIHOOD, _GONE = "likelihood", "gone"


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

    knows_schedule = False

    def __init__(self, schedule: Schedule, interpreters: nn.ModuleList) -> None:
        super().__init__(schedule)
        self.interpreters = interpreters
        self.turns = max(len(interpreters), 1)

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

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The form that draws who stays, over the same interpreters."""
        return RelaxedIaRed2(schedule, self.interpreters)

    def penalty(self, loss_inputs: Mapping[str, Tensor], right: Tensor) -> Tensor | None:
        """Of REINFORCE: what was drawn becomes likelier where its reward is above the batch's mean, else unlikelier."""
        if _GONE not in loss_inputs:
            return None
        reward = right.float() + loss_inputs[_GONE]
        return -((reward - reward.mean()) * loss_inputs[_LIKELIHOOD]).mean()


class RelaxedIaRed2(Masking):
    """For training, a group of layers after the other: one interpreter learns, by drawing who stays; those before it
    drop what they find below a half, and those behind it drop nothing yet.
    """

    def __init__(self, schedule: Schedule, interpreters: nn.ModuleList, learning: int = 0) -> None:
        super().__init__(schedule)
        self.interpreters = interpreters
        self.learning = learning

    def during(self, progress: float) -> Reducer:
        """As many parts as there are groups."""
        return RelaxedIaRed2(self.schedule, self.interpreters, int(progress * len(self.interpreters)))

    def decide(self, drop: int, patches: Tensor, alive: Tensor, carry: dict[str, Tensor]) -> Tensor:
        stay = self.interpreters[drop](patches).float().clamp(1e-6, 1 - 1e-6)  # (B, N), probabilities
        drawn = torch.bernoulli(stay) if drop == self.learning else (stay >= 0.5).float()
        if drop > self.learning:
            drawn = torch.ones_like(drawn)
        # Of patches that are gone nothing is decided. What does not learn counts nothing, and has a gradient of zero:
        # of several processes each expects one of every parameter.
        each = (drawn * stay.log() + (1 - drawn) * (1 - stay).log()) * alive
        likelihood = (each.sum(dim=1) / alive.sum(dim=1).clamp_min(1)) * (drop == self.learning)
        carry[_LIKELIHOOD] = carry.get(_LIKELIHOOD, 0) + likelihood
        if drop == self.learning:
            carry[_GONE] = 1 - (alive * drawn).mean(dim=1)
        return drawn
