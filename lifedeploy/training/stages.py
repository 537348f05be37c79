"""The stages of a run: which parameters each of them trains, at which rate, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lifedeploy.model.vit import SlimViT
from lifedeploy.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. ``reducer`` and ``backbone`` say which of the two is trained; the other one is frozen."""

    name: str
    epochs: int
    reducer: bool
    backbone: bool
    elastic: bool = False
    soft: bool = True  # through the hard form the reducer gets no gradient


def plan(config: TrainConfig) -> tuple[Stage, ...]:
    """The stages of a run; those without an epoch are left out."""
    if config.single_stage:
        stages = [Stage(name="single", epochs=config.total_epochs, reducer=True, backbone=True, elastic=config.elastic)]
    else:
        stages = [
            Stage(
                name=stage.name,
                epochs=epochs,
                reducer=stage.reducer,
                backbone=stage.backbone,
                elastic=config.elastic and stage.backbone,
                soft=stage.soft and not (config.hard and not stage.reducer),
            )
            for stage, epochs in zip(config.trained_method.stages, config.stage_epochs, strict=True)
        ]
    return tuple(stage for stage in stages if stage.epochs)


def freeze(model: SlimViT, stage: Stage) -> None:
    """Let the stage's part train and nothing else: no gradients, no dropout, no running statistics in the rest."""
    for part, trains in ((model.backbone, stage.backbone), (model.reducer, stage.reducer)):
        part.requires_grad_(trains)
        part.train(trains)


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
