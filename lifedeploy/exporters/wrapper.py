"""What a graph needs differently from the model, as a wrapper: the model never asks whether it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lifedeploy.model.vit import SlimViT
from lifedeploy.spec import PreprocessSpec


class Normalise(nn.Module):
    """uint8 images as a camera or a decoder gives them, (B, H, W, 3), to the model's input, (B, 3, H, W)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        # (x / 255 - mean) / std as one multiply and one add.
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift


class ExportModel(nn.Module):
    """The model as the graph shows it: images in; logits, and lives if asked for, out."""

    def __init__(self, model: SlimViT, *, preprocess: PreprocessSpec | None, with_life: bool) -> None:
        super().__init__()
        self.preprocess = Normalise(preprocess) if preprocess else None
        self.model = model
        self.with_life = with_life

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(logits,)`` or ``(logits, life)``."""
        if self.preprocess is not None:
            images = self.preprocess(images)
        output = self.model(images)
        if self.with_life and output.life is not None:
            return output.logits, output.life
        return (output.logits,)


@contextmanager
def plain_attention(model: SlimViT) -> Iterator[None]:
    """Trace attention as MatMul → Softmax → MatMul with a constant scale.

    Runtimes fuse that pattern themselves. torch's own decomposition of scaled_dot_product_attention computes its
    scale in the graph (108 nodes more for 12 layers) and was no faster anywhere.
    """
    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in attentions]
    try:
        for module in attentions:
            module.fused_attn = False
        yield
    finally:
        for module, fused in zip(attentions, before, strict=True):
            module.fused_attn = fused
