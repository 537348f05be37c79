"""Where weights come from: ``auto``, ``pretrained``, ``random`` or a file."""

from __future__ import annotations

import http.client
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lifedeploy.artifact import Workspace
from lifedeploy.errors import LifedeployError, ScheduleError, WeightsError
from lifedeploy.files import sha256
from lifedeploy.model import backbones, checkpoint
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance

HUB_TIMEOUT_S = 3.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
RANDOM_SEED = 0
DEFAULT_KEEP_RATE = 0.7
DEFAULT_TEMPERATURE = 1.5
_HEAD = re.compile(r"(?:backbone\.)?head(?:_dist)?\.")
POLICIES = ("auto", "pretrained", "random")


@dataclass(frozen=True)
class ModelRequest:
    """What model is wanted. With neither ``keep_rate`` nor ``counts``, the schedule of the weights' own, else ρ 0.7."""

    backbone: str
    keep_rate: float | None = None
    counts: tuple[int, ...] | None = None
    drop_layers: tuple[int, ...] | None = None
    method: str = "life"
    weights: str = "auto"
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    temperature: float | None = None  # U of eq. 7; None: the weights' own, else 1.5
    new_head: bool = False  # for training: weights of another number of classes get a new head, else are refused

    def schedule(self, patches: int, depth: int) -> Schedule:
        """The schedule asked for, on a backbone of this size."""
        if self.counts is not None:
            return Schedule.from_counts(patches, depth, self.counts, self.drop_layers)
        keep_rate = DEFAULT_KEEP_RATE if self.keep_rate is None else self.keep_rate
        return Schedule.from_keep_rate(patches, depth, keep_rate, self.drop_layers)


@dataclass(frozen=True)
class LoadedModel:
    """A model with weights in it. ``warning`` is set where the weights are not what one would hope for."""

    model: SlimViT
    spec: ModelSpec
    warning: str = ""


def load(request: ModelRequest, workspace: Workspace, *, graph: str = "order-once") -> LoadedModel:
    """Make the model of ``request`` and fill it with the weights it asks for.

    Raises:
        UsageError, UnsupportedModelError, ScheduleError: the request cannot be meant.
        WeightsError: the weights asked for are missing, unreachable, damaged or of another shape.
    """
    backbones.refuse_other_families(request.backbone, backbones.timm_name(request.backbone))
    if request.weights == "random":
        return _random(request, graph)
    if request.weights == "pretrained":
        reason = hub_obstacle(backbones.timm_name(request.backbone))
        if reason:
            raise WeightsError(
                f"no pretrained weights for {request.backbone}: {reason}", hint="--weights random, or --weights FILE"
            )
        return _pretrained(request, graph)
    if request.weights == "auto":
        return _auto(request, workspace, graph)
    return _from_file(request, Path(request.weights), graph)


def _auto(request: ModelRequest, workspace: Workspace, graph: str) -> LoadedModel:
    backbone = backbones.timm_name(request.backbone)
    for path in workspace.checkpoints():
        try:
            spec = checkpoint.read_spec(path)
        except WeightsError:  # damaged, or still being written: not the one we look for
            continue
        if spec is None or spec.timm_name != backbone or spec.method != request.method:
            continue
        if request.image_size not in (None, spec.image_size) or request.num_classes not in (None, spec.num_classes):
            continue
        try:
            wanted = request.schedule(spec.schedule.patches, spec.schedule.depth)
        except ScheduleError:  # at this checkpoint's image size; at the one that is made in the end it may be fine
            continue
        same_drops = wanted.drop_layers == spec.schedule.drop_layers
        if wanted.tokens == spec.schedule.tokens or (spec.provenance.elastic and same_drops):
            return _from_file(request, path, graph)
    reason = hub_obstacle(backbone)
    if not reason:
        try:
            return _pretrained(request, graph)
        except WeightsError as error:  # it answered, and then did not deliver
            reason = error.message
    loaded = _random(request, graph)
    return LoadedModel(
        loaded.model,
        loaded.spec,
        warning=(
            f"RANDOM WEIGHTS: no trained checkpoint in {workspace.root}/ and no pretrained weights ({reason}). "
            "Speed does not depend on weights, and speed is all this model is good for: its classes mean nothing."
        ),
    )


def _random(request: ModelRequest, graph: str) -> LoadedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(RANDOM_SEED)
        vit = backbones.create(request.backbone, image_size=request.image_size, num_classes=request.num_classes)
        _give_life_to_zeros(vit)
        provenance = Provenance("random", source=f"seed {RANDOM_SEED}")
        spec = describe(request, vit, provenance, classes=())
        return LoadedModel(build_model(vit, spec, graph=graph), spec)


def _give_life_to_zeros(vit: VisionTransformer) -> None:
    """Fill in what timm starts at zero (a head, layer scales near it).

    With a head of zeros all logits are equal, and a comparison of two engines would pass whatever they compute.
    """
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.startswith("head") and name.endswith("weight"):
                torch.nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("gamma"):
                parameter.fill_(1.0)


def _pretrained(request: ModelRequest, graph: str) -> LoadedModel:
    try:
        with _quiet_hub():
            vit = backbones.create(
                request.backbone, pretrained=True, image_size=request.image_size, num_classes=request.num_classes
            )
    except LifedeployError:
        raise
    except Exception as error:  # the hub's client raises errors of several network libraries, with no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"pretrained weights of {request.backbone} could not be fetched: {reason}") from error
    config: Any = vit.pretrained_cfg
    own_classes = config.get("num_classes")
    fresh = request.num_classes not in (None, own_classes)
    if fresh and not request.new_head:
        raise WeightsError(
            f"the pretrained head of {request.backbone} has {own_classes} classes, not {request.num_classes}",
            hint="--weights FILE with a head of that size, or --weights random",
        )
    source = config.get("hf_hub_id") or config.get("url") or ""
    classes = () if fresh else _imagenet_names(vit.num_classes)
    spec = describe(request, vit, Provenance("pretrained", source=str(source)), classes)
    return LoadedModel(build_model(vit, spec, graph=graph), spec)


def _from_file(request: ModelRequest, path: Path, graph: str) -> LoadedModel:
    """A checkpoint of ours (safetensors with a spec), or a plain timm / DeiT state dict."""
    state = checkpoint.read_state(path)
    own = checkpoint.read_spec(path)
    head = state.get("head.weight", state.get("backbone.head.weight"))
    held = own.num_classes if own else (head.shape[0] if head is not None and head.ndim else 0)
    classes = held if request.num_classes is None else request.num_classes
    fresh = classes != held and request.new_head
    size = request.image_size or (own.image_size if own else None)
    name = own.timm_name if own else request.backbone
    if own and own.timm_name != backbones.timm_name(request.backbone):
        raise WeightsError(f"{path} holds {own.timm_name}, but --backbone is {request.backbone}")
    vit = backbones.create(name, image_size=size, num_classes=classes)
    provenance = Provenance(
        weights=own.provenance.weights if own else "file",  # random weights stay random in a file
        source=path.name,
        sha256=sha256(path),
        predictor=own.provenance.predictor if own else "identity",
        elastic=own.provenance.elastic if own else False,
    )
    names = own.classes if own else checkpoint.read_classes(path) or _imagenet_names(vit.num_classes)
    if fresh:
        names = ()
        state = {name: tensor for name, tensor in state.items() if not _HEAD.match(name)} | _head_of(vit, state)
    if names and len(names) != vit.num_classes:
        raise WeightsError(f"{path} carries {len(names)} class names for a head of {vit.num_classes} classes")
    spec = describe(request, vit, provenance, names)
    if own:
        spec = _as_trained(spec, own, request)
    model = build_model(vit, spec, graph=graph)
    checkpoint.load_into(model, state, path)
    return LoadedModel(model, spec)


def _head_of(vit: VisionTransformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new head's own tensors, under the names that ``state`` uses."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    own = ((prefix + name, tensor) for name, tensor in vit.state_dict().items())
    return {name: tensor for name, tensor in own if _HEAD.match(name)}


def _as_trained(spec: ModelSpec, own: ModelSpec, request: ModelRequest) -> ModelSpec:
    """``spec`` with what the checkpoint knows better than timm: its preprocessing, U and, unless asked, schedule."""
    asked = request.keep_rate is not None or request.counts is not None or request.drop_layers is not None
    same_patches = own.schedule.patches == spec.schedule.patches
    return replace(
        spec,
        preprocess=replace(own.preprocess, image_size=spec.image_size),
        temperature=own.temperature if request.temperature is None else request.temperature,
        schedule=own.schedule if not asked and same_patches else spec.schedule,
    )


def describe(
    request: ModelRequest, vit: VisionTransformer, provenance: Provenance, classes: tuple[str, ...]
) -> ModelSpec:
    """The spec of the model that ``request`` makes of ``vit``."""
    return ModelSpec(
        backbone=request.backbone,
        timm_name=backbones.timm_name(request.backbone),
        method=request.method,
        schedule=request.schedule(vit.patch_embed.num_patches, len(vit.blocks)),
        preprocess=backbones.preprocess_of(vit, request.image_size),
        num_classes=vit.num_classes,
        prefix_tokens=vit.num_prefix_tokens,
        provenance=provenance,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        classes=classes,
    )


def _imagenet_names(num_classes: int) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, where that is plainly what the head has."""
    if num_classes != 1000:
        return ()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(1000))


def hub_obstacle(name: str) -> str:
    """Why timm could not load pretrained weights of ``name`` just now, or '' if it could.

    Asked before timm is, which takes most of a minute to give up: first the local cache, then one connection with a
    short time-out.
    """
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.has_weights:
        return f"timm has none for {name}"
    hub_id = config.hf_hub_id
    if hub_id and _cached(hub_id, config.hf_hub_filename):
        return ""
    if hub_id and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "HF_HUB_OFFLINE is set and they are not in the cache"
    if not hub_id:
        return _unreachable(str(config.url))
    from huggingface_hub import hf_hub_url

    return _unreachable(hf_hub_url(hub_id, config.hf_hub_filename or _HUB_FILES[0]))


def _cached(hub_id: str, filename: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = [filename] if filename else _HUB_FILES
    return any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names)


def _unreachable(url: str) -> str:
    """'' if ``url`` answers one request (through the proxy, if one is set) within the time-out."""
    host = urlsplit(url).hostname or url
    verdict: list[str] = []

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
            verdict.append("")
        except urllib.error.HTTPError as error:
            # Not found is an answer too: timm knows other names to look for.
            verdict.append("" if error.code == 404 else f"{host} answers {error.code} {error.reason}")
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            verdict.append(f"cannot reach {host}: {' '.join(str(getattr(reason, 'strerror', None) or reason).split())}")

    # In a thread, because looking up a name does not honour the socket's time-out.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return verdict[0] if verdict else f"cannot reach {host}: no answer within {HUB_TIMEOUT_S:g} s"


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub client's retry log off the user's screen; its last word arrives as an exception anyway."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx", "httpx2")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
