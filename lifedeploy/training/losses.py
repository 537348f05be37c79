"""What a step minimises: cross entropy, and with a teacher what DynamicViT adds to it (PEERS: its training)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.reducers.base import gather_tokens
from lifedeploy.model.vit import SlimOutput
from lifedeploy.training.config import TrainConfig


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy in FP32: logits (B, K) against classes (B,), or against the soft targets (B, K) of a mixture."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing if targets.ndim == 1 else 0.0)


def distillation_loss(
    student: SlimOutput, teacher: SlimOutput, norm: nn.Module, config: TrainConfig, kept: int
) -> Tensor:
    """Distance from the dense teacher: divergence of the logits, squared distance of the tokens that survive.

    ``kept`` patch tokens with the longest lives count as surviving; the prefix always does.
    """
    divergence = F.kl_div(
        F.log_softmax(student.logits.float(), dim=1),
        F.log_softmax(teacher.logits.float(), dim=1),
        reduction="batchmean",
        log_target=True,
    )
    wanted = teacher.tokens  # (B, P + N, C)
    if student.kept is not None:  # hard: only survivors are left
        prefix = student.tokens.shape[1] - student.kept.shape[1]
        places = F.pad(student.kept + prefix, (prefix, 0))
        places[:, :prefix] = torch.arange(prefix, device=places.device)
        wanted = gather_tokens(wanted, places)
    ours, theirs = norm(student.tokens).float(), norm_without_gradient(norm, wanted).float()  # (B, L, C)
    distance = (ours - theirs).square().mean(dim=2)  # (B, L)
    mask = torch.ones_like(distance)
    if student.kept is None and student.life is not None:
        prefix = distance.shape[1] - student.life.shape[1]
        alive = torch.zeros_like(student.life).scatter(1, student.life.topk(kept, dim=1).indices, 1.0)
        mask = F.pad(alive, (prefix, 0), value=1.0).to(distance.dtype)
    tokens = (distance * mask).sum() / mask.sum()
    return config.distill_logits * divergence + config.distill_tokens * tokens


@torch.no_grad()
def norm_without_gradient(norm: nn.Module, tokens: Tensor) -> Any:
    """The teacher's tokens through the student's own final norm: what differs is then the tokens."""
    return norm(tokens)
