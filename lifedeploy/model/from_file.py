"""A model with the weights of a file: what the file says of it wins over what its backbone would have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UsageError, WeightsError
from lifedeploy.files import sha256
from lifedeploy.model import authors, backbones, checkpoint
from lifedeploy.model.blocks import adapted
from lifedeploy.model.layouts import REDUCER, Checkpoint
from lifedeploy.model.request import LoadedModel, ModelRequest, describe, imagenet_names
from lifedeploy.model.vit import build_model
from lifedeploy.spec import ModelSpec, Provenance
from lifedeploy.text import quoted

_HEAD = re.compile(r"(?:backbone\.)?head(?:_dist)?\.")


def load_file(request: ModelRequest, path: Path, ordering: str) -> LoadedModel:
    """A checkpoint of ours (safetensors with a spec), or one of another tool.

    Raises:
        WeightsError: it cannot be read, does not fit, or is of use to another method alone.
    """
    file = checkpoint.read(path)
    _require_method(file, request.method)
    request = replace(request, options={**_trained_options(file, request.method), **request.options})
    state, file_spec, facts = file.state, file.spec, file.facts
    head = state.get("head.weight", state.get("backbone.head.weight"))
    held = file_spec.num_classes if file_spec else (head.shape[0] if head is not None and head.ndim else 0)
    classes = held if request.num_classes is None else request.num_classes
    fresh = classes != held and request.new_head
    size = request.image_size or file.image_size or request.weights_image_size
    name = file_spec.timm_name if file_spec else request.backbone
    _require_backbone(file, request)
    checkpoint.require_head(file)
    as_the_file_says = request.image_size is None and file.image_size is not None
    with checkpoint.declared(file) if as_the_file_says else nullcontext():
        vit = backbones.create(name, image_size=size, num_classes=classes)
    same_method = methods.get(request.method).reads_files_of(file.method)
    if file_spec and same_method:
        with checkpoint.declared(file):
            methods.get(file_spec.method).settle(file_spec.options)
    # What one method has learned is nothing to another that slims; baselines are described as the weights they are of.
    slims = methods.role_of(request.method) == methods.SLIMMED
    learned = file_spec.provenance if file_spec and (same_method or not slims) else None
    if not same_method and file.method:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(REDUCER)}
    published = same_method and bool(file.authors and file.parameters)
    provenance = Provenance(
        weights=file_spec.provenance.weights if file_spec else "file",  # random weights stay random in a file
        source=path.name,
        sha256=sha256(path),
        predictor=learned.predictor if learned else "trained" if published else "identity",
        elastic=learned.elastic if learned else False,
    )
    given = file_spec.classes if file_spec else checkpoint.read_classes(path)
    names = given or (() if file_spec else imagenet_names(adapted(vit).classes))
    taken = "its 1,000 classes are taken for ImageNet's" if names and not given and not fresh else ""
    if not classes:  # the head is left out
        names = ()
        state = {name: tensor for name, tensor in state.items() if not _HEAD.match(name)}
    if fresh:
        names = ()
        state = {name: tensor for name, tensor in state.items() if not _HEAD.match(name)} | _head_of(vit, state)
    if names and len(names) != adapted(vit).classes:
        raise WeightsError(f"{path} carries {len(names)} class names for a head of {adapted(vit).classes} classes")
    spec = describe(request, vit, provenance, names, file_spec)
    if file_spec:
        spec = replace(spec, preprocess=replace(file_spec.preprocess, image_size=spec.image_size))
    elif facts.data_config:
        trained_with = {"input_size": (3, *spec.image_size), **facts.data_config}
        spec = replace(spec, preprocess=backbones.preprocess_of(vit, spec.image_size, trained_with))
    model = build_model(vit, spec, ordering=ordering)
    trained_size = _trained_size(file, request)
    note = checkpoint.load_into(model, state, path, image_size=trained_size, same_method=same_method)
    recognised = f"{path.name}: {file.layout}" if file.layout else ""
    differs = _of_other_options(file, spec) if same_method else _of_another_method(file, request)
    notes = tuple(filter(None, (recognised, differs, note, taken)))
    return LoadedModel(model=model, spec=spec, notes=notes, new_head=fresh)


def _require_method(file: Checkpoint, method: str) -> None:
    """Make sure that weights were trained for the method, or are of use without the one that they were trained for.

    Raises:
        WeightsError: they are not; both methods are named.
    """
    try:
        lends = not file.method or methods.get(file.method).published.lends_backbone
    except UsageError:  # of a method that is not installed: nothing is known of it
        return
    if not lends and not methods.get(method).reads_files_of(file.method):
        takers = authors.takers(file.method)
        raise WeightsError(
            f"{file.path} is a checkpoint of {file.method}, and {method} is asked for: its weights are of use to "
            f"{' and '.join(takers)} alone",
            hint=f"--method {' or '.join(takers)}, or weights of a dense model",
        )


def _trained_options(file: Checkpoint, name: str) -> dict[str, methods.Option]:
    """The options of a method that its authors' file says it was trained with, as far as they are such options."""
    method = methods.get(name)
    if not file.authors or not method.reads_files_of(file.authors):
        return {}
    said: dict[str, methods.Option] = {}
    for argument, option in methods.get(file.authors).published.options:
        value = file.arguments.get(argument)
        if option in method.usual_options and isinstance(value, (int, float)):
            with suppress(UsageError):  # it is none: a line says with what it is used
                method.settle({option: value})
                said[option] = value
    return said


def _of_other_options(file: Checkpoint, spec: ModelSpec) -> str:
    """A line about options that a method's authors trained its weights with and that are others here; '' of none."""
    pairs = methods.get(file.authors).published.options if file.authors else ()
    trained = {option: (argument, file.arguments[argument]) for argument, option in pairs if argument in file.arguments}
    usual = methods.get(spec.method).usual_options
    others = [
        (f"{argument} {quoted(value)}", f"the usual {option}" if here == usual[option] else f"{option} {quoted(here)}")
        for option, (argument, value) in trained.items()
        if option in spec.options and not _equal(value, here := spec.options[option])
    ]
    if not others:
        return ""
    theirs, here = (", ".join(words) for words in zip(*others, strict=True))
    return f"{file.path.name} was trained with {theirs}, and is used with {here}"


def _equal(value: Any, option: methods.Option) -> bool:
    """Whether a value of somebody's file is an option's; only plain values compare without surprises."""
    return isinstance(value, (bool, int, float, str)) and value == option


def _of_another_method(file: Checkpoint, request: ModelRequest) -> str:
    """A line about weights that were trained for another way to slim than they are asked for; '' of all others.

    Weights of nothing dropped are where every method starts, and no others.
    """
    if not file.method or methods.role_of(file.method) != methods.SLIMMED:
        return ""
    said = f"{file.path.name} is a checkpoint of {file.method}, and {request.method} is asked for"
    names = [name.removeprefix(REDUCER) for name in file.parameters]
    return f"{said}: its {len(names)} tensors of {file.method} are left out ({names[0]})" if names else said


def _require_backbone(file: Checkpoint, request: ModelRequest) -> None:
    """Make sure that a file which says of which backbone it is, is of the one asked for."""
    wanted = backbones.timm_name(request.backbone)
    said = file.spec.timm_name if file.spec else file.facts.architecture
    # Another tool names the architecture, and may name one that it registered itself.
    same = said == wanted if file.spec else said.partition(".")[0] == wanted.partition(".")[0]
    if said and not same and (file.spec or timm.is_model(said.partition(".")[0])):
        raise WeightsError(f"{file.path} holds {said}, but --backbone is {request.backbone}")


def _trained_size(file: Checkpoint, request: ModelRequest) -> tuple[int, int] | None:
    """The image size, (height, width), that a file's position embeddings are of; None where nobody says.

    Raises:
        WeightsError: the file says one, and another one was given.
    """
    said, given = file.image_size, request.weights_image_size
    if file.spec is not None and given not in (None, said):
        trained, other = ("x".join(map(str, size)) for size in (file.spec.image_size, given or ()))
        raise WeightsError(f"{file.path} says that it was trained at {trained}, and --weights-img-size is {other}")
    if file.facts.at_native_size:
        said = backbones.native_image_size(request.backbone)
    return given or said  # of another tool's file somebody may know better


def _head_of(vit: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new head's own tensors, under the names that ``state`` uses."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    tensors = ((prefix + name, tensor) for name, tensor in vit.state_dict().items())
    return {name: tensor for name, tensor in tensors if _HEAD.match(name)}
