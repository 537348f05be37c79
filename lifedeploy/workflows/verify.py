"""``verify``: any two of checkpoint, ONNX file and engine against each other, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.wire import address_of, is_url
from lifedeploy.errors import UsageError
from lifedeploy.evaluation import parity
from lifedeploy.evaluation.parity import Answer
from lifedeploy.progress import Say, silent
from lifedeploy.records import ParityRecord
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.find import find, unchanged
from lifedeploy.targets.served import answers_to_files, asked, photographs, precision_of, served
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, target_of


@dataclass(frozen=True)
class VerifyRequest:
    """What to compare; ``first`` is the reference. ``second`` may be the address of a model behind a server."""

    first: Path
    second: Path | str


@dataclass(frozen=True)
class VerifyReport:
    """How far the second is from the first."""

    first: str
    second: str
    parity: ParityRecord

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, "first": self.first, "second": self.second, "parity": self.parity.to_dict()}


def verify(request: VerifyRequest, say: Say = silent) -> VerifyReport:
    """Compare two models, within the tolerance of the less precise of the two.

    Raises:
        EngineError: a server cannot be reached, or refuses.
        ArtifactError, WeightsError: one of them is missing or damaged.
        UsageError: they are not forms of the same model.
    """
    if is_url(str(request.first)):
        raise UsageError(
            f"{request.first} is behind a server, and the first of two is the reference: name a model here"
        )
    if is_url(str(request.second)):
        with unchanged(request.first):
            return _verify_served(request, say)
    second = Path(request.second)
    with unchanged(request.first, second):
        return _verify(target_of(find(request.first)), target_of(find(second)), say)


def _verify_served(request: VerifyRequest, say: Say) -> VerifyReport:
    """A model here against its service; an ensemble that takes files is asked with those of the photographs."""
    first, url = target_of(find(request.first)), str(request.second)
    say(f"asking {url}")
    model = asked(address_of(url))
    if not model.takes_files:
        return _verify(first, served(url, model, first), say)
    if first.spec is None:
        raise UsageError(f"{first.place} has no manifest, so how images are prepared for it is unknown")
    theirs = answers_to_files(url, model, first)
    samples = photographs(first.spec)
    say(f"asking {first.place}")
    with Session(first, "drops", proof=True) as session:
        ours = [session.read(session.ask(sample.pixels)) for sample in samples]
    if any(answer.kept is None for answer in theirs):
        ours = [replace(answer, kept=None) for answer in ours]
    coarser = _coarser(first.precision, precision_of(model, first))
    comparison = parity.compare(ours, theirs, samples, coarser, merges=first.merges)
    return VerifyReport(first.place, url, comparison)


def _coarser(*precisions: str) -> str:
    return max(precisions, key=list(parity.TOLERANCES).index)


def _verify(first: Target, second: Target, say: Say) -> VerifyReport:
    first, second = _like(first, second), _like(second, first)
    spec = first.spec or second.spec
    if first.spec and second.spec:
        _require_same_model(first.spec, second.spec)
    batch_size = first.batch_size or second.batch_size
    say("opening both")
    samples = parity_samples(spec.preprocess, batch_size) if spec else None
    answers = []
    for target in (first, second):
        say(f"asking {target.place}")
        with Session(target, "drops", proof=True) as session:
            if samples is None or spec is None:
                inputs = _noise(session.engine.inputs[0], batch_size)
            else:  # a graph of another tool gets what ours gets: pixels if it takes bytes, else normalised images
                inputs = [
                    model_input(sample.pixels, spec.preprocess, in_graph=session.takes_pixels) for sample in samples
                ]
            answers.append([session.answer(images) for images in inputs])
    if not (first.kept and second.kept):
        answers = [[replace(answer, kept=None) for answer in given] for given in answers]
    coarser = _coarser(first.precision, second.precision)
    merges = first.merges or second.merges
    comparison = parity.compare(answers[0], answers[1], samples or _blank(answers[0]), coarser, merges=merges)
    return VerifyReport(first.place, second.place, comparison)


def _require_same_model(first: ModelSpec, second: ModelSpec) -> None:
    for name in ("timm_name", "method", "num_classes", "image_size"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise UsageError(f"these are not forms of one model: {name} is {ours} and {theirs}")
    if first.schedule.tokens != second.schedule.tokens:
        raise UsageError(
            f"these are not forms of one model: {first.schedule.counts} and {second.schedule.counts} tokens are kept"
        )


def _like(target: Target, other: Target) -> Target:
    """A checkpoint runs under any method: under that of the other."""
    return target.under(other.method) if target.is_checkpoint and other.spec is not None else target


def _noise(spec: TensorSpec, batch_size: int | None) -> list[np.ndarray]:
    """Inputs for two graphs of other tools."""
    generator = np.random.default_rng(0)
    batches = (1, 3) if spec.shape[0] is None and batch_size is None else (spec.shape[0] or batch_size or 1,)
    shapes = [(batch, *(size or 224 for size in spec.shape[1:])) for batch in batches]
    return [generator.standard_normal(shape).astype(spec.dtype) for shape in shapes]


def _blank(answers: Sequence[Answer]) -> list[Sample]:
    """Labels for noise that has no pixels."""
    return [Sample("noise", np.zeros((len(answer.logits), 1, 1, 3), dtype=np.uint8)) for answer in answers]
