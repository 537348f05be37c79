"""Tiny timm ViTs of every kind that the method claims, with nothing in them left at zero or one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor

from lifedeploy import methods
from lifedeploy.model.reducers import Plan, build_reducer
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, PreprocessSpec, Provenance

DEPTH = 6
DROPS = (2, 3, 5)
SETTINGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": DEPTH,
    "num_heads": 3,
    "num_classes": 5,
}
# name → class, options, prefix tokens
FAMILIES: dict[str, tuple[type[VisionTransformer], dict[str, Any], int]] = {
    "plain": (VisionTransformer, {}, 1),
    "distilled": (VisionTransformerDistilled, {}, 2),
    "registers": (VisionTransformer, {"reg_tokens": 4}, 5),
    "deit3": (VisionTransformer, {"no_embed_class": True, "init_values": 0.1}, 1),
    "dinov2": (
        VisionTransformer,
        {"img_size": 56, "patch_size": 14, "init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
        5,
    ),
    "qk-norm": (VisionTransformer, {"qk_norm": True}, 1),
    "non-square": (VisionTransformer, {"img_size": (24, 48)}, 1),
    "norm-first": (VisionTransformer, {"pre_norm": True, "qkv_bias": False}, 1),
    "mean-pooled": (VisionTransformer, {"global_pool": "avg"}, 1),
    "post-norm": (VisionTransformer, {"block_fn": ResPostBlock}, 1),
}
PRE_NORM = [name for name in FAMILIES if name != "post-norm"]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models this small only lose by sharing their work out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_vit(family: str = "plain", **options: Any) -> VisionTransformer:
    """A ViT of six layers; every parameter is disturbed, so that one that is left out shows."""
    return copy.deepcopy(_tiny_vit(family, **options))


@functools.cache
def _tiny_vit(family: str, **options: Any) -> VisionTransformer:
    cls, settings, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        vit = cls(**(SETTINGS | settings | options)).eval()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return vit


def schedule_for(vit: VisionTransformer) -> Schedule:
    """Keep 0.7 after layers 2, 3 and 5, as far as there are layers behind them."""
    depth = len(vit.blocks)
    return Schedule.from_keep_rate(vit.patch_embed.num_patches, depth, 0.7, [drop for drop in DROPS if drop < depth])


def slim(
    vit: VisionTransformer,
    method: str = "life",
    schedule: Schedule | None = None,
    *,
    ordering: str = "",
    **options: Any,
) -> SlimViT:
    """``vit`` under a method, in its usual form or another ``ordering``; a predictor is disturbed, always in the same
    way. Options may be out of their range."""
    schedule = schedule_for(vit) if schedule is None else schedule
    row = methods.get(method)
    reducer = build_reducer(
        row,
        Plan(
            schedule=schedule,
            width=vit.embed_dim,
            heads=vit.blocks[0].attn.num_heads,
            prefix=vit.num_prefix_tokens,
            ordering=ordering or row.orderings[0],
            options=row.options(**options),
        ),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return SlimViT(vit, reducer).eval()


def described(family: str, image_size: tuple[int, int], **options: Any) -> tuple[SlimViT, ModelSpec]:
    """A tiny model of a family at an image size, and its spec."""
    vit = tiny_vit(family, img_size=image_size, **options)
    model = slim(vit)
    spec = ModelSpec(
        backbone=family,
        timm_name=family,
        method="life",
        schedule=model.schedule,
        preprocess=PreprocessSpec(image_size=image_size),
        num_classes=5,
        prefix_tokens=vit.num_prefix_tokens,
        provenance=Provenance(weights="trained"),
    )
    return model, spec


def emptied(name: str, *, image_size: tuple[int, int], num_classes: int, **options: Any) -> VisionTransformer:
    """In the place of ``backbones.create``: a tiny ViT of a family, with nothing in it that could be taken over."""
    vit = tiny_vit(name, img_size=image_size, **options)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    return vit


def images_for(vit: VisionTransformer, batch: int = 3) -> Tensor:
    """Normalised images."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=generator)


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """What timm feeds to the first block: (B, P + N, C)."""
    return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))


def scores_by_hand(model: SlimViT, x: Tensor) -> Tensor:
    """Eq. 1 and 2, term by term: (B, P + N, C) → (B, N)."""
    predictor = model.reducer.predictor
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    normed = (x - mean) / (variance + predictor.norm.eps).sqrt() * predictor.norm.weight + predictor.norm.bias
    patches = normed[:, model.backbone.num_prefix_tokens :]
    return torch.einsum("bj,jk,bik->bi", normed[:, 0], predictor.weight, patches)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every kind of ViT, one after the other."""
    return request.param
