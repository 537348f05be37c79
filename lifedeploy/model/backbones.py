"""Backbones by name: six short ones, and any timm VisionTransformer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from lifedeploy.budget import Sized
from lifedeploy.caches import compiler_caches
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.machine import memory_gib
from lifedeploy.model.blocks import FAMILIES, adapted
from lifedeploy.reading import reason
from lifedeploy.spec import PreprocessSpec
from lifedeploy.text import quoted
from lifedeploy.typed import LARGEST_EXTENT, MOST_CLASSES

_LONGEST_NAME = 200
_USUAL_EXTENT = 1024  # pixels
_USUAL_CLASSES = 30_000  # a little more than the largest sets that models are published for
_SMALL_MACHINE_GIB = 16  # where a system does not tell

SHORT_NAMES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "vit_t": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
}


def timm_name(name: str) -> str:
    """The timm name behind ``name``, which is a short name or a timm name, with or without a tag.

    Raises:
        UsageError: neither; with the nearest names.
    """
    if len(name) > _LONGEST_NAME:  # before it is compared with a thousand others
        raise UsageError(f"backbone {quoted(name)} is unknown: no name has {len(name)} characters")
    full = SHORT_NAMES.get(name, name)
    architecture = full.partition(".")[0]
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(full)
        except RuntimeError as error:  # timm's word for a tag that the architecture does not have
            raise UsageError(f"backbone {name!r} is unknown: {error}") from error
        return full
    known = [*SHORT_NAMES, *timm.list_models("*vit*"), *timm.list_models("*deit*")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"short names: {', '.join(SHORT_NAMES)}; or any timm ViT"
    raise UsageError(f"backbone {name!r} is unknown", hint=hint)


def create(
    name: str,
    *,
    pretrained: bool = False,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """Make the backbone and check that the method applies to it.

    Args:
        name: short name or timm name.
        pretrained: load timm's pretrained weights (over the network, or from timm's cache).
        image_size: (height, width) in pixels; the model's own where None.
        num_classes: classes of the head; the model's own where None.

    Raises:
        UsageError: unknown name, or an image size that patches do not tile.
        UnsupportedModelError: of no family that is known, or without a CLS token to score patches with.
    """
    full = timm_name(name)
    options: dict[str, Any] = {}
    if image_size is not None:
        options["img_size"] = tuple(image_size)
    if num_classes is not None:
        options["num_classes"] = num_classes
    refuse_other_families(name, full)
    require_sizes(image_size, num_classes)
    _require_memory(full, name, image_size, options)
    compiler_caches()  # exporting and training look into them, compiled or not
    try:
        model = timm.create_model(full, pretrained=pretrained, **options)
    except AssertionError as error:
        size = "x".join(map(str, image_size)) if image_size else "its own"
        raise UsageError(f"backbone {name} cannot be made at image size {size}: {error}") from error
    except RuntimeError as error:  # timm's word for a tag that the architecture does not have
        if "Invalid pretrained tag" in str(error):
            raise UsageError(f"backbone {name!r} is unknown: {error}") from error
        raise
    except (TypeError, ValueError, MemoryError, OverflowError) as error:  # TypeError: it takes no other image size
        raise UnsupportedModelError(f"{name} cannot be made as asked for: {reason(error)}") from error
    adapted(model, name).require_supported(name)
    if image_size is not None:
        _check_tiling(model, name, image_size)
    return model


def require_sizes(image_size: tuple[int, int] | None, num_classes: int | None) -> None:
    """Refuse an image size or a number of classes that no model has, before anything of that size is made.

    Raises:
        UsageError: out of range.
    """
    if image_size is not None and not all(1 <= extent <= LARGEST_EXTENT for extent in image_size):
        size = "x".join(map(quoted, image_size))
        raise UsageError(f"image size {size} is not allowed; expected both sides to have 1 to {LARGEST_EXTENT} pixels")
    if num_classes is not None and not 0 <= num_classes <= MOST_CLASSES:
        raise UsageError(
            f"{quoted(num_classes)} classes are not allowed: expected at least 1 and at most {MOST_CLASSES:,}, or 0 "
            "for a model without a head"
        )


def _require_memory(full: str, name: str, image_size: tuple[int, int] | None, options: Mapping[str, Any]) -> None:
    """Hold what an unusually large input or head needs against this machine, before it is allocated.

    Raises:
        UsageError: half of the memory is not enough for the weights, and the attention of one image in one layer.
    """
    usual = image_size is None or max(image_size) <= _USUAL_EXTENT
    if usual and options.get("num_classes", 0) <= _USUAL_CLASSES:
        return
    model = _without_numbers(full, *options.items())
    view = adapted(model, name)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    attention = 4 * view.patches**2 * view.heads
    there = (memory_gib() or _SMALL_MACHINE_GIB) * 1024**3
    if weights + attention > there / 2:
        raise UsageError(
            f"{name} with {view.patches:,} patches and {view.classes:,} classes needs {weights / 1024**3:.1f} GiB for "
            f"its weights and {attention / 1024**3:.1f} GiB for one layer's attention; this machine has "
            f"{there / 1024**3:.1f} GiB",
            hint="a smaller image size",
        )


def native_image_size(name: str) -> tuple[int, int] | None:
    """(height, width) that a backbone was designed for, if it says."""
    config: Any = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
    return (config.input_size[-2], config.input_size[-1]) if config is not None else None


def native_classes(name: str) -> int | None:
    """Classes of the head that a backbone has unless told otherwise, if it says."""
    config: Any = timm.get_pretrained_cfg(timm_name(name), allow_unregistered=True)
    return config.num_classes if config is not None else None


def weight_bytes(name: str, *, num_classes: int | None = None) -> int:
    """What the weights of a backbone take in FP32, found out without making any.

    Raises:
        UsageError, UnsupportedModelError: as for :func:`create`.
    """
    full = timm_name(name)
    refuse_other_families(name, full)
    options = {} if num_classes is None else {"num_classes": num_classes}
    model = _without_numbers(full, *options.items())
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def sized(name: str, *, image_size: tuple[int, int] | None = None, num_classes: int | None = None) -> Sized:
    """A backbone as far as its work goes, found out without making any weights.

    Raises:
        UsageError, UnsupportedModelError: as for :func:`create`.
    """
    full = timm_name(name)
    refuse_other_families(name, full)
    require_sizes(image_size, num_classes)
    options = {"img_size": image_size, "num_classes": num_classes}
    model = _without_numbers(full, *((key, value) for key, value in options.items() if value is not None))
    view = adapted(model, name)
    view.require_supported(name)
    return Sized(
        patches=view.patches,
        depth=view.depth,
        cost=view.cost(view.image_size),
        no_prefix_block=view.no_prefix_block,
    )


@lru_cache(maxsize=16)
def _without_numbers(full: str, *options: tuple[str, Any]) -> nn.Module:
    """The backbone as timm makes it, with tensors that have shapes only; read only, since it is kept."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(full, pretrained=False, **dict(options))
    return model


def refuse_other_families(name: str, full: str) -> None:
    """Refuse by the module a timm model is defined in, before it is built: some take seconds and gigabytes."""
    module = timm.model_entrypoint(full.partition(".")[0]).__module__.rpartition(".")[2]
    if not any(module in family.modules for family in FAMILIES):
        raise UnsupportedModelError(
            f"{name} is defined in timm's {module!r} and is no timm VisionTransformer; lifedeploy prunes the tokens "
            "of plain ViTs (ViT, DeiT, DeiT-3, DINOv2 …)"
        )


def _check_tiling(model: nn.Module, name: str, image_size: tuple[int, int]) -> None:
    patch = adapted(model).patch_size
    if any(size % step for size, step in zip(image_size, patch, strict=True)):
        raise UsageError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of the {patch[0]}x{patch[1]} patches of "
            f"{name}"
        )


def preprocess_of(
    model: nn.Module,
    image_size: tuple[int, int] | None = None,
    trained_with: Mapping[str, Any] | None = None,
) -> PreprocessSpec:
    """The preprocessing the backbone was trained with, at its own or at another image size.

    ``trained_with`` is what a training script was told about it, in timm's words, and wins over the backbone's own.
    """
    config = resolve_data_config(dict(trained_with or {}), model=model)
    size = image_size or adapted(model).image_size
    return PreprocessSpec(
        image_size=(size[0], size[1]),
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
