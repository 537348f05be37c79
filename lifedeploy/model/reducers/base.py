"""The seam between a ViT and a method that reduces its tokens.

The model walks its blocks and offers every block's seams to the reducer, in this order::

    begin → [before_block(t) → attention → inside_block(t) → MLP → after_block(t)] for t = 1…T → logits

A method overrides the seams it needs and leaves the rest. ``inside_block`` is offered only for the layers in
``inside_layers``: only there is a block taken apart, everywhere else it runs whole. What each kind of method needs:

====================================================  ==========================================================
scores before a block with parameters of its own      ``before_block``
scores from the CLS row of a block's attention        ``inside_layers``, :meth:`BlockAttention.cls_row`
drops or merges between attention and MLP             ``inside_block``
weights the keys of later attention                   ``Tokens.key_bias``
parks tokens, carries sizes or running scores         ``Tokens.carry``
reads the classes from something else than CLS        ``logits``
====================================================  ==========================================================

Token selection is a function of tensors and integers; every count is known before tracing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class Tokens:
    """The tokens between two seams.

    Shapes: B images, P prefix tokens, n patch tokens now, N at the start, C channels.
    """

    x: Tensor  # (B, P + n, C)
    prefix: int  # P
    positions: Tensor | None = None  # (B, n), original index of each patch token; None: all N, in order
    scores: Tensor | None = None  # (B, N), importance in original order, once predicted
    key_bias: Tensor | None = None  # (B, 1, 1, P + n), added to the attention logits of every query
    carry: Mapping[str, Tensor] = field(default_factory=dict)  # whatever else the method takes along

    @property
    def patches(self) -> int:
        """Patch tokens now, n."""
        return self.x.shape[1] - self.prefix

    def but(self, **changes: Any) -> Tokens:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class BlockAttention:
    """What the attention of one block saw: for methods that score from it.

    Taken from the block's own qkv projection as it ran, so nothing is computed twice and the attention itself stays
    fused.
    """

    q: Tensor  # (B, H, L, D)
    k: Tensor  # (B, H, L, D)
    scale: float
    key_bias: Tensor | None

    @classmethod
    def from_qkv(cls, attention: Any, qkv: Tensor, key_bias: Tensor | None) -> BlockAttention:
        """From the output of timm's fused qkv projection, (B, L, 3·H·D)."""
        batch, length, _ = qkv.shape
        heads = qkv.reshape(batch, length, 3, attention.num_heads, attention.head_dim)
        q, k, _ = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return cls(attention.q_norm(q), attention.k_norm(k), attention.scale, key_bias)

    def cls_row(self) -> Tensor:
        """Attention that CLS pays to every token, softmax over all, mean over heads: (B, L)."""
        logits = (self.q[:, :, :1] * self.scale) @ self.k.transpose(-2, -1)  # (B, H, 1, L)
        if self.key_bias is not None:
            logits = logits + self.key_bias
        return logits.softmax(dim=-1).mean(dim=1).squeeze(1)


class Reducer(nn.Module):
    """A token-reduction method. The base class reduces nothing."""

    method: str = "dense"

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @property
    def inside_layers(self) -> frozenset[int]:
        """Layers whose block is taken apart for :meth:`inside_block`."""
        return frozenset()

    def begin(self, tokens: Tokens) -> Tokens:
        """Before the first block."""
        return tokens

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Before block ``layer``."""
        return tokens

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Between attention (its residual added) and MLP of block ``layer``."""
        raise NotImplementedError(f"{type(self).__name__} lists layer {layer} in inside_layers: it has to say why")

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """After block ``layer``."""
        return tokens

    def logits(self, vit: VisionTransformer, tokens: Tokens) -> Tensor:
        """Final norm and head: (B, classes)."""
        return vit.forward_head(vit.norm(tokens.x))

    def at(self, schedule: Schedule) -> Reducer:
        """The same method with the same parameters under another schedule; for one that drops nothing, itself."""
        return self

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The differentiable form used in training, under ``schedule``; for a method without decisions, itself."""
        return self


class KeepPrefix(nn.Module):
    """Keep the first ``tokens`` tokens. A module, so that its Slice carries its name in an exported graph."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.tokens]  # (B, tokens, C)


def has_inner_seam(block: nn.Module) -> bool:
    """Whether a place lies between a block's attention and its MLP: in timm's pre-norm blocks it does."""
    return all(hasattr(block, name) for name in ("norm1", "attn", "ls1", "norm2", "mlp", "ls2"))


def run_block(block: nn.Module, layer: int, tokens: Tokens, reducer: Reducer) -> Tokens:
    """One transformer block with its inner seam, over timm's own modules.

    Raises:
        UnsupportedModelError: the reducer needs the inner seam of a block that has none (not a pre-norm block).
    """
    if layer not in reducer.inside_layers:
        if tokens.key_bias is None:
            return tokens.but(x=block(tokens.x))
        return tokens.but(x=block(tokens.x, attn_mask=tokens.key_bias))

    if not has_inner_seam(block):
        raise UnsupportedModelError(
            f"method {reducer.method} works between attention and MLP, and {type(block).__name__} has no such place"
        )
    parts: Any = block
    captured: list[Tensor] = []
    hook = parts.attn.qkv.register_forward_hook(lambda module, inputs, output: captured.append(output))
    try:
        attended = parts.attn(parts.norm1(tokens.x), attn_mask=tokens.key_bias)
    finally:
        hook.remove()
    tokens = tokens.but(x=tokens.x + parts.drop_path1(parts.ls1(attended)))
    attention = BlockAttention.from_qkv(parts.attn, captured[0], tokens.key_bias)
    tokens = reducer.inside_block(layer, tokens, attention)
    return tokens.but(x=tokens.x + parts.drop_path2(parts.ls2(parts.mlp(parts.norm2(tokens.x)))))


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b]]`` for every image b: (B, L, C), (B, K) → (B, K, C).

    As a flat ``index_select`` over axis 0 of [B·L, C]: in ONNX one plain Gather on axis 0, the form that runtimes
    handle best, and one that no exporter ties to the example's batch size.
    """
    batch, length, channels = x.shape
    start = torch.arange(batch, device=x.device).unsqueeze(1) * length  # (B, 1)
    rows = (index + start).reshape(-1)  # (B·K,)
    return x.reshape(batch * length, channels).index_select(0, rows).reshape(batch, index.shape[1], channels)
