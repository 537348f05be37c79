"""A model behind a server as a target: what it is stands in the model that it is a service of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.data.samples import PHOTOS, Sample, photo_folder
from lifedeploy.engines.server import Server
from lifedeploy.engines.wire import Address, ServedModel, ServedTensor, address_of, connect
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.evaluation.parity import Answer
from lifedeploy.kept import NOTHING_KEPT
from lifedeploy.spec import PRECISIONS, ModelSpec
from lifedeploy.targets.target import Target


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


def served(url: str, like: Target) -> Target:
    """The target at ``url``, which is a service of the model ``like``.

    Raises:
        UsageError: it is no address, or not of that model.
        EngineUnavailableError, EngineError: as :func:`asked`; or it takes the bytes of files.
    """
    address = address_of(url)
    model = asked(address)
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
    takes_pixels = _require_like(url, model, spec)
    told = {tensor.name for tensor in model.outputs}
    told_precision = model.parameters.get("precision", "")
    return replace(
        like,
        name=address.model,
        engine=Server,
        precision=told_precision if told_precision in PRECISIONS else like.precision,
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


def _require_like(url: str, model: ServedModel, spec: ModelSpec) -> bool:
    """Make sure that a server's model may be a form of one of ours; whether it takes pixels.

    Raises:
        UsageError: it takes other images, gives no logits of as many classes, or names another method or backbone.
    """
    for name, ours in (("method", spec.method), ("backbone", spec.backbone)):
        theirs = model.parameters.get(name, ours)
        if theirs != ours:
            raise UsageError(f"these are not forms of one model: {name} is {ours}, and at {url} {theirs}")
    height, width = spec.image_size
    shapes = {"UINT8": (height, width, 3), "FP32": (3, height, width), "FP16": (3, height, width)}
    given = model.inputs[0] if len(model.inputs) == 1 else None
    if given is None or given.shape[1:] != shapes.get(given.dtype):
        raise UsageError(f"{url} takes {_listed(model.inputs)}; expected images of {height}x{width} px")
    if not model.outputs or model.outputs[0].shape[1:] != (spec.num_classes,):
        raise UsageError(f"{url} gives {_listed(model.outputs)}; expected logits of {spec.num_classes} classes first")
    return given.dtype == "UINT8"


def _listed(tensors: Sequence[ServedTensor]) -> str:
    return "; ".join(f"{tensor.name}: {tensor.dtype} {tensor.shape}" for tensor in tensors) or "nothing"


def photographs(spec: ModelSpec) -> list[Sample]:
    """The package's photographs as files have them, prepared one by one."""
    images = (read_image(photo_folder() / name) for name in PHOTOS)
    return [Sample("photographs", to_pixels(image, spec.preprocess)[None]) for image in images]


def answers_to_files(url: str, like: Target) -> list[Answer]:
    """What an ensemble answers to the photographs' files, in the order of :func:`photographs`.

    Raises:
        EngineError: it cannot be reached, refuses one, or gives no logits.
    """
    address = address_of(url)
    model = asked(address)
    classes = like.spec.num_classes if like.spec else 0
    logits = next((tensor.name for tensor in model.outputs if tensor.shape[1:] == (classes,)), None)
    if logits is None:
        raise EngineError(f"{url} gives no logits of {classes} classes")
    told = {tensor.name for tensor in model.outputs}
    taps = like.kept.taps if like.kept and told.issuperset(like.kept.taps) else ()
    wire = connect(address)
    answers = []
    try:
        for name in PHOTOS:
            file = np.array([[(photo_folder() / name).read_bytes()]], dtype=np.object_)
            # All of it: of an ensemble that is asked for a part, Triton 2.51 waits for steps that it left out.
            tensors = wire.infer(wire.request({model.inputs[0].name: file}, sorted(told)))
            answers.append(Answer(tensors[logits], like.kept.whole(tensors) if taps else None))
    finally:
        wire.close()
    return answers
