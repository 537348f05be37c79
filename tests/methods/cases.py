"""The methods that these tests hold to their descriptions, with the options that change what they do."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lifedeploy.methods import Option
from lifedeploy.model import backbones
from lifedeploy.model.blocks import plain_attention
from lifedeploy.model.request import describe
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.model.weights import ModelRequest
from lifedeploy.spec import ModelSpec, Provenance

# Name of the case → method and options.
CASES: Mapping[str, tuple[str, dict[str, Option]]] = {
    "evit": ("evit", {}),
    "evit-no-fuse": ("evit", {"fuse": False}),
    "topk": ("topk", {}),
    "dynamicvit": ("dynamicvit", {}),
    "random": ("random", {}),
}
UNFUSED = [name for name in CASES if name != "evit"]


def shapes_only(
    case: str, backbone: str, image_size: tuple[int, int] | None = None, **schedule: Any
) -> tuple[SlimViT, ModelSpec]:
    """A model of a real backbone's size on PyTorch's meta device: it has shapes, and computes nothing."""
    method, options = CASES.get(case, (case, {}))
    vit = _empty(backbone, image_size)
    request = ModelRequest(backbone=backbone, method=method, options=options, image_size=image_size, **schedule)
    spec = describe(request, vit, Provenance(weights="random"), ())
    return build_model(vit, spec).to("meta"), spec


@functools.cache
def _empty(backbone: str, image_size: tuple[int, int] | None) -> torch.nn.Module:
    with torch.device("meta"):
        return backbones.create(backbone, image_size=image_size, num_classes=1000)


def counted(model: SlimViT, images: torch.Tensor) -> int:
    """Multiply-accumulates of one image, as PyTorch counts them in its products of matrices while it runs."""
    with plain_attention(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2
