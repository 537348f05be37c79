"""``dynamicvit``: a small network scores the surviving patches behind every drop layer.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification" (NeurIPS 2021), sections 3.2
and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import Plan, Reducer
from lifedeploy.model.reducers.scorers import ByScorers, Masking
from lifedeploy.schedule import Schedule

_OFF = "off"  # (B,): by how much the share of patches kept misses the one wanted, for each drop


class ScorePredictor(nn.Module):
    """Half of what a patch is embedded in stays local, the other half is averaged over all patches (eq. 1 to 4).

    Its parts are called as in the authors' weights, which so are read as they are.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
        )

    def forward(self, patches: Tensor, alive: Tensor | None = None) -> Tensor:
        """Scores of patch tokens: (B, n, C) → (B, n). Where some are masked only those ``alive`` (B, n) are averaged.

        The logit of keeping less that of dropping: it ranks as the log-softmax of the two does.
        """
        local, whole = self.in_conv(patches).chunk(2, dim=-1)  # (B, n, C/2) each
        if alive is None:
            whole = whole.mean(dim=1, keepdim=True)
        else:
            weights = alive / alive.sum(dim=1, keepdim=True).clamp_min(1e-6)
            whole = (weights[:, None] @ whole.float()).to(local.dtype)
        logits: Tensor = self.out_conv(torch.cat((local, whole.expand_as(local)), dim=-1))  # (B, n, 2)
        return logits[..., 0] - logits[..., 1]


class DynamicVitReducer(ByScorers):
    """Drops before the block behind each drop layer, with a predictor for each.

    Args:
        schedule: tokens per layer.
        predictors: one for each drop layer.
        ratio_weight: of the ratio loss, in training.
    """

    def __init__(self, schedule: Schedule, predictors: nn.ModuleList, ratio_weight: float) -> None:
        super().__init__(schedule)
        self.score_predictor = predictors
        self.ratio_weight = ratio_weight

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The reducer for a plan.

        Raises:
            UsageError: the channels cannot be halved twice.
        """
        if plan.width % 4:
            raise UsageError(f"dynamicvit halves the channels of a token twice, and this backbone has {plan.width}")
        predictors = nn.ModuleList(ScorePredictor(plan.width) for _ in plan.schedule.drop_layers)
        return cls(plan.schedule, predictors, plan.options.ratio_weight)

    @property
    def scorers(self) -> nn.ModuleList:
        return self.score_predictor

    def at(self, schedule: Schedule) -> Reducer:
        return DynamicVitReducer(schedule, self.score_predictor, self.ratio_weight)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The form that draws who stays, over the same predictors."""
        return RelaxedDynamicVit(schedule, self.score_predictor)

    def penalty(self, loss_inputs: Mapping[str, Tensor], right: Tensor) -> Tensor | None:
        """The ratio loss: each image's share of patches kept, at each drop, against the schedule's."""
        off = [value.square().mean() for name, value in loss_inputs.items() if name.startswith(_OFF)]
        return self.ratio_weight * torch.stack(off).mean() if off else None


class RelaxedDynamicVit(Masking):
    """For training: each patch stays or goes by a draw of Gumbel-softmax, hard in the forward pass and differentiable
    in the backward pass (section 3.2).
    """

    def __init__(self, schedule: Schedule, predictors: nn.ModuleList) -> None:
        super().__init__(schedule)
        self.score_predictor = predictors

    def decide(self, drop: int, patches: Tensor, alive: Tensor, carry: dict[str, Tensor]) -> Tensor:
        scores = self.score_predictor[drop](patches, alive).float()  # (B, N): the difference of two logits
        drawn = F.gumbel_softmax(torch.stack((scores, torch.zeros_like(scores)), dim=-1), hard=True)[..., 0]
        wanted = self.schedule.after(self.schedule.drop_layers[drop]) / self.schedule.patches
        carry[f"{_OFF} {drop}"] = (alive * drawn).mean(dim=1) - wanted
        return drawn
