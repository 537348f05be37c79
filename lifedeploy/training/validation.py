"""How good the model is: over a step's images as it trains, and over all that were held out."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from lifedeploy.data.sets import ImageSet
from lifedeploy.model.vit import SlimViT
from lifedeploy.processes import Processes
from lifedeploy.spec import PreprocessSpec
from lifedeploy.training import loader
from lifedeploy.training.config import TrainConfig


class Meter:
    """Sums of loss and right answers, kept on the device until somebody reads them."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self._began = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count one batch."""
        right = (logits.argmax(dim=1) == targets).sum()
        self._sums += torch.stack((loss.double() * len(targets), right.double(), torch.tensor(len(targets)).to(right)))

    def read(self, accelerator: Any) -> tuple[float, float, int, float]:
        """Mean loss, accuracy and number of images over all processes, and the seconds since the start."""
        loss, right, images = accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        return loss / images, right / images, int(images), time.perf_counter() - self._began


def validate(
    model: SlimViT,
    images: ImageSet,
    preprocess: PreprocessSpec,
    config: TrainConfig,
    processes: Processes,
    accelerator: Any,
) -> tuple[float, float]:
    """Loss and accuracy of the hard forward over ``images``, shared out among the processes."""
    training = [module.training for module in model.modules()]
    model.eval()
    meter = Meter(accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        for batch in loader.validation_batches(images, preprocess, config, processes, accelerator.device):
            logits = model(batch.images).logits.float()
            loss = torch.nn.functional.cross_entropy(logits, batch.targets)
            meter.add(loss, logits, batch.targets)
    for module, mode in zip(model.modules(), training, strict=True):
        module.training = mode
    mean_loss, accuracy, _, _ = meter.read(accelerator)
    return mean_loss, accuracy
