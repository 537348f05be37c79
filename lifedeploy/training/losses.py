"""The loss that a training step minimises, without distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy in FP32: logits (B, K) against classes (B,), or against the soft targets (B, K) of a mixture."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing if targets.ndim == 1 else 0.0)
