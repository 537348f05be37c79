"""The stages of a run: which parameters each of them trains, at which rate, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lifedeploy.errors import UsageError
from lifedeploy.model.vit import SlimViT
from lifedeploy.text import quoted, shortened
from lifedeploy.training.config import TrainConfig

BACKBONE, REDUCER = "backbone", "reducer"  # which part of a model a group of parameters is of


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
        stages = [
            Stage(
                name="single",
                epochs=config.total_epochs,
                reducer=True,
                backbone=True,
                elastic=config.elastic,
                soft=not config.hard,
            )
        ]
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


def freeze(model: SlimViT, stage: Stage, frozen: tuple[str, ...] = ()) -> None:
    """Let the stage's part train and nothing else: no gradients, no dropout, no running statistics in the rest.

    Of the backbone the parameters called ``frozen`` never train; what the reducer has for training alone trains with
    the backbone, where its form for training runs.
    """
    parts: list[tuple[nn.Module, bool]] = [(model.backbone, stage.backbone), (model.reducer, stage.reducer)]
    if hasattr(model.reducer, "train_only"):  # one of another package may not call Reducer.__init__
        parts.append((model.reducer.train_only, stage.backbone and stage.soft))
    for part, trains in parts:
        part.requires_grad_(trains)
        part.train(trains)
    frozen = (*frozen, *model.reducer.unused(model.adapted))
    for name, parameter in model.backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def require_frozen(model: SlimViT, config: TrainConfig) -> None:
    """Make sure that what is to stay as it is is there.

    Raises:
        UsageError: a parameter is called otherwise.
    """
    there = [name for name, _ in model.backbone.named_parameters()]
    missing = next((name for name in config.frozen if name not in there), None)
    if missing is not None:
        raise UsageError(
            f"frozen names {quoted(missing)}, and {config.backbone} has no such parameter; there are: "
            f"{shortened(', '.join(there))}"
        )


def parameter_groups(model: SlimViT, config: TrainConfig) -> list[dict[str, Any]]:
    """What the optimiser is given of a frozen model: what trains, each part at its rate.

    Weights decay; biases, norms and whatever timm exempts (position embeddings, CLS) do not.
    """
    exempt = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    # Apart only where that matters: states hold moments by a parameter's number, and are older than this difference.
    apart = bool(config.backbone_delay) or config.backbone_curve != "cosine"
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in exempt else config.weight_decay
            part, rate = _rate(name, config)
            groups.setdefault((part if apart else "", rate, decay), []).append(parameter)
    return [
        {"params": group, "part": part, "lr": rate, "peak": rate, "weight_decay": decay}
        for (part, rate, decay), group in groups.items()
    ]


def _rate(name: str, config: TrainConfig) -> tuple[str, float]:
    """The part that a parameter is of, and its rate."""
    if name.startswith(("backbone.head.", "backbone.head_dist.", "reducer.train_only.")):
        return BACKBONE, config.head_lr
    return (BACKBONE, config.backbone_lr) if name.startswith("backbone.") else (REDUCER, config.predictor_lr)


class LearningRates:
    """Linear warm-up, cosine decay: a function of the step, so that a resumed run is where it was.

    Args:
        optimizer: of :func:`parameter_groups`.
        steps: of the stage.
        config: of the run.
        rounds: how often it all begins anew, after equal parts of the stage.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, config: TrainConfig, rounds: int = 1) -> None:
        self.optimizer = optimizer  # not its groups: they are others once a state has been loaded into it
        self.steps = steps
        self.config = config
        self.rounds = rounds
        self.delay = round(config.backbone_delay * steps)

    def set(self, step: int) -> None:
        """The rates of ``step``, counted from 1."""
        config, share = self.config, self._share(step)
        for group in self.optimizer.param_groups:
            rate = group["peak"] * share
            if group["part"] == BACKBONE and config.backbone_curve == "capped":
                rate = min(group["peak"], config.predictor_lr * share)
            group["lr"] = 0.0 if group["part"] == BACKBONE and step <= self.delay else rate

    def _share(self, step: int) -> float:
        """Of the highest rate."""
        number = (step - 1) * self.rounds // self.steps
        began, ends = (-(-place * self.steps // self.rounds) for place in (number, number + 1))
        step, steps = step - began, ends - began
        warmup = round(self.config.warmup * steps)
        if step < warmup:
            return step / warmup
        cosine = 0.5 * (1 + math.cos(math.pi * step / (steps + 1)))
        return self.config.lr_min + (1 - self.config.lr_min) * cosine

    @property
    def largest(self) -> float:
        """Of the rates now."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))
