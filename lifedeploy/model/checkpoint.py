"""Checkpoints: safetensors that carry their spec; what other tools write is read too (``raw.py``, ``layouts.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any

import torch
from msgspec import Meta
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from lifedeploy.errors import ArtifactError, UsageError, WeightsError
from lifedeploy.files import compact_json
from lifedeploy.model import backbones, positions
from lifedeploy.model.blocks import adapted
from lifedeploy.model.fit import first_mismatch, require_as_many, require_numbers
from lifedeploy.model.layouts import REDUCER, Checkpoint, Facts, size_of, unpack
from lifedeploy.model.positions import Grid
from lifedeploy.model.raw import is_safetensors, read_header, read_tensors, require_content, unpickle, write_tensors
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.reading import decode_json, foreign, reason, require_regular
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec
from lifedeploy.typed import Extent

SPEC_KEY = "lifedeploy.spec"
# In plain safetensors of other tools, both as JSON: a list of names; 224 or [192, 256], height first.
CLASSES_KEY = "classes"
IMAGE_SIZE_KEY = "image_size"
_TRAIN_ONLY = REDUCER + "train_only."


def save(path: Path, model: SlimViT, spec: ModelSpec) -> None:
    """Write the model's weights with its spec in the header, atomically; equal ones give equal files.

    What the method has for training alone is left out.

    Raises:
        OSError, ArtifactError: it cannot be written; with the name of the file.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_TRAIN_ONLY)}
    write_tensors(path, weights, {SPEC_KEY: compact_json(spec.to_dict()), "format": "pt"})


def read_spec(path: Path) -> ModelSpec | None:
    """The spec in a checkpoint of ours; None if the file carries none. Reads the header only.

    Raises:
        WeightsError: it cannot be read, or is not what it should be.
    """
    text = read_header(path).get(SPEC_KEY)
    if text is None:
        return None
    try:
        return ModelSpec.from_json(text, "it")
    except ArtifactError as error:
        raise WeightsError(f"{path} carries a description that cannot be read: {error}") from error


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names in the header of a plain safetensors file, if it has any.

    Raises:
        WeightsError: they are no list of names.
    """
    return tuple(map(str, _fact(path, CLASSES_KEY, list[str | int]) or ()))


def _read_image_size(path: Path) -> tuple[int, int] | None:
    """The image size in the header of a plain safetensors file, if it has any."""
    given = _fact(path, IMAGE_SIZE_KEY, Extent | _Extents)
    return None if given is None else size_of(given)


_Extents = Annotated[list[Extent], Meta(min_length=2, max_length=3)]


def _fact(path: Path, key: str, kind: Any) -> Any:
    """A value of the header as ``kind``; None where there is none."""
    text = read_header(path).get(key)
    return decode_json(text, kind, f"{key} in the header of {path}", WeightsError) if text else None


def read(path: Path) -> Checkpoint:
    """A file of weights: ours, or another tool's.

    Raises:
        WeightsError: missing, damaged, of a kind that could carry code, or without a state dict of one ViT.
    """
    if not path.exists() or path.is_dir():
        raise WeightsError(
            f"checkpoint {path} does not exist", hint="--weights takes auto, pretrained, random or a file"
        )
    require_regular(path, WeightsError)
    require_content(path)
    tensors = read_tensors(path) if is_safetensors(path) else None
    if tensors is not None and (spec := read_spec(path)) is not None:
        return Checkpoint(path=path, state=tensors, spec=spec)
    with foreign(str(path), WeightsError):
        file = unpack(unpickle(path) if tensors is None else tensors, path)
    return file if tensors is None else replace(file, facts=Facts(image_size=_read_image_size(path)))


def load_into(
    model: SlimViT,
    state: dict[str, Tensor],
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    same_method: bool = False,
) -> str:
    """Load ``state`` into ``model``: ours entirely, or a plain one into the backbone, and with it what authors of the
    method published of its own.

    What is of another method's reducer is left out. A checkpoint of another method, the dense model's too, has nothing
    for this one's: the model then keeps its own. One of the ``same_method`` has all of it.

    Position embeddings of another image size are resampled from the grid of ``image_size``, (height, width), which the
    file they come from is expected to say. Where it does not, they are taken for those of the backbone's own grid or of
    a square one (:func:`positions.guess_grid`), or refused.

    Returns:
        A line about what was taken for granted; '' where nothing was.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; the first such tensor is named. Or the grid of
            the position embeddings is not known.
    """
    ours = any(map(_is_backbone, state))
    receiver: torch.nn.Module = model if ours else model.backbone
    fresh = {name: tensor for name, tensor in model.state_dict().items() if not _is_backbone(name)}
    published: dict[str, Tensor] = {}
    if ours:
        given = {name: tensor for name, tensor in state.items() if not _is_backbone(name)}
        learned = given if same_method else {name: given[name] for name in given if name in fresh} or fresh
        bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if _is_backbone(name)}
        placed, note = _placed(bare, model.backbone, path, image_size)
        state = {f"backbone.{name}": tensor for name, tensor in placed.items()} | learned
    else:
        published = {name: tensor for name, tensor in state.items() if name.startswith(REDUCER)}
        bare = {name: tensor for name, tensor in state.items() if name not in published}
        state, note = _placed(_renamed(bare, model, path), model.backbone, path, image_size)
    require_as_many(fresh, state | published, model.schedule, path)
    expected = receiver.state_dict()
    problem = first_mismatch(expected, state)
    if problem:
        what = "backbone" if "reducer." not in problem else "method"
        raise WeightsError(f"{path} does not fit this {what}: {problem}")
    if published:  # under the names in the file
        wanted = {name.removeprefix(REDUCER): tensor for name, tensor in fresh.items()}
        there = {name.removeprefix(REDUCER): tensor for name, tensor in published.items()}
        if problem := first_mismatch(wanted, there, whose="the method's"):
            raise WeightsError(f"{path} does not fit this method: {problem}")
        require_numbers(wanted, there, path)
    require_numbers(expected, state, path)
    with foreign(str(path), WeightsError):
        receiver.load_state_dict(state, strict=True)
        model.load_state_dict(published, strict=False)  # all that there are, and no others: held against them above
    return note


def _renamed(state: dict[str, Tensor], model: SlimViT, path: Path) -> dict[str, Tensor]:
    """timm's own reading of a state dict with other spellings; position embeddings as they are."""
    kernel, wanted = state.get("patch_embed.proj.weight"), model.backbone.state_dict()["patch_embed.proj.weight"]
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-2:] != wanted.shape[-2:]:
        has, expects = ("x".join(map(str, tensor.shape[-2:])) for tensor in (kernel, wanted))
        raise WeightsError(f"{path} does not fit this backbone: its patches have {has} pixels, expected {expects}")
    shadow: Any = _WithoutGrid(model.backbone)
    try:
        named = dict(checkpoint_filter_fn(dict(state), shadow))
    except Exception as error:  # it reshapes what it takes for tensors of a ViT, and looks at no shape before
        raise WeightsError(f"{path} does not fit this backbone: {reason(error)}") from error
    embeddings = named.get("pos_embed")
    if embeddings is not None and all(_storage(embeddings) != _storage(tensor) for tensor in state.values()):
        raise WeightsError(f"{path} has position embeddings that this timm resamples by itself, from a grid it guesses")
    return named


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Any(int):
    """A number that equals all others."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class _WithoutGrid:
    """A backbone as timm's conversion of names sees it, which would else resample position embeddings too.

    It guesses their grid (from a square root, or from the backbone's usual image size), even where nothing changes.
    """

    pos_embed = SimpleNamespace(shape=(1, _Any()))  # whatever comes fits
    pretrained_cfg = MappingProxyType({"input_size": (3, 1, 1)})  # smaller than a patch: no image size to guess from

    def __init__(self, vit: nn.Module) -> None:
        self._vit = vit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vit, name)


def _placed(
    state: dict[str, Tensor], vit: nn.Module, path: Path, image_size: tuple[int, int] | None
) -> tuple[dict[str, Tensor], str]:
    """``state`` with position embeddings of the backbone's grid; and what was taken for granted."""
    embeddings, wanted = state.get("pos_embed"), getattr(vit, "pos_embed", None)
    if embeddings is None or wanted is None or embeddings.ndim != 3 or embeddings.shape[2] != wanted.shape[2]:
        return state, ""  # what is wrong with it is found in comparison
    now: Grid = adapted(vit).grid
    prefix = wanted.shape[1] - now[0] * now[1]  # prefix tokens that have a position embedding
    patches = embeddings.shape[1] - prefix
    if patches < 1:
        return state, ""
    if image_size is not None:
        old, note = adapted(vit).grid_at(image_size), ""
        if old[0] * old[1] != patches:
            raise WeightsError(
                f"{path} has {patches} position embeddings, and {image_size[0]}x{image_size[1]} pixels make "
                f"{old[0]}x{old[1]} patches: they are of another image size"
            )
    else:
        guessed, how = positions.guess_grid(patches, vit)
        if guessed is None:
            raise WeightsError(
                f"{path} does not say of which grid its {patches} position embeddings are"
                + (f" ({how} is possible)" if how else "")
                + f", and a {now[0]}x{now[1]} grid is asked for",
                hint="lifedeploy export --weights-img-size HxW says at which size they were trained, and keeps it",
            )
        old = guessed
        note = "" if old == now else f"position embeddings were resampled from {old[0]}x{old[1]}, {how} grid"
    with foreign(f"{path} has position embeddings of type {embeddings.dtype}, which", WeightsError):
        return state | {"pos_embed": positions.resample(embeddings, old, now)}, note


def _is_backbone(name: str) -> bool:
    return name.startswith("backbone.")


@contextmanager
def declared(file: Checkpoint) -> Iterator[None]:
    """Around what is made as a file says: where that cannot be, it is the file that is wrong, not the request.

    Raises:
        WeightsError: instead of whatever is raised.
    """
    with foreign(f"the model that {file.path} describes", WeightsError):
        try:
            yield
        except UsageError as error:
            raise WeightsError(f"{file.path} describes a model that cannot be: {error.message}") from error


def require_head(file: Checkpoint) -> None:
    """Hold the number of classes that a file of ours declares against its head, before one is made.

    Raises:
        WeightsError: it has another one.
    """
    head = file.state.get("backbone.head.weight")
    if file.spec is not None and head is not None and head.shape[:1] != (file.spec.num_classes,):
        raise WeightsError(
            f"{file.path} describes {file.spec.num_classes} classes, and its head is {tuple(head.shape)}"
        )


def load(
    path: Path, *, method: str | None = None, schedule: Schedule | None = None, ordering: str = ""
) -> tuple[SlimViT, ModelSpec]:
    """The model in a checkpoint of ours, under its own method and schedule or others.

    Raises:
        WeightsError: no checkpoint of ours, damaged, or of another shape.
    """
    file = read(path)
    if file.spec is None:
        raise WeightsError(
            f"{path} carries no description of its model",
            hint="lifedeploy export --backbone NAME --weights FILE makes a checkpoint that does",
        )
    spec = replace(file.spec.under(method or file.spec.method), schedule=schedule or file.spec.schedule)
    require_head(file)
    with declared(file):
        vit = backbones.create(spec.timm_name, image_size=spec.image_size, num_classes=spec.num_classes)
        model = build_model(vit, spec, ordering=ordering)
    same = spec.method == file.spec.method
    load_into(model, file.state, path, image_size=file.image_size, same_method=same)
    return model, spec
