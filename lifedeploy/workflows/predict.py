"""``predict``: images in, class names and times out, on any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Workspace
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.errors import WeightsError
from lifedeploy.targets import select
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.session import Session, most_probable
from lifedeploy.targets.target import target_of
from lifedeploy.typed import RANDOM_WEIGHTS
from lifedeploy.writing import in_use


@dataclass(frozen=True)
class PredictRequest:
    """Which images, by which model."""

    images: tuple[Path, ...]
    model: Path | None = None  # None: the engine built last, else the newest export
    top: int = 5


@dataclass(frozen=True)
class Guess:
    """A class, and how probable it is."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    image: str
    guesses: tuple[Guess, ...]
    inference_ms: float


@dataclass(frozen=True)
class PredictReport:
    """The predictions of all images."""

    model: str
    engine: str
    predictions: tuple[Prediction, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **asdict(self)}


def predict(request: PredictRequest, workspace: Workspace) -> PredictReport:
    """Classify images one by one.

    Raises:
        WeightsError: the model's weights are random: it has no classes to name.
        ImageError: a file is no image.
        EngineError: the engine gives NaN or infinity.
    """
    with in_use(select.for_prediction(request.model, workspace).folder):
        return _predict(request, workspace)


def _predict(request: PredictRequest, workspace: Workspace) -> PredictReport:
    artifact = select.for_prediction(request.model, workspace)
    spec = artifact.manifest.spec
    if spec.provenance.weights == RANDOM_WEIGHTS:
        raise WeightsError(
            f"{artifact.path} has random weights: any class it named would be made up",
            hint="export with --weights pretrained or --weights FILE",
        )
    if not spec.num_classes:
        raise WeightsError(f"{artifact.path} has no classification head: {spec.backbone} gives features")
    target = target_of(ModelFile.of(artifact))
    # All images are read before the model is loaded: a bad file is found out in milliseconds.
    pixels = [to_pixels(read_image(path), spec.preprocess) for path in request.images]
    predictions: list[Prediction] = []
    with Session(target) as session:
        for path, image in zip(request.images, pixels, strict=True):
            if not predictions:
                session.ask(image[None], [str(path)])  # the first inference allocates, and would be timed for it
            before = session.seconds
            logits = session.read(session.ask(image[None], [str(path)])).logits[0]
            elapsed_ms = (session.seconds - before) * 1000
            predictions.append(Prediction(str(path), _best(logits, spec.classes, request.top), elapsed_ms))
    return PredictReport(artifact.name, f"{target.engine.name} {target.precision}", tuple(predictions))


def _best(logits: np.ndarray, classes: Sequence[str], top: int) -> tuple[Guess, ...]:
    (best,), (shares,) = most_probable(logits[None], top)
    return tuple(
        Guess(index, classes[index] if classes else f"class {index}", share)
        for index, share in zip(best.tolist(), shares.tolist(), strict=True)
    )
