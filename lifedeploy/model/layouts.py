"""Files of weights as other tools write them: what is in them, under which names, and what they say of their model.

Recognised: plain state dicts; the checkpoints of timm's and DeiT's training scripts, averaged weights first, as timm
reads them; Lightning's and whatever else keeps the ViT in an attribute. Names that wrappers put in front go. Files of a
method's authors are read in ``authors.py``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifedeploy.errors import WeightsError
from lifedeploy.model import authors
from lifedeploy.spec import ModelSpec
from lifedeploy.text import quoted
from lifedeploy.typed import CROP_MODES, INTERPOLATIONS

# Where a training script keeps its weights, in timm's order: averages before what they are of
# (https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_helpers.py).
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "encoder")
_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile and data parallelism, in either order
_LIGHTNING = "pytorch-lightning_version"
_VIT = re.compile(r"(.*?)patch_embed\.proj\.weight")
_CONVERTED = ("visual.trunk.",)  # what timm's own conversion of names looks for
_TRANSFORMERS = re.compile(r"(?:.*\.)?embeddings\.patch_embeddings?\.(?:projection\.)?weight")
REDUCER = "reducer."  # what our names of a method's own parameters begin with
_DATA_CONFIG = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Facts:
    """What a file says of its model besides the weights; what it does not say is empty."""

    architecture: str = ""  # timm's name
    image_size: tuple[int, int] | None = None  # (height, width) that it was trained at
    at_native_size: bool = False  # its position embeddings are of the backbone's own image size all the same
    data_config: Mapping[str, Any] = field(default_factory=dict)  # its preprocessing, in timm's words


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of weights holds."""

    path: Path
    # Under our names where there is a spec, else under those of timm or what it converts; a method's own are ours.
    state: dict[str, Tensor]
    spec: ModelSpec | None = None  # of a file of ours
    layout: str = ""  # of another tool's file: what was recognised; '' for a plain state dict
    facts: Facts = field(default_factory=Facts)  # of another tool's file
    authors: str = ""  # of a file of a method's authors: the method
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of their training script, those that the row names

    @property
    def method(self) -> str:
        """The method that its weights were trained for; '' where nobody knows."""
        return self.spec.method if self.spec else self.authors

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Of its tensors those that are the method's own."""
        return {name: tensor for name, tensor in self.state.items() if name.startswith(REDUCER)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that its position embeddings are of, if it says."""
        return self.spec.image_size if self.spec else self.facts.image_size


def unpack(data: Any, path: Path) -> Checkpoint:
    """The state dict of a ViT in what a file holds.

    Raises:
        WeightsError: there is none, there are several, its names are those of transformers, or parts of what a
            method's authors split are missing.
    """
    key = next((key for key in _KEYS if isinstance(data, dict) and isinstance(data.get(key), dict)), "")
    tensors = data[key] if key else data
    if not _is_state(tensors):
        others = [name for name, part in data.items() if _is_state(part)] if isinstance(data, dict) else []
        if others:  # DINO's student and teacher, say
            raise WeightsError(
                f"{path} holds state dicts as {', '.join(map(repr, others))}; expected one, or {', '.join(_KEYS)}",
                hint="save the one that is meant",
            )
        raise WeightsError(f"{path} holds no state dict: expected a mapping of names to tensors")
    odd = next((name for name, tensor in tensors.items() if not _is_plain(tensor)), None)
    if odd is not None:
        raise WeightsError(
            f"{path} holds {odd} as a sparse, complex or empty tensor, or with more elements than it has numbers; "
            "expected plain real numbers"
        )
    kind, facts = _origin(data, path) if key else ("", Facts())
    state, inside = _alone({_unwrapped(name): tensor for name, tensor in tensors.items()}, path)
    given = _given(data) if key else {}
    method = authors.author_of(state, given)
    arguments: dict[str, Any] = {}
    left = ""
    if method is not None:
        kind, published = f"{method.title} checkpoint", method.published
        state, left = authors.without_unused(state, published)
        state = authors.with_timms_names(state, published, path)
        state = {REDUCER + name if name.startswith(published.parameters) else name: state[name] for name in state}
        arguments = authors.arguments_of(published, given)
        # Their scripts register models of their own, and may leave the argument at some other one's name.
        facts = replace(facts, architecture="")
    return Checkpoint(
        path=path,
        state=state,
        layout=", ".join(filter(None, (kind, key, inside, left, authors.trained_with(arguments)))),
        facts=facts,
        authors=method.name if method else "",
        arguments=arguments,
    )


def _is_state(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in data.items())
    )


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
        return False
    # A stride of 0 makes any number of elements of one: free to declare, and not to copy.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _origin(data: Mapping[str, Any], path: Path) -> tuple[str, Facts]:
    """Which tool wrote a checkpoint, and what it wrote down beside the weights."""
    if _LIGHTNING in data:
        return "Lightning checkpoint", Facts()
    given = _given(data)
    if "model" in given:
        kind = "DeiT training checkpoint" if "eval_crop_ratio" in given else "timm training checkpoint"
        return kind, _arguments(given, str(data.get("arch") or ""), path)
    if "arch" in data and "state_dict" in data:
        return "timm training checkpoint", Facts(architecture=str(data["arch"]))
    return "", Facts()


def _given(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of the training script that wrote a checkpoint; none where it keeps none."""
    arguments = data.get("args")
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return given if isinstance(given, dict) else {}


def _arguments(given: Mapping[str, Any], architecture: str, path: Path) -> Facts:
    """Of the arguments of timm's ``train.py`` or DeiT's ``main.py``."""
    more = given.get("model_kwargs")
    more = more if isinstance(more, dict) else {}
    size = size_of(more.get("img_size") or given.get("input_size") or given.get("img_size"))
    said = any(name in given for name in ("input_size", "img_size"))
    config = {name: given[name] for name in _DATA_CONFIG if given.get(name)}
    if given.get("eval_crop_ratio"):  # DeiT's word for it
        config.setdefault("crop_pct", given["eval_crop_ratio"])
    _require_config(config, path)
    return Facts(
        architecture=architecture or str(given["model"]),
        image_size=size,
        at_native_size=said and (size is None or bool(more.get("dynamic_img_size"))),  # resampled as the model runs
        data_config=config,
    )


def _require_config(config: Mapping[str, Any], path: Path) -> None:
    """Make sure that preprocessing is what its words mean.

    Raises:
        WeightsError: it is not.
    """

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1000

    def per_channel(value: Any) -> bool:  # one number is that of all channels
        return isinstance(value, (list, tuple)) and len(value) in (1, 3) and all(map(number, value))

    fits: dict[str, Callable[[Any], bool]] = {
        "mean": per_channel,
        "std": lambda value: per_channel(value) and min(value) > 0,
        "crop_pct": lambda value: number(value) and 0.05 <= value <= 1,
        "interpolation": lambda value: isinstance(value, str) and value in INTERPOLATIONS,
        "crop_mode": lambda value: isinstance(value, str) and value in CROP_MODES,
    }
    wrong = next((name for name, value in config.items() if not fits[name](value)), None)
    if wrong is not None:
        raise WeightsError(f"{path} says that it was trained with {wrong} {quoted(config[wrong])}, which cannot be")


def size_of(size: Any) -> tuple[int, int] | None:
    """224, (192, 256) or (3, 192, 256) as (height, width); None of anything else."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) in (2, 3) and all(isinstance(extent, int) for extent in size):
        return size[-2], size[-1]
    return None


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _alone(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """The ViT's own tensors, without the attribute that a larger module keeps it in; and what was left out."""
    prefixes = [match[1] for name in state if (match := _VIT.fullmatch(name))]
    if not prefixes and any(map(_TRANSFORMERS.fullmatch, state)):
        raise WeightsError(
            f"{path} holds a ViT of the transformers library, whose tensors have other names and shapes than timm's",
            hint="convert it first: docs/weights.md says which name becomes which",
        )
    if len(prefixes) > 1:
        raise WeightsError(
            f"{path} holds {len(prefixes)} ViTs: "
            + ", ".join(prefix.rstrip(".") or "one at the top" for prefix in prefixes),
            hint="save the state dict of the one that is meant",
        )
    prefix = prefixes[0] if prefixes else ""
    if not prefix or prefix in _CONVERTED:
        return state, ""
    vit = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    others = [name for name in state if not name.startswith(prefix)]
    left = f", without {len(others)} tensors beside it ({others[0]})" if others else ""
    return vit, f"the ViT in {prefix.rstrip('.')}{left}"
