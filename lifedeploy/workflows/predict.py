"""``predict``: images in, class names and times out, on any engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.data.preprocess import model_input, read_image, to_pixels
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import ArtifactError, WeightsError
from lifedeploy.evaluation.asking import require_sound
from lifedeploy.workflows.find import find
from lifedeploy.writing import in_use


@dataclass(frozen=True)
class PredictRequest:
    """Which images, by which model."""

    images: tuple[Path, ...]
    model: Path | None = None  # None: the engine built last, else the newest export
    top: int = 5


@dataclass(frozen=True)
class Guess:
    """One class."""

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
    """All predictions."""

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
    with in_use(_choose(request.model, workspace).folder):
        return _predict(request, workspace)


def _predict(request: PredictRequest, workspace: Workspace) -> PredictReport:
    artifact = _choose(request.model, workspace)
    spec = artifact.manifest.spec
    if spec.provenance.weights == "random":
        raise WeightsError(
            f"{artifact.path} has random weights: any class it named would be made up",
            hint="export with --weights pretrained or --weights FILE",
        )
    if not spec.num_classes:
        raise WeightsError(f"{artifact.path} has no classification head: {spec.backbone} gives features")
    registry.verify(artifact)
    # All images are read before the model is loaded: a bad file is found out in milliseconds.
    pixels = [to_pixels(read_image(path), spec.preprocess) for path in request.images]
    in_graph = bool(artifact.manifest.graph.get("with_preprocess"))
    record = artifact.manifest.engine
    name = record.name if record else "onnxruntime"
    precision = artifact.precision
    batch = artifact.manifest.graph.get("batch_size") or 1
    predictions: list[Prediction] = []
    with registry.resolve(name)(artifact.path, EngineOptions(precision=precision, method=spec.method)) as engine:
        feed, answer = engine.inputs[0].name, engine.outputs[0].name
        for path, image in zip(request.images, pixels, strict=True):
            images = model_input(np.stack([image] * batch), spec.preprocess, in_graph=in_graph)
            if not predictions:
                engine.run({feed: images})  # the first run allocates, and would be timed for it
            began = time.perf_counter()
            logits = engine.run({feed: images})[answer]
            elapsed = (time.perf_counter() - began) * 1000
            require_sound(logits[:1], [str(path)], f"{artifact.path} on {name} {precision}")
            predictions.append(Prediction(str(path), _best(logits[0], spec.classes, request.top), elapsed))
    return PredictReport(artifact.name, f"{name} {precision}", tuple(predictions))


def _choose(model: Path | None, workspace: Workspace) -> Artifact:
    if model is None:
        built = workspace.engines()
        return built[0] if built else workspace.latest_export()
    target = find(model)
    if target.artifact is None:
        raise ArtifactError(f"{model} was not exported by lifedeploy, so its classes and preprocessing are unknown")
    return target.artifact


def _best(logits: np.ndarray, classes: Sequence[str], top: int) -> tuple[Guess, ...]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities)[:top]
    return tuple(
        Guess(int(index), classes[index] if classes else f"class {index}", float(probabilities[index]))
        for index in order
    )
