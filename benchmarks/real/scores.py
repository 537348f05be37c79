"""What a checkpoint answers to the validation photographs, asked of PyTorch in FP32, without an export or an engine.

``lifedeploy evaluate`` takes checkpoints too, on the CPU and in the schedule that they were trained in: here it is any
keep rate, and a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.photographs import DEFECTIVE
from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.budget import at_keep_rate, at_macs
from lifedeploy.data.batches import decoded_batches
from lifedeploy.data.images import read_split
from lifedeploy.data.preprocess import normalise
from lifedeploy.evaluation.accuracy import Tally
from lifedeploy.machine import cores
from lifedeploy.model import backbones
from lifedeploy.model.request import ModelRequest
from lifedeploy.model.vit import SlimViT
from lifedeploy.model.weights import load
from lifedeploy.spec import ModelSpec

BATCH = 32


@dataclass(frozen=True)
class Asked:
    """A checkpoint as a method at a keep rate; None: the method has a budget of its own, or drops nothing."""

    weights: Path
    method: str
    keep_rate: float | None
    options: Mapping[str, Any] | None = None


def score(asked: Asked, backbone: str, image_size: int, images: Path) -> dict[str, float]:
    """Accuracy and average precision (of the class *defective*) in percent, loss in nats, and the GMACs of an image."""
    request = ModelRequest(
        backbone=backbone,
        weights=str(asked.weights),
        method=asked.method,
        keep_rate=asked.keep_rate,
        options=asked.options or {},
        image_size=(image_size, image_size),
    )
    loaded = load(request, Workspace(asked.weights.parent))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tally = answers(loaded.model.to(device).eval(), loaded.spec, images, device)
    result = tally.result(loaded.spec.classes)
    precision = next(row.average_precision for row in result.per_class if row.index == DEFECTIVE)
    assert precision is not None  # there are such images
    scores = {"accuracy": 100 * result.top1, "average_precision": 100 * precision, "loss": result.loss}
    return scores | {"gmacs": gmacs(loaded.spec)}


@torch.inference_mode()
def answers(model: SlimViT, spec: ModelSpec, images: Path, device: torch.device) -> Tally:
    """A model's answers to all validation photographs, as a deployed engine would be asked."""
    tally, preprocess = Tally(spec.num_classes), spec.preprocess
    split = read_split(str(images)).val
    with closing(decoded_batches(split, [preprocess], batch=BATCH, workers=cores())) as batches:
        for batch in batches:
            pixels = torch.from_numpy(normalise(batch.pixels[preprocess], preprocess)).to(device)
            tally.add(model(pixels).logits.float().cpu().numpy(), batch.targets)
    return tally


def gmacs(spec: ModelSpec) -> float:
    """What the model costs, its last block as deployed."""
    sized = backbones.sized(spec.timm_name, image_size=spec.image_size, num_classes=spec.num_classes)
    return sized.macs(methods.get(spec.method), spec.schedule, spec.options) / 1e9


def at_work_of_life(method: str, keep_rate: float, backbone: str, image_size: int) -> float | None:
    """The keep rate under which a method costs what lives cost at ``keep_rate``; None: it takes none."""
    sized = backbones.sized(backbone, image_size=(image_size, image_size), num_classes=2)
    life = at_keep_rate(methods.get(methods.DEFAULT), keep_rate, sized)
    return at_macs(methods.get(method), life.macs, sized).keep_rate
