"""The adapter in front of timm: all that the package knows of how a timm ViT is built and run.

A :class:`Backbone` is a view of a timm model, made where it is needed: it holds no state, so weights keep timm's own
names. A family of models is one class here and one line in :data:`FAMILIES`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import Attention, DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lifedeploy.cost import Cost
from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.prefix_block import PrefixBlock
from lifedeploy.model.tokens import BlockAttention, Tokens

# Between a block's attention and its MLP: tokens after attention, and what the attention saw → tokens for the MLP.
Inside = Callable[[Tokens, BlockAttention], Tokens]


@dataclass(frozen=True)
class Backbone:
    """timm's ``VisionTransformer``: ViT, DeiT, DeiT-3, DINOv2, CLIP … Another family overrides what differs."""

    model: Any  # whose attributes are timm's business
    kind: ClassVar[type[nn.Module]] = VisionTransformer  # of the family's models
    # Of timm.models, which define them; the last: old names.
    modules: ClassVar[tuple[str, ...]] = ("vision_transformer", "deit", "vision_transformer_hybrid", "_registry")

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: CLS, distillation, registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return int(self.model.embed_dim)

    @property
    def patches(self) -> int:
        """Patch tokens of an image, N."""
        return int(self.model.patch_embed.num_patches)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.model.patch_embed.img_size
        return int(height), int(width)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = self.model.patch_embed.patch_size
        return int(height), int(width)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.model.patch_embed.grid_size
        return int(rows), int(columns)

    def grid_at(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image (height, width)."""
        rows, columns = self.model.patch_embed.dynamic_feat_size(image_size)
        return int(rows), int(columns)

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks, first layer first."""
        return list(self.model.blocks)

    @property
    def depth(self) -> int:
        """Number of layers, T."""
        return len(self.model.blocks)

    @property
    def heads(self) -> int:
        """Heads of the first layer's attention; 0 without layers, or where a block has no attention of its own."""
        attention = getattr(self.model.blocks[0], "attn", None) if self.depth else None
        return int(attention.num_heads) if attention is not None else 0

    @property
    def classes(self) -> int:
        """Classes of the head; 0: none."""
        return int(self.model.num_classes)

    @property
    def features(self) -> int:
        """What it gives of an image where it has no head."""
        return int(self.model.num_features)

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        norm: nn.Module = self.model.norm
        return norm

    @property
    def head(self) -> nn.Module:
        """What makes classes of a vector."""
        head: nn.Module = self.model.head
        return head

    def require_supported(self, name: str) -> None:
        """Make sure that the package can run it.

        Raises:
            UnsupportedModelError: it cannot; ``name`` is what the model was asked for by.
        """
        if self.model.cls_token is None:
            raise UnsupportedModelError(
                f"{name} has no CLS token (it pools by {self.model.global_pool!r}), and patches are scored against "
                "CLS; choose a backbone with a CLS token"
            )
        for block in self.blocks:
            attention = getattr(block, "attn", None)
            if not (hasattr(attention, "num_heads") and hasattr(attention, "head_dim")):
                raise UnsupportedModelError(f"{name} is built of {type(block).__name__}, which is not supported")

    def embed(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, H, W) to the tokens that the first block gets."""
        vit = self.model
        x = vit.patch_embed(images)  # (B, N, C)
        return Tokens(x=vit.norm_pre(vit.patch_drop(vit._pos_embed(x))), prefix=self.prefix)  # (B, P + N, C)

    def run_block(self, layer: int, tokens: Tokens, inside: Inside | None = None) -> Tokens:
        """Block ``layer``, from 1; with ``inside`` it is taken apart between attention and MLP.

        Raises:
            UnsupportedModelError: there is no such place in it.
        """
        block = self.model.blocks[layer - 1]
        if isinstance(block, PrefixBlock):
            return tokens.first(0).but(x=block(tokens.x, tokens.prefix, tokens.key_bias))
        if inside is None:
            if tokens.key_bias is None:
                return tokens.but(x=block(tokens.x))
            return tokens.but(x=block(tokens.x, attn_mask=tokens.key_bias))
        if not self.has_inside(layer):
            raise UnsupportedModelError(f"{type(block).__name__} has no place between attention and MLP")
        captured: list[Tensor] = []
        hook = block.attn.qkv.register_forward_hook(lambda module, inputs, output: captured.append(output))
        try:
            attended = block.attn(block.norm1(tokens.x), attn_mask=tokens.key_bias)
        finally:
            hook.remove()
        tokens = tokens.but(x=tokens.x + block.drop_path1(block.ls1(attended)))
        tokens = inside(tokens, _seen(block.attn, captured[0], tokens.key_bias))
        return tokens.but(x=tokens.x + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens.x)))))

    def has_inside(self, layer: int) -> bool:
        """Whether a place lies between a block's attention and its MLP, as in timm's pre-norm blocks."""
        block = self.model.blocks[layer - 1]
        parts = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
        return not isinstance(block, PrefixBlock) and all(hasattr(block, name) for name in parts)

    def classify(self, tokens: Tokens) -> Tensor:
        """Final norm and head: (B, classes)."""
        logits: Tensor = self.model.forward_head(self.model.norm(tokens.x))
        return logits

    def classify_one(self, x: Tensor) -> Tensor:
        """Final norm and head of one vector an image, whatever it was pooled from: (B, C) → (B, classes).

        A distillation token has a head of its own, which is no part of this.
        """
        vit = self.model
        logits: Tensor = vit.head(vit.head_drop(vit.fc_norm(vit.norm(x))))
        return logits

    @property
    def beside_one(self) -> tuple[str, ...]:
        """Parameters that :meth:`classify_one` does not use: a distillation token's head."""
        return tuple(name for name, _ in self.model.named_parameters() if name.startswith("head_dist."))

    @property
    def reads_prefix_alone(self) -> bool:
        """Whether classes are read from prefix tokens, and patches are not pooled."""
        return self.model.attn_pool is None and self.model.global_pool == "token"

    @property
    def no_prefix_block(self) -> str:
        """Why all tokens of the last block have to be computed, in words; '' where prefix tokens are enough."""
        if not self.reads_prefix_alone:
            how = "an attention pool" if self.model.attn_pool is not None else f"pool {self.model.global_pool!r}"
            return f"its head reads patch tokens ({how})"
        last = self.model.blocks[-1] if self.depth else None
        if type(last) is not Block or type(last.attn) is not Attention:
            return f"its last block is no plain timm Block ({type(last).__name__})"
        return ""

    def with_prefix_block(self) -> nn.Module:
        """The model with the last block computing prefix tokens alone, over the same weights; for inference.

        Raises:
            UnsupportedModelError: :attr:`no_prefix_block` says why.
        """
        if self.no_prefix_block:
            raise UnsupportedModelError(f"the last block has to compute all tokens: {self.no_prefix_block}")
        twin: nn.Module = copy.copy(self.model)
        # A shallow copy shares the table of parts too, and the original keeps its block.
        twin.__dict__["_modules"] = dict(self.model._modules)
        twin.blocks = nn.Sequential(*self.blocks[:-1], PrefixBlock(self.blocks[-1]))
        return twin

    def cost(self, image_size: tuple[int, int]) -> Cost:
        """Exact MACs, read off its modules.

        Every Linear of a block meets every token of its place once, so its MACs per token are its weight's size; QKᵀ
        and AV cost the attention's width once each per pair of tokens.
        """
        keys, queries, pairs, mlp = [], [], [], []
        for block in self.blocks:
            linear = {name: part.weight.numel() for name, part in block.named_modules() if isinstance(part, nn.Linear)}
            inside = sum(size for name, size in linear.items() if name.startswith("mlp."))
            mlp.append(inside)
            keys.append(linear["attn.qkv"] * 2 // 3)
            queries.append(sum(linear.values()) - inside - keys[-1])
            pairs.append(2 * block.attn.num_heads * block.attn.head_dim)
        heads = [getattr(self.model, name, None) for name in ("head", "head_dist")]
        return Cost(
            embed=_conv_macs(self.model.patch_embed, image_size),
            keys=tuple(keys),
            queries=tuple(queries),
            pairs=tuple(pairs),
            mlp=tuple(mlp),
            head=sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear)),
            prefix=self.prefix,
            width=self.width,
            heads=self.heads,
        )

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth, rising from 0 in the first block to ``rate`` in the last, as timm builds it in."""
        for number, block in enumerate(self.blocks if rate else []):
            for name in ("drop_path1", "drop_path2"):
                setattr(block, name, DropPath(rate * number / max(self.depth - 1, 1)))


FAMILIES: tuple[type[Backbone], ...] = (Backbone,)


def adapted(model: nn.Module, name: str = "") -> Backbone:
    """The view of a timm model.

    Raises:
        UnsupportedModelError: it is of no family that the package knows; ``name`` is what it was asked for by.
    """
    for family in FAMILIES:
        if isinstance(model, family.kind):
            return family(model)
    known = " or ".join(family.kind.__name__ for family in FAMILIES)
    raise UnsupportedModelError(f"{name or 'the model'} is a {type(model).__name__}, not a timm {known}")


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Run, and trace, attention as MatMul → Softmax → MatMul with a constant scale.

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


def _seen(attention: Any, qkv: Tensor, key_bias: Tensor | None) -> BlockAttention:
    """From the output of timm's fused qkv projection, (B, L, 3·H·D)."""
    batch, length, _ = qkv.shape
    heads = qkv.reshape(batch, length, 3, attention.num_heads, attention.head_dim)
    q, k, _ = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return BlockAttention(attention.q_norm(q), attention.k_norm(k), attention.scale, key_bias)


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
