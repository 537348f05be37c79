"""Where weights come from: ``auto``, ``pretrained``, ``random`` or a file."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from torch import nn

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.errors import LifedeployError, UsageError, WeightsError
from lifedeploy.model import backbones, checkpoint, positions
from lifedeploy.model.blocks import adapted
from lifedeploy.model.from_file import load_file
from lifedeploy.model.request import LoadedModel, ModelRequest, describe, imagenet_names
from lifedeploy.model.vit import build_model
from lifedeploy.progress import quiet_loggers
from lifedeploy.spec import Provenance
from lifedeploy.typed import RANDOM_WEIGHTS

HUB_TIMEOUT_S = 3.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_LOGGERS = ("huggingface_hub", "timm", "httpx", "httpx2")  # of retries; their last word arrives as an exception
RANDOM_SEED = 0
POLICIES = ("auto", "pretrained", RANDOM_WEIGHTS)


def load(request: ModelRequest, workspace: Workspace, *, ordering: str = "") -> LoadedModel:
    """Make the model of ``request`` and fill it with the weights it asks for.

    Raises:
        UsageError, UnsupportedModelError, ScheduleError: the request cannot be meant.
        WeightsError: the weights asked for are missing, unreachable, damaged or of another shape.
    """
    backbones.refuse_other_families(request.backbone, backbones.timm_name(request.backbone))
    if request.weights == RANDOM_WEIGHTS:
        return _random(request, ordering)
    if request.weights == "pretrained":
        reason = hub_obstacle(backbones.timm_name(request.backbone))
        if reason:
            raise WeightsError(
                f"no pretrained weights for {request.backbone}: {reason}", hint="--weights random, or --weights FILE"
            )
        return _pretrained(request, ordering)
    if request.weights == "auto":
        return _auto(request, workspace, ordering)
    return load_file(request, Path(request.weights), ordering)


def source_of(request: ModelRequest, workspace: Workspace) -> Path | str:
    """Where :func:`load` would take weights from: a file, ``pretrained`` or ``random``; nothing is loaded for it.

    Raises:
        UsageError: the backbone is unknown.
    """
    if request.weights in ("pretrained", RANDOM_WEIGHTS):
        return request.weights
    if request.weights != "auto":
        return Path(request.weights)
    trained, _ = _trained(request, workspace)
    return trained or (RANDOM_WEIGHTS if hub_obstacle(backbones.timm_name(request.backbone)) else "pretrained")


def _trained(request: ModelRequest, workspace: Workspace) -> tuple[Path | None, str]:
    """The checkpoint of the workspace that is of what is asked for; or else one that comes near, in words."""
    backbone, near = backbones.timm_name(request.backbone), ""
    for path in workspace.checkpoints():
        try:
            spec = checkpoint.read_spec(path)
        except WeightsError:  # damaged, or still being written: not the one we look for
            continue
        if spec is None or spec.timm_name != backbone or spec.method != request.method:
            continue
        near = near or f"; {path} has another schedule, image size, number of classes or options"
        if request.image_size not in (None, spec.image_size) or request.num_classes not in (None, spec.num_classes):
            continue
        try:
            trained, options = spec.schedule, request.all_options(spec)
            wanted = request.schedule(trained.patches, trained.depth, trained, options)
        except UsageError:  # a schedule that its image size has not; options that the method has no more
            continue
        decisive = methods.get(spec.method).option_fields(training=False)
        if any(options[name] != spec.options.get(name, options[name]) for name in decisive):
            continue
        same_drops = wanted.drop_layers == spec.schedule.drop_layers
        same_tokens = (wanted.tokens, wanted.last) == (spec.schedule.tokens, spec.schedule.last)
        if same_tokens or (spec.provenance.elastic and same_drops):
            return path, ""
    return None, near


def _auto(request: ModelRequest, workspace: Workspace, ordering: str) -> LoadedModel:
    trained, near = _trained(request, workspace)
    if trained is not None:
        return load_file(request, trained, ordering)
    reason = hub_obstacle(backbones.timm_name(request.backbone))
    if not reason:
        try:
            return _pretrained(request, ordering)
        except WeightsError as error:  # it answered, and then did not deliver
            reason = error.message
    return replace(
        _random(request, ordering),
        warning=(
            f"RANDOM WEIGHTS: no trained checkpoint in {workspace.root}/ and no pretrained weights ({reason}{near}). "
            "Speed does not depend on weights, and speed is all this model is good for: its classes mean nothing."
        ),
    )


def _random(request: ModelRequest, ordering: str) -> LoadedModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(RANDOM_SEED)
        vit = backbones.create(request.backbone, image_size=request.image_size, num_classes=request.num_classes)
        _give_life_to_zeros(vit)
        provenance = Provenance(weights=RANDOM_WEIGHTS, source=f"seed {RANDOM_SEED}")
        spec = describe(request, vit, provenance, classes=())
        return LoadedModel(model=build_model(vit, spec, ordering=ordering), spec=spec)


def _give_life_to_zeros(vit: nn.Module) -> None:
    """Fill in what timm starts at zero (a head, biases, layer scales near it), and disturb the ones of norms.

    With a head of zeros all logits are equal, and a comparison of two engines would pass whatever they compute. Biases
    of zero, and norms of ones and zeros, are compiled away by runtimes, which then are faster than with trained ones.
    """
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.startswith("head") and name.endswith("weight"):
                torch.nn.init.trunc_normal_(parameter, std=0.02)
            elif parameter.ndim == 1:
                start = 0.0 if name.endswith("bias") else 1.0  # else a norm's weight, or a layer scale
                torch.nn.init.trunc_normal_(parameter, mean=start, std=0.02)


def _pretrained(request: ModelRequest, ordering: str) -> LoadedModel:
    try:
        with quiet_loggers(*_HUB_LOGGERS):
            vit = backbones.create(request.backbone, pretrained=True, num_classes=request.num_classes)
    except LifedeployError:
        raise
    except Exception as error:  # the hub's client raises errors of several network libraries, with no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"pretrained weights of {request.backbone} could not be fetched: {reason}") from error
    config: Any = vit.pretrained_cfg
    pretrained_classes = config.get("num_classes")
    fresh = request.num_classes not in (None, pretrained_classes)
    if fresh and not request.new_head:
        raise WeightsError(
            f"the pretrained head of {request.backbone} has {pretrained_classes} classes, not {request.num_classes}",
            hint="--weights FILE with a head of that size, or --weights random",
        )
    vit = _at_size(vit, request)
    source = config.get("hf_hub_id") or config.get("url") or ""
    classes = () if fresh else imagenet_names(adapted(vit).classes)
    spec = describe(request, vit, Provenance(weights="pretrained", source=str(source)), classes)
    return LoadedModel(model=build_model(vit, spec, ordering=ordering), spec=spec, new_head=fresh)


def _at_size(vit: nn.Module, request: ModelRequest) -> nn.Module:
    """A pretrained model at the image size asked for: made at its own, whose grid is known, and brought over."""
    now = adapted(vit)
    if request.image_size in (None, now.image_size):
        return vit
    moved = backbones.create(request.backbone, image_size=request.image_size, num_classes=now.classes)
    state, old, new = vit.state_dict(), now.grid, adapted(moved).grid
    if "pos_embed" in state:
        state["pos_embed"] = positions.resample(state["pos_embed"], old, new)
    moved.load_state_dict(state)
    return moved


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


__all__ = ["POLICIES", "LoadedModel", "ModelRequest", "describe", "hub_obstacle", "load", "source_of"]
