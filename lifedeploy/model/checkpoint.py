"""Checkpoints: safetensors that carry their spec; plain timm and DeiT files are read too.

Nothing here executes code from a file: safetensors holds none, and ``.pth`` is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from lifedeploy.errors import ArtifactError, WeightsError
from lifedeploy.files import atomic_file
from lifedeploy.model import backbones
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec

SPEC_KEY = "lifedeploy.spec"
CLASSES_KEY = "classes"  # a JSON list, in plain safetensors of other tools


def save(path: Path, model: SlimViT, spec: ModelSpec) -> None:
    """Write the model's weights with its spec in the header, atomically."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with atomic_file(path) as temporary:
        try:
            save_file(state, temporary, metadata={SPEC_KEY: json.dumps(spec.to_dict()), "format": "pt"})
        except SafetensorError as error:  # how it reports a full disk
            raise WeightsError(f"{path} cannot be written: {error}") from error


def read_spec(path: Path) -> ModelSpec | None:
    """The spec in a checkpoint of ours; None if the file carries none. Reads the header only."""
    text = _metadata(path).get(SPEC_KEY)
    if text is None:
        return None
    try:
        return ModelSpec.from_dict(json.loads(text))
    except (json.JSONDecodeError, ArtifactError) as error:
        raise WeightsError(f"{path} carries a description that cannot be read: {error}") from error


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names in the header of a plain safetensors file, if it has any."""
    text = _metadata(path).get(CLASSES_KEY)
    if not text:
        return ()
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path} carries class names that cannot be read: {error}") from error
    if not isinstance(names, list):
        raise WeightsError(f"{path} carries class names that are no JSON list")
    return tuple(map(str, names))


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.

    Raises:
        WeightsError: missing, damaged, or of a kind that could carry code.
    """
    if not path.is_file():
        raise WeightsError(
            f"checkpoint {path} does not exist", hint="--weights takes auto, pretrained, random or a file"
        )
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's first line, which advises to load it all the same.
        named = _FORBIDDEN.search(str(error))
        if named is None and not _is_pickle(path):  # the page of a download that failed, say
            raise WeightsError(f"{path} is damaged or no checkpoint: it is no pickle") from error
        raise WeightsError(
            f"{path} holds more than tensors and is not loaded, since that could run code: "
            + (named[1] if named else "a pickle that torch did not write"),
            hint="save it again as safetensors, or as a plain state dict",
        ) from error
    except Exception as error:  # on bytes that are no pickle torch's reader fails in every way there is
        raise WeightsError(f"{path} is damaged or no checkpoint: {_one_line(error)}") from error
    return _plain_state(data, path)


# What torch's weights-only reader names when it meets something else than tensors.
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|instantiate|Trying to load unsupported GLOBAL) ([\w.]+)")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(path)


def _one_line(error: Exception) -> str:
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return " ".join(part for part in (type(error).__name__, lines[0] if lines else "") if part)


def _plain_state(data: Any, path: Path) -> dict[str, Tensor]:
    """Unwrap ``{"model": …}`` and its relatives."""
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"{path} holds no state dict: expected a mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in data.items()}


def load_into(model: SlimViT, state: dict[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``model``: ours entirely, or a plain one into the backbone.

    Position embeddings of another image size are resampled, as timm does.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; the first such tensor is named.
    """
    ours = any(name.startswith("backbone.") for name in state)
    target: torch.nn.Module = model if ours else model.backbone
    if ours:
        # Under a method without parameters those of the predictor are left out. A checkpoint of the dense model has
        # none; the model then keeps its own. But all of them or none.
        reducer = {name: tensor for name, tensor in state.items() if not _is_backbone(name)}
        own = {name: tensor for name, tensor in target.state_dict().items() if not _is_backbone(name)}
        found = {name: tensor for name, tensor in reducer.items() if name in own} if reducer else own
        bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if _is_backbone(name)}
        state = {f"backbone.{name}": tensor for name, tensor in _fitted(bare, model, path).items()} | found
    else:
        state = _fitted(state, model, path)
    expected = target.state_dict()
    problem = _first_mismatch(expected, state)
    if problem:
        raise WeightsError(f"{path} does not fit this backbone: {problem}")
    target.load_state_dict(state, strict=True)


def _fitted(state: dict[str, Tensor], model: SlimViT, path: Path) -> dict[str, Tensor]:
    """timm's own reading of a state dict: other spellings, position embeddings of another size."""
    try:
        return dict(checkpoint_filter_fn(dict(state), model.backbone))
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} does not fit this backbone: {str(error).splitlines()[0]}") from error


def _is_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _first_mismatch(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    missing = [name for name in expected if name not in found]
    if missing:
        return f"{len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}"
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            return f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
    extra = [name for name in found if name not in expected]
    return f"{len(extra)} tensors are not part of it, the first is {extra[0]}" if extra else ""


def load(
    path: Path, *, method: str | None = None, schedule: Schedule | None = None, graph: str = "order-once"
) -> tuple[SlimViT, ModelSpec]:
    """The model in a checkpoint of ours, under its own method and schedule or others.

    Raises:
        WeightsError: no checkpoint of ours, damaged, or of another shape.
    """
    spec = read_spec(path) if path.is_file() else None
    state = read_state(path)
    if spec is None:
        raise WeightsError(
            f"{path} carries no description of its model",
            hint="lifedeploy export --backbone NAME --weights FILE makes a checkpoint that does",
        )
    spec = replace(spec, method=method or spec.method, schedule=schedule or spec.schedule)
    vit = backbones.create(spec.timm_name, image_size=spec.image_size, num_classes=spec.num_classes)
    model = build_model(vit, spec, graph=graph)
    load_into(model, state, path)
    return model, spec
