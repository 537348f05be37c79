"""The dense model as teacher: what it answers, what its tokens become, and where it looks.

The first two are the distillation of DynamicViT (Rao et al., https://arxiv.org/abs/2106.02034, section 3.3). The third
is ours: lives are one ranking made after layer t_base, and a dense model shows in its later layers what a good ranking
would have been.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.kept import NO_PATCH
from lifedeploy.model.lives import standardise
from lifedeploy.model.reducers import BlockAttention, Reducer, Tokens
from lifedeploy.model.tokens import gather_tokens
from lifedeploy.model.vit import SlimOutput, SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.training.config import TrainConfig


class Watched(Reducer):
    """Dense, and scores each patch by the attention that CLS pays to it in the layers after ``base_layer``.

    The scores (B, N) are a mean over those layers, every layer's row adding up to 1 over the patches. The k-th of them
    counts k times: later layers have fewer tokens to choose from and see more of what the image is about. One ranking
    for every keep rate, as lives are.
    """

    def __init__(self, patches: int, depth: int, base_layer: int) -> None:
        super().__init__(Schedule.dense(patches, depth))
        after = range(base_layer + 1, depth + 1)
        self.weights = {layer: (layer - base_layer) / sum(range(len(after) + 1)) for layer in after}

    @property
    def inside_layers(self) -> frozenset[int]:
        """The layers that lives are about."""
        return frozenset(self.weights)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Add this layer's row to the scores."""
        row = attention.cls_row().float()[:, tokens.prefix :]  # (B, N)
        row = self.weights[layer] * row / row.sum(dim=1, keepdim=True)
        return tokens.but(scores=row if tokens.scores is None else tokens.scores + row)


def require_watchable(model: SlimViT, config: TrainConfig) -> None:
    """Refuse to distil lives from a model that does not show its attention.

    Raises:
        UnsupportedModelError: a block that is not pre-norm.
    """
    backbone = model.adapted
    closed = [type(block).__name__ for layer, block in enumerate(backbone.blocks, 1) if not backbone.has_inside(layer)]
    if config.teaches_lives and closed:
        raise UnsupportedModelError(
            f"--distill teaches lives by the attention of pre-norm blocks, and the backbone has a {closed[0]}",
            hint="distill_lives = 0 in a --config file leaves logits and tokens to distil",
        )


class Teacher:
    """A frozen copy of the model as it is now, with every token in every layer."""

    def __init__(self, model: SlimViT, config: TrainConfig) -> None:
        patches, depth = model.schedule.patches, model.schedule.depth
        if config.teaches_lives and model.schedule.drop_layers:
            reducer: Reducer = Watched(patches, depth, model.schedule.base_layer)
        else:
            reducer = Reducer(Schedule.dense(patches, depth))
        self.model = SlimViT(deepcopy(model.backbone), reducer).eval().requires_grad_(False)
        self.config = config

    @torch.no_grad()
    def __call__(self, images: Tensor) -> SlimOutput:
        """What the dense model makes of normalised images (B, 3, H, W)."""
        output: SlimOutput = self.model(images)
        return output

    def loss(self, student: SlimOutput, wanted: SlimOutput, norm: nn.Module) -> Tensor:
        """How far the student is from the teacher: three terms, weighted as the configuration says.

        Logits: the divergence. Tokens: the squared distance behind ``norm``, the student's own last one, so that what
        differs is the tokens; the prefix and the patches that survive count. Lives: :func:`ranking_loss`.
        """
        divergence = F.kl_div(
            F.log_softmax(student.logits.float(), dim=1),
            F.log_softmax(wanted.logits.float(), dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = self.config.distill_logits * divergence
        loss = loss + self.config.distill_tokens * _token_loss(student, wanted, norm)
        if student.lives is not None and student.scores is not None and wanted.scores is not None:
            loss = loss + self.config.distill_lives * ranking_loss(student.scores, wanted.scores)
        return loss


def ranking_loss(scores: Tensor, attention: Tensor) -> Tensor:
    """1 - the correlation of scores (B, N) with the logarithm of attention (B, N), mean over images.

    Lives are standardised scores (eq. 3), so this is half their squared distance from the lives that attention itself
    would give, in standard deviations: blind to what eq. 3 is blind to.
    """
    wanted = standardise(attention.float().clamp_min(1e-12).log())
    return 1 - (standardise(scores.float()) * wanted).mean()


def _token_loss(student: SlimOutput, teacher: SlimOutput, norm: nn.Module) -> Tensor:
    wanted, survivors = teacher.tokens, student.survivors  # (B, P + N, C), (B, n)
    counts: Tensor | None = None  # (B, L), which tokens do
    if survivors is not None:  # tokens have left, or lie in another order; those that are no single patch have no like
        prefix = student.tokens.shape[1] - survivors.shape[1]
        places = F.pad(survivors.clamp_min(0) + prefix, (prefix, 0))
        places[:, :prefix] = torch.arange(prefix, device=places.device)
        wanted = gather_tokens(wanted, places)
        counts = F.pad((survivors != NO_PATCH).float(), (prefix, 0), value=1.0)
    elif student.alive is not None:
        counts = F.pad(student.alive, (wanted.shape[1] - student.alive.shape[1], 0), value=1.0)
    with torch.no_grad():
        theirs: Any = norm(wanted).float()
    distance: Tensor = (norm(student.tokens).float() - theirs).square().mean(dim=2)  # (B, L)
    mask: Tensor = torch.ones_like(distance) if counts is None else counts.to(distance.dtype)
    return (distance * mask).sum() / mask.sum()
