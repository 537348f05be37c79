"""Files of weights as other tools write them: what is in them, under which names, and what they say of their model.

Recognised: plain state dicts; the checkpoints of timm's and DeiT's training scripts, averaged weights first, as timm
reads them; Lightning's and whatever else keeps the ViT in an attribute. Names that wrappers put in front go.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lifedeploy.errors import WeightsError

# Where a training script keeps its weights, in timm's order: averages before what they are of
# (https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_helpers.py).
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "encoder")
_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile and data parallelism, in either order
_LIGHTNING = "pytorch-lightning_version"
_VIT = re.compile(r"(.*?)patch_embed\.proj\.weight")
_CONVERTED = ("visual.trunk.",)  # what timm's own conversion of names looks for
_TRANSFORMERS = re.compile(r"(?:.*\.)?embeddings\.patch_embeddings?\.(?:projection\.)?weight")
_DATA_CONFIG = ("mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Facts:
    """What a file says of its model besides the weights; what it does not say is empty."""

    architecture: str = ""  # timm's name
    image_size: tuple[int, int] | None = None  # (height, width) that its position embeddings are of
    at_own_size: bool = False  # they are of the backbone's own image size
    data_config: Mapping[str, Any] = field(default_factory=dict)  # its preprocessing, in timm's words


@dataclass(frozen=True)
class Unpacked:
    """A state dict, and how it came out of its file."""

    state: dict[str, Tensor]
    layout: str  # what was recognised, to be read; '' for a plain state dict
    facts: Facts


def unpack(data: Any, path: Path) -> Unpacked:
    """The state dict of a ViT in what a file holds.

    Raises:
        WeightsError: there is none, there are several, or its names are those of transformers.
    """
    key = next((key for key in _KEYS if isinstance(data, dict) and isinstance(data.get(key), dict)), "")
    found = data[key] if key else data
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path} holds no state dict: expected a mapping of names to tensors")
    kind, facts = _origin(data) if key else ("", Facts())
    layout = f"{kind}, {key}" if kind else key
    state, inside = _alone({_unwrapped(name): tensor for name, tensor in found.items()}, path)
    return Unpacked(state, ", ".join(part for part in (layout, inside) if part), facts)


def _origin(data: Mapping[str, Any]) -> tuple[str, Facts]:
    """Which tool wrote a checkpoint, and what it wrote down beside the weights."""
    if _LIGHTNING in data:
        return "Lightning checkpoint", Facts()
    arguments = data.get("args")
    if isinstance(arguments, argparse.Namespace) and hasattr(arguments, "model"):
        return "timm training checkpoint", _arguments(vars(arguments), str(data.get("arch") or ""))
    if "arch" in data and "state_dict" in data:
        return "timm training checkpoint", Facts(architecture=str(data["arch"]))
    return "", Facts()


def _arguments(given: Mapping[str, Any], architecture: str) -> Facts:
    """Of the arguments of timm's ``train.py`` or DeiT's ``main.py``."""
    more = given.get("model_kwargs")
    size = (more.get("img_size") if isinstance(more, dict) else None) or given.get("input_size")
    found = size_of(size or given.get("img_size"))
    said = any(name in given for name in ("input_size", "img_size"))
    return Facts(
        architecture=architecture or str(given["model"]),
        image_size=found,
        at_own_size=said and found is None,
        data_config={name: given[name] for name in _DATA_CONFIG if given.get(name)},
    )


def size_of(size: Any) -> tuple[int, int] | None:
    """224, (192, 256) or (3, 192, 256) as (height, width); None of anything else."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) in (2, 3) and all(isinstance(side, int) for side in size):
        return size[-2], size[-1]
    return None


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _alone(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    """The ViT's own tensors, without the attribute that a larger module keeps it in; and what was left out."""
    found = [match[1] for name in state if (match := _VIT.fullmatch(name))]
    if not found and any(map(_TRANSFORMERS.fullmatch, state)):
        raise WeightsError(
            f"{path} holds a ViT of the transformers library, whose tensors have other names and shapes than timm's",
            hint="convert it first: docs/weights.md says which name becomes which",
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path} holds {len(found)} ViTs: {', '.join(prefix.rstrip('.') or 'one at the top' for prefix in found)}",
            hint="save the state dict of the one that is meant",
        )
    prefix = found[0] if found else ""
    if not prefix or prefix in _CONVERTED:
        return state, ""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    others = [name for name in state if not name.startswith(prefix)]
    left = f", without {len(others)} tensors beside it ({others[0]})" if others else ""
    return own, f"the ViT in {prefix.rstrip('.')}{left}"
