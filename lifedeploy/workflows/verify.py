"""``verify``: any two of checkpoint, ONNX file and engine against each other, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.base import Engine
from lifedeploy.errors import UsageError
from lifedeploy.evaluation import parity
from lifedeploy.evaluation.parity import Answer, Parity
from lifedeploy.spec import ModelSpec
from lifedeploy.workflows.find import find, unchanged
from lifedeploy.workflows.opened import Openable, openable
from lifedeploy.workflows.progress import Say, silent


@dataclass(frozen=True)
class VerifyRequest:
    """What to compare; ``first`` is the reference."""

    first: Path
    second: Path


@dataclass(frozen=True)
class VerifyReport:
    """What came out."""

    first: str
    second: str
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, "first": self.first, "second": self.second, "parity": self.parity.to_dict()}


def verify(request: VerifyRequest, say: Say = silent) -> VerifyReport:
    """Compare two models, within the tolerance of the less precise of the two.

    Raises:
        ArtifactError, WeightsError: one of them is missing or damaged.
        UsageError: they are not forms of the same model.
    """
    with unchanged(request.first, request.second):
        return _verify(request, say)


def _verify(request: VerifyRequest, say: Say) -> VerifyReport:
    first, second = (openable(find(path)) for path in (request.first, request.second))
    first, second = _like(first, second), _like(second, first)
    spec = first.spec or second.spec
    if first.spec and second.spec:
        _require_same_model(first.spec, second.spec)
    batch_size = first.batch_size or second.batch_size
    say("opening both")
    samples = parity_samples(spec.preprocess, batch_size) if spec else None
    answers = []
    for side in (first, second):
        say(f"asking {side.label}")
        answers.append(_answers(side, samples, spec, batch_size))
    pictures = samples or _blank(answers[0])
    both = first.kept and second.kept
    if not both:
        answers = [[replace(answer, kept=None) for answer in given] for given in answers]
    coarser = max((first.precision, second.precision), key=list(parity.TOLERANCES).index)
    return VerifyReport(first.label, second.label, parity.compare(answers[0], answers[1], pictures, coarser))


def _require_same_model(first: ModelSpec, second: ModelSpec) -> None:
    for name in ("timm_name", "method", "num_classes", "image_size"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise UsageError(f"these are not forms of one model: {name} is {one} and {other}")
    if first.schedule.tokens != second.schedule.tokens:
        raise UsageError(
            f"these are not forms of one model: {first.schedule.counts} and {second.schedule.counts} tokens are kept"
        )


def _like(side: Openable, other: Openable) -> Openable:
    """A checkpoint runs under any method: under that of the other side."""
    return side.under(other.method) if side.is_checkpoint and other.spec is not None else side


def _answers(
    side: Openable, samples: Sequence[Sample] | None, spec: ModelSpec | None, batch_size: int | None
) -> list[Answer]:
    with ExitStack() as stack:
        engine = stack.enter_context(side.open())
        probe = stack.enter_context(side.open(taps=side.kept.taps)) if side.kept else None
        run = parity.asker(engine, probe, side.kept, whole=True)
        if samples is None or spec is None:
            return [run(array) for array in _noise(engine, batch_size)]
        # A graph of another tool gets what ours gets: pixels if it takes bytes, else normalised images.
        in_graph = side.in_graph if side.spec else engine.inputs[0].dtype == "uint8"
        return [run(model_input(sample.pixels, spec.preprocess, in_graph=in_graph)) for sample in samples]


def _noise(engine: Engine, batch_size: int | None) -> list[np.ndarray]:
    """Inputs for two graphs of other tools."""
    spec = engine.inputs[0]
    generator = np.random.default_rng(0)
    made: list[np.ndarray] = []
    for batch in (1, 3) if spec.shape[0] is None and batch_size is None else (spec.shape[0] or batch_size or 1,):
        shape = tuple(batch if index == 0 else size or 224 for index, size in enumerate(spec.shape))
        made.append(generator.standard_normal(shape).astype(spec.dtype))
    return made


def _blank(answers: Sequence[Answer]) -> list[Sample]:
    """Labels for noise that has no pixels."""
    return [Sample("noise", np.zeros((len(answer.logits), 1, 1, 3), dtype=np.uint8)) for answer in answers]
