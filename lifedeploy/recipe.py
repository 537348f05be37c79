"""How a method is trained, as data: what each stage trains, and whose settings are taken where none are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# "published": of the method's authors, as its row says; "lifedeploy": distilled from the dense model, tokens really
# leave, the same for every method; "none": the defaults of training/config.py.
RecipeName = Literal["published", "lifedeploy", "none"]
PUBLISHED: RecipeName = "published"
LIFEDEPLOY: RecipeName = "lifedeploy"
NO_RECIPE: RecipeName = "none"
# Beside settings of training, a row's recipe may say for how many images per step its learning rates are: for another
# batch they are multiplied by batch / that, as DeiT's code does, of which most authors' is made. timm's word for it.
LR_BASE_SIZE = "lr_base_size"
# The rate is that of dense training; others that were tried for lives are in benchmarks/real/GRID.md.
LIFEDEPLOY_SETTINGS: Mapping[str, Any] = {"distill": True, "hard": True, "epochs": 2, "backbone_lr": 2e-5}


@dataclass(frozen=True)
class TrainingStage:
    """Which of the two parts a stage trains; the other one is frozen."""

    name: str
    reducer: bool  # the method's own parameters
    backbone: bool
    soft: bool = True  # with the reducer's differentiable twin, where it has one
