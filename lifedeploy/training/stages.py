"""Algorithm 1 as data: which parameters each stage trains, at which rate, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.layers import DropPath
from torch import nn

from lifedeploy.model.vit import SlimViT
from lifedeploy.training.config import TrainConfig


@dataclass(frozen=True)
class Stage:
    """One stage. ``predictor`` and ``backbone`` say which of the two is trained; the other one is frozen."""

    name: str
    epochs: int
    predictor: bool
    backbone: bool
    elastic: bool = False
    soft: bool = True  # the predictor needs the soft forward: through the hard one it gets no gradient


def plan(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run; those without an epoch are left out."""
    if config.dense:
        stages = [Stage("dense", config.epochs, predictor=False, backbone=True)]
    elif config.single_stage:
        epochs = config.stage1_epochs + config.stage2_epochs
        stages = [Stage("single", epochs, predictor=True, backbone=True, elastic=config.elastic)]
    else:
        stages = [
            Stage("predictor", config.stage1_epochs, predictor=True, backbone=False),
            Stage(
                "backbone",
                config.stage2_epochs,
                predictor=False,
                backbone=True,
                elastic=config.elastic,
                soft=not config.hard,
            ),
        ]
    return tuple(stage for stage in stages if stage.epochs)


def freeze(model: SlimViT, stage: Stage) -> None:
    """Let the stage's part train and nothing else: no gradients, no dropout, no running statistics in the rest."""
    for part, trains in ((model.backbone, stage.backbone), (model.reducer, stage.predictor)):
        part.requires_grad_(trains)
        part.train(trains)


def drop_paths(model: SlimViT, rate: float) -> None:
    """Stochastic depth, rising from 0 in the first block to ``rate`` in the last, as timm builds it in."""
    blocks = list(model.backbone.blocks)
    for number, block in enumerate(blocks if rate else []):
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(rate * number / max(len(blocks) - 1, 1)))


def parameter_groups(model: SlimViT, config: TrainConfig) -> list[dict[str, Any]]:
    """What the optimiser is given of a frozen model: what trains, each part at its rate.

    Weights decay; biases, norms and whatever timm exempts (position embeddings, CLS) do not.
    """
    exempt = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in exempt else config.weight_decay
            groups.setdefault((_rate(name, config), decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _rate(name: str, config: TrainConfig) -> float:
    if name.startswith(("backbone.head.", "backbone.head_dist.")):
        return config.head_lr
    return config.backbone_lr if name.startswith("backbone.") else config.predictor_lr
