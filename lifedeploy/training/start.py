"""Where a run starts: which weights it trains, and what has to be said of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.errors import UsageError, WeightsError
from lifedeploy.model import backbones, checkpoint, weights
from lifedeploy.model.weights import LoadedModel, ModelRequest
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.stages import plan
from lifedeploy.typed import RANDOM_WEIGHTS


def resolved(config: TrainConfig, classes: Sequence[str], workspace: Workspace) -> tuple[TrainConfig, str]:
    """The configuration with ``--weights auto`` made explicit, so that a resumed run starts from the same; a warning.

    A slimmed model is trained over the newest dense one fine-tuned on these classes; failing that, and for a dense run,
    over timm's weights; with no hub in reach, over random ones.
    """
    if config.weights != "auto":
        return config, ""
    backbone = backbones.timm_name(config.backbone)
    if config.slims:
        wanted = (backbone, methods.baseline().name, tuple(classes))
        for path in workspace.checkpoints():
            try:
                spec = checkpoint.read_spec(path)
            except WeightsError:  # damaged, or still being written
                continue
            if spec is None or (spec.timm_name, spec.method, spec.classes) != wanted:
                continue
            if config.size in (None, spec.image_size):
                return config.but(weights=str(path)), ""
    obstacle = weights.hub_obstacle(backbone)
    if not obstacle:
        return config.but(weights="pretrained"), ""
    return config.but(weights=RANDOM_WEIGHTS), (
        f"RANDOM WEIGHTS to start from: no model fine-tuned on these classes in {workspace.root}/ and no pretrained "
        f"weights ({obstacle})."
    )


def load_start(config: TrainConfig, classes: Sequence[str], workspace: Workspace) -> LoadedModel:
    """The model that the run trains, with a head for ``classes``.

    Raises:
        UsageError, WeightsError: it cannot be had.
    """
    request = ModelRequest(
        backbone=config.backbone,
        keep_rate=None if config.counts or config.has_own_budget else config.keep_rate,
        counts=config.counts or None,
        drop_layers=config.drop_layers or None,
        method=config.trained_method.name,
        options=config.model_options,
        weights=config.weights,
        image_size=config.size,
        num_classes=len(classes),
        new_head=True,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)  # a new head is drawn
        loaded = weights.load(request, workspace)
    if loaded.spec.classes and set(loaded.spec.classes) == set(classes) and loaded.spec.classes != tuple(classes):
        raise WeightsError(f"{config.weights} orders its classes differently: {', '.join(loaded.spec.classes[:5])} …")
    return loaded


def warning_of(loaded: LoadedModel, config: TrainConfig) -> str:
    """What is wrong with where it starts; '' where nothing is."""
    start = loaded.spec.provenance
    if config.slims and start.weights == RANDOM_WEIGHTS:
        what = "lives are" if config.trained_method.predicts_lives else f"{config.method} is"
        return f"{what} about to be trained on random weights: fine-tune a model first (lifedeploy train --dense)"
    if config.slims and loaded.new_head:
        return "the head is new: fine-tune a dense model on these classes first (lifedeploy train --dense)"
    return ""


def fingerprint(config: TrainConfig, loaded: LoadedModel) -> str:
    """What must be the same for a run to be continued: all that decides its result."""
    start = asdict(loaded.spec.provenance)
    return hashlib.sha256(json.dumps([config.decisive(), start], sort_keys=True).encode()).hexdigest()


def require_schedules(loaded: LoadedModel, config: TrainConfig) -> None:
    """Make sure that the method can change its schedule where it has to, before anything is written.

    Raises:
        UsageError: it cannot, or has the same one for all keep rates.
    """
    if config.elastic:
        asked, rates = "--elastic changes the keep rate in every step", config.elastic_range
    elif config.keep_ramp[1]:
        asked, rates = "--keep-ramp lets the keep rate fall", (config.keep_rate, 1.0)
    else:
        return
    ends = [config.schedule_at(rate, loaded.spec.schedule) for rate in rates]
    if ends[0].tokens == ends[1].tokens:
        if config.elastic and rates[0] < rates[1]:
            raise UsageError(f"{asked}, and {config.method} has one schedule for all")
        return  # so few tokens leave that it is none
    soft = [stage.name for stage in plan(config) if stage.backbone and stage.soft]
    if soft and not loaded.model.reducer.knows_schedule:
        raise UsageError(
            f"{asked}, and in stage {soft[0]} {config.method} trains in a form that knows of none",
            hint="--hard, under which tokens really leave",
        )
    for other in ends:
        loaded.model.reducer.relaxed(other)
        loaded.model.reducer.at(other)
