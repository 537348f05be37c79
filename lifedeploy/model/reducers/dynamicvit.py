"""``dynamicvit``: a small network scores the surviving patches behind every drop layer.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification" (NeurIPS 2021), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import Plan, Reducer
from lifedeploy.model.reducers.scorers import ByScorers
from lifedeploy.schedule import Schedule


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

    def forward(self, patches: Tensor) -> Tensor:
        """Scores of patch tokens: (B, n, C) → (B, n).

        The logit of keeping less that of dropping: it ranks as the log-softmax of the two does.
        """
        local, whole = self.in_conv(patches).chunk(2, dim=-1)  # (B, n, C/2) each
        whole = whole.mean(dim=1, keepdim=True).expand_as(local)
        logits: Tensor = self.out_conv(torch.cat((local, whole), dim=-1))  # (B, n, 2)
        return logits[..., 0] - logits[..., 1]


class DynamicVitReducer(ByScorers):
    """Drops before the block behind each drop layer, with a predictor for each.

    Args:
        schedule: tokens per layer.
        predictors: one for each drop layer.
    """

    def __init__(self, schedule: Schedule, predictors: nn.ModuleList) -> None:
        super().__init__(schedule)
        self.score_predictor = predictors

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The reducer for a plan.

        Raises:
            UsageError: the channels cannot be halved twice.
        """
        if plan.width % 4:
            raise UsageError(f"dynamicvit halves the channels of a token twice, and this backbone has {plan.width}")
        return cls(plan.schedule, nn.ModuleList(ScorePredictor(plan.width) for _ in plan.schedule.drop_layers))

    @property
    def scorers(self) -> nn.ModuleList:
        return self.score_predictor

    def at(self, schedule: Schedule) -> Reducer:
        return DynamicVitReducer(schedule, self.score_predictor)
