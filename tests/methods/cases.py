"""The methods that these tests hold to their descriptions, with the options that change what they do."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lifedeploy import methods
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
    "ia-red2": ("ia-red2", {}),
    "avit-ranked": ("avit-ranked", {}),
    "evo-vit": ("evo-vit", {}),
    "tome": ("tome", {}),
    "tome-inflected": ("tome", {"r": "10", "inflect": -1.0}),
    "tome-listed": ("tome", {"r": "40,0,20,5"}),
    "avit": ("avit", {}),
}
OWN_BUDGET = [name for name, (method, _) in CASES.items() if methods.get(method).own_budget]
RATED = [name for name in CASES if name not in OWN_BUDGET]  # which are asked for a keep rate
# What goes on is a part of what was there, and classes are read from it; A-ViT's are read from all layers.
DROPPING = [name for name in RATED if name != "avit-ranked"]
UNFUSED = [name for name in DROPPING if name != "evit"]


def asked(case: str, keep_rate: float = 0.7) -> dict[str, float]:
    """How a case's schedule is asked for."""
    return {} if case in OWN_BUDGET else {"keep_rate": keep_rate}


def shapes_only(
    case: str,
    backbone: str,
    image_size: tuple[int, int] | None = None,
    options: Mapping[str, Option] | None = None,
    **schedule: Any,
) -> tuple[SlimViT, ModelSpec]:
    """A model of a real backbone's size on PyTorch's meta device: it has shapes, and computes nothing.

    ``options``: others than those of the case.
    """
    method, usual = CASES.get(case, (case, {}))
    options = usual if options is None else options
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
