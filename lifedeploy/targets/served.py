"""A model behind a server as a target: what it is stands in the model that it is a service of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.data.samples import PHOTOS, Sample, photo_folder
from lifedeploy.engines.server import Server
from lifedeploy.engines.wire import (
    TYPES,
    Address,
    ServedModel,
    ServedTensor,
    address_of,
    connect,
    require_told,
)
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.evaluation.parity import Answer
from lifedeploy.kept import NOTHING_KEPT
from lifedeploy.spec import PRECISIONS, ModelSpec
from lifedeploy.targets.target import Target
from lifedeploy.text import quoted


def asked(address: Address) -> ServedModel:
    """What the server tells of a model.

    Raises:
        EngineUnavailableError: tritonclient is not installed.
        EngineError: it cannot be reached, or does not have the model.
    """
    Server.availability().require("a server cannot be asked")
    wire = connect(address)
    try:
        return wire.describe()
    finally:
        wire.close()


def served(url: str, model: ServedModel, like: Target) -> Target:
    """The target at ``url``, where a server tells of ``model``: a service of ``like``.

    Raises:
        UsageError: it is not of that model.
        EngineError: it takes the bytes of files.
    """
    spec = like.spec
    if spec is None:
        raise UsageError(
            f"{like.place} has no manifest, so how images are prepared for {url} is unknown",
            hint="name the export or engine that is served",
        )
    if model.takes_files:
        raise EngineError(
            f"{url} takes the bytes of image files, and prepared images were to be sent",
            hint="name the model itself; lifedeploy verify asks an ensemble too",
        )
    takes_pixels = _require_images(url, model, spec)
    _require_like(url, model, like)
    told = {tensor.name for tensor in model.outputs}
    return replace(
        like,
        name=address_of(url).model,
        engine=Server,
        precision=precision_of(model, like),
        method=spec.method,
        takes_pixels=takes_pixels,
        batch_size=None,
        kept=like.kept if like.kept and told.issuperset(like.kept.taps) else NOTHING_KEPT,
        predicts_lives=False,
        tells_groups=False,
        artifact=None,
        note="",
        url=url,
    )


def precision_of(model: ServedModel, like: Target) -> str:
    """What the server says that it computes in; where it says nothing, what the model here does."""
    told = model.parameters.get("precision", "")
    return told if told in PRECISIONS else like.precision


def _require_like(url: str, model: ServedModel, like: Target) -> None:
    """Make sure that a server's model may be a form of one of ours.

    Raises:
        UsageError: it gives no such logits, or names another method or backbone.
    """
    spec = like.spec
    assert spec is not None  # looked at before
    for name, ours in (("method", spec.method), ("backbone", spec.backbone)):
        theirs = model.parameters.get(name, ours)
        if theirs != ours:
            raise UsageError(f"these are not forms of one model: {name} is {ours}, and at {url} {theirs}")
    wanted = _logits_of(like)
    logits = model.logits(wanted.name) if wanted else next(iter(model.outputs), None)
    classes = (wanted.shape[1:] if wanted else (spec.num_classes,)) or ()
    if logits is None or logits.shape[1:] != classes:
        raise UsageError(f"{url} gives {_listed(model.outputs)}; expected logits of the shape {classes} for each image")


def _logits_of(like: Target) -> TensorSpec | None:
    """The tensor of the model's answers; of a checkpoint there is none yet."""
    outputs = like.artifact.manifest.outputs if like.artifact else ()
    return outputs[0] if outputs else None


def _require_images(url: str, model: ServedModel, spec: ModelSpec) -> bool:
    """Make sure that a server's model takes images as ours does; whether as pixels.

    Raises:
        UsageError: it takes something else.
    """
    height, width = spec.image_size
    shapes = {"UINT8": (height, width, 3), "FP32": (3, height, width), "FP16": (3, height, width)}
    given = model.inputs[0] if len(model.inputs) == 1 else None
    if given is None or given.shape[1:] != shapes.get(given.dtype):
        raise UsageError(f"{url} takes {_listed(model.inputs)}; expected images of {height}x{width} px")
    return given.dtype == "UINT8"


def _listed(tensors: Sequence[ServedTensor]) -> str:
    return "; ".join(f"{quoted(tensor.name)}: {tensor.dtype} {tensor.shape}" for tensor in tensors) or "nothing"


def photographs(spec: ModelSpec) -> list[Sample]:
    """The package's photographs as files have them, prepared one by one."""
    images = (read_image(photo_folder() / name) for name in PHOTOS)
    return [Sample("photographs", to_pixels(image, spec.preprocess)[None]) for image in images]


def answers_to_files(url: str, model: ServedModel, like: Target) -> list[Answer]:
    """What an ensemble answers to the photographs' files, in the order of :func:`photographs`.

    Raises:
        UsageError: it is an ensemble of another model.
        EngineError: it cannot be reached, refuses one, or gives what it did not tell of.
    """
    _require_like(url, model, like)
    wanted = _logits_of(like)
    logits = model.logits(wanted.name if wanted else "")
    assert logits is not None  # required above
    told = {tensor.name: tensor for tensor in model.outputs}
    taps = like.kept.taps if like.kept and told.keys() >= set(like.kept.taps) else ()
    wire = connect(address_of(url))
    answers = []
    try:
        for name in PHOTOS:
            file = np.array([[(photo_folder() / name).read_bytes()]], dtype=np.object_)
            # All of it: of an ensemble that is asked for a part, Triton 2.51 waits for steps that it left out.
            tensors = wire.infer(wire.request({model.inputs[0].name: file}, sorted(told)))
            for tensor in (logits, *(told[tap] for tap in taps)):
                dtype, shape = TYPES.get(tensor.dtype, tensor.dtype), (1, *tensor.shape[1:])
                require_told(url, tensors[tensor.name], tensor.name, dtype, shape)
            answers.append(Answer(tensors[logits.name], like.kept.whole(tensors) if taps else None))
    finally:
        wire.close()
    return answers
