"""The last block of a ViT whose head reads prefix tokens alone (CLS, distillation, registers).

Behind it nobody reads patch tokens. So they are needed in its attention as keys and values, and nothing else of them
is: queries, attention, projection and MLP are computed for the prefix. What comes out is the same to the rounding of
floating-point sums; of a DeiT-S of 196 patches 7 % of all MACs are saved.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PrefixAttention(nn.Module):
    """timm's ``Attention`` with queries apart from keys and values, over the same weights."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.scale, self.fused_attn = attention.scale, attention.fused_attn
        width = self.num_heads * self.head_dim
        self.q = _rows(attention.qkv, 0, width)
        self.kv = _rows(attention.qkv, width, 3 * width)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm = getattr(attention, "norm", nn.Identity())  # came later than the versions of timm that are taken
        self.gate = getattr(attention, "gate", None)
        self.proj = attention.proj

    def forward(self, prefix: Tensor, tokens: Tensor, key_bias: Tensor | None) -> Tensor:
        """Prefix tokens (B, P, C) attend to all tokens (B, L, C), with a bias on keys (B, 1, 1, L): (B, P, C)."""
        heads, width = self.num_heads, self.head_dim
        batch, attending, _ = prefix.shape
        q = self.q(prefix).reshape(batch, attending, heads, width).transpose(1, 2)  # (B, H, P, D)
        k, v = self.kv(tokens).reshape(batch, -1, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, P, L)
            x = (logits if key_bias is None else logits + key_bias).softmax(dim=-1) @ v
        x = self.norm(x.transpose(1, 2).reshape(batch, attending, heads * width))
        if self.gate is not None:
            x = x * self.gate(prefix).sigmoid()
        attended: Tensor = self.proj(x)
        return attended


class PrefixBlock(nn.Module):
    """timm's ``Block`` for inference, of prefix tokens alone, over the same weights."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, PrefixAttention(block.attn), block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2

    def forward(self, tokens: Tensor, count: int, key_bias: Tensor | None) -> Tensor:
        """All tokens (B, L, C), the first ``count`` of which are the prefix: (B, P, C).

        The prefix is normed apart from all tokens: it costs nothing, and what is quantised has a range of its own.
        """
        x = tokens[:, :count]
        x = x + self.ls1(self.attn(self.norm1(x), self.norm1(tokens), key_bias))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


def _rows(linear: nn.Linear, start: int, end: int) -> nn.Linear:
    """The part of a linear layer that gives its outputs ``start`` to ``end``, as a layer over the same memory."""
    part = nn.Linear(linear.in_features, end - start, bias=linear.bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[start:end], requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[start:end], requires_grad=False)
    return part
