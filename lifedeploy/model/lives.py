"""Scores to lives (eq. 3 of the LifeViT paper)."""

from __future__ import annotations

from torch import Tensor

from lifedeploy.schedule import Schedule


def standardise(scores: Tensor) -> Tensor:
    """Scores (B, N) less their mean, over their standard deviation, for every image; 0 where they are all equal."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    # Of the whole population, as eq. 10 is; and guarded, since the deviation can be 0.
    # before the root: behind it, the gradient of the root at 0 would already be infinite
    deviation = centred.square().mean(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    return centred / deviation


def lives(scores: Tensor, schedule: Schedule) -> Tensor:
    """τ of eq. 3: scores (B, N) → lives (B, N) in layers, with the schedule's mean and standard deviation.

    An image whose scores are all equal gets the mean everywhere.
    """
    return standardise(scores) * schedule.std_life + schedule.mean_life
