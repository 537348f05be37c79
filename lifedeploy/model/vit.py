"""The slimmable ViT: a timm VisionTransformer whose blocks run with a token reducer at their seams."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lifedeploy.model.reducers import Reducer, Tokens, build_reducer, lives, run_block
from lifedeploy.schedule import Cost, Schedule
from lifedeploy.spec import ModelSpec


class SlimOutput(NamedTuple):
    """What one forward pass gives. B images, N patches, n_T patches that reach the last layer."""

    logits: Tensor  # (B, classes)
    life: Tensor | None  # (B, N), in layers, original order; None where the method predicts none
    kept: Tensor | None  # (B, n_T), original indices of the survivors; None: all of them
    scores: Tensor | None  # (B, N), what lives are made of
    tokens: Tensor  # (B, P + n_T, C), as the last layer leaves them


class SlimViT(nn.Module):
    """A ViT and a reducer: hard forward for inference, soft forward for training."""

    def __init__(self, backbone: VisionTransformer, reducer: Reducer) -> None:
        super().__init__()
        self.backbone = backbone
        self.reducer = reducer

    @property
    def schedule(self) -> Schedule:
        """Tokens per layer."""
        return self.reducer.schedule

    def forward(self, images: Tensor, *, soft: bool = False, schedule: Schedule | None = None) -> SlimOutput:
        """Classify normalised images (B, 3, H, W).

        Hard, tokens leave. ``soft``, for training: no token leaves, weights of keys fade (eq. 6 and 7). Under the
        model's own schedule, or another ``schedule``.
        """
        if soft:
            return self._walk(images, self.reducer.relaxed(schedule or self.schedule))
        return self._walk(images, self.reducer if schedule is None else self.reducer.at(schedule))

    def _walk(self, images: Tensor, reducer: Reducer) -> SlimOutput:
        vit: Any = self.backbone
        x = vit.patch_embed(images)  # (B, N, C)
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x)))  # (B, P + N, C)
        tokens = reducer.begin(Tokens(x, prefix=vit.num_prefix_tokens))
        for layer, block in enumerate(vit.blocks, start=1):
            tokens = reducer.before_block(layer, tokens)
            tokens = run_block(block, layer, tokens, reducer)
            tokens = reducer.after_block(layer, tokens)  # (B, P + n_{t+1}, C)
        logits = reducer.logits(vit, tokens)
        life = None if tokens.scores is None else lives(tokens.scores.float(), reducer.schedule)
        return SlimOutput(logits, life, tokens.positions, tokens.scores, tokens.x)


def build_model(backbone: VisionTransformer, spec: ModelSpec, *, graph: str = "order-once") -> SlimViT:
    """The slimmable ViT that ``spec`` describes, over ``backbone``."""
    reducer = build_reducer(
        spec.method,
        spec.schedule,
        backbone.embed_dim,
        backbone.num_prefix_tokens,
        graph=graph,
        temperature=spec.temperature,
    )
    return SlimViT(backbone, reducer).eval()


def count_cost(backbone: VisionTransformer, image_size: tuple[int, int]) -> Cost:
    """Exact MACs of a backbone, read off its modules.

    Every Linear of a block meets every token once, so its MACs per token are its weight's size; QKᵀ and AV cost the
    attention's width once each per pair of tokens.
    """
    linear, attention = [], []
    for block in backbone.blocks:
        parts: Any = block
        linear.append(sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear)))
        attention.append(2 * parts.attn.num_heads * parts.attn.head_dim)
    heads = [getattr(backbone, name, None) for name in ("head", "head_dist")]
    dim = backbone.embed_dim
    return Cost(
        embed=_conv_macs(backbone.patch_embed, image_size),
        linear=tuple(linear),
        attention=tuple(attention),
        head=sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear)),
        prefix=backbone.num_prefix_tokens,
        predictor_base=dim * dim,
        predictor_patch=dim,
    )


def _conv_macs(patch_embed: nn.Module, image_size: tuple[int, int]) -> int:
    """MACs of the convolutions that turn one image into patches, counted as they run (stems may be deep)."""
    total = 0

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in patch_embed.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad():
            weight = next(patch_embed.parameters())
            patch_embed(weight.new_zeros(1, 3, *image_size))
    finally:
        for hook in hooks:
            hook.remove()
    return total
