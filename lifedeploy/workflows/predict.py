"""``predict``: images in, class names and times out, on any engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Workspace
from lifedeploy.data.preprocess import read_image
from lifedeploy.errors import ImageError, WeightsError
from lifedeploy.progress import Progress, Step, unwatched
from lifedeploy.scoring.answers import Rows
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.scoring.scorer import Scorer, Settings
from lifedeploy.targets import select
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.session import most_probable
from lifedeploy.targets.target import target_of
from lifedeploy.writing import in_use

_BATCH = 32


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
    """What the model says of one image; or why it says nothing."""

    image: str
    guesses: tuple[Guess, ...]
    inference_ms: float | None  # of an image among those that were inferred with it; None: it was not
    error: str = ""


@dataclass(frozen=True)
class PredictReport:
    """The predictions of all images."""

    model: str
    engine: str
    predictions: tuple[Prediction, ...]

    @property
    def bad(self) -> tuple[Prediction, ...]:
        """Those of images that could not be read."""
        return tuple(prediction for prediction in self.predictions if prediction.error)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **asdict(self)}


def predict(request: PredictRequest, workspace: Workspace, progress: Progress = unwatched) -> PredictReport:
    """Classify images, decoded beside the engine. One that cannot be read is told among the others.

    Raises:
        WeightsError: the model's weights are random: it has no classes to name.
        ImageError: there is no image among them that the model says anything of.
    """
    with in_use(select.for_prediction(request.model, workspace).folder):
        return _predict(request, workspace, progress)


def _predict(request: PredictRequest, workspace: Workspace, progress: Progress) -> PredictReport:
    artifact = select.for_prediction(request.model, workspace)
    spec = artifact.manifest.spec
    select.require_trained(artifact.path, spec)
    if not spec.num_classes:
        raise WeightsError(f"{artifact.path} has no classification head: {spec.backbone} gives features")
    target = target_of(ModelFile.of(artifact))
    items = [Item(str(path), partial(read_image, path)) for path in request.images]
    predictions: list[Prediction] = []
    with Scorer(target, "logits", 1, Settings(batch=min(len(items), _BATCH))) as scorer:
        scorer.warm_up()
        with closing(scorer.scored([Part(number=0)], lambda part: iter(items))) as scored:
            for _, rows in scored:
                if rows is not None:
                    predictions += _predictions(rows, scorer.take_seconds(), spec.classes, request.top)
                    share = len(predictions) / len(items)
                    progress(Step("predicting", share, f"{len(predictions):,} of {len(items):,} images"))
    first = next((prediction.error for prediction in predictions), "")
    if all(prediction.error for prediction in predictions):
        raise ImageError(first if len(predictions) == 1 else f"none of {len(predictions):,} images: {first}")
    return PredictReport(artifact.name, f"{target.engine.name} {target.precision}", tuple(predictions))


def _predictions(rows: Rows, seconds: float, classes: Sequence[str], top: int) -> Iterator[Prediction]:
    logits = iter(np.asarray(rows.values[0]))
    each_ms = seconds * 1000 / max(len(rows.names) - rows.bad, 1)
    for name, problem in zip(rows.names, rows.problems, strict=True):
        if problem:
            yield Prediction(name, (), None, problem)
        else:
            yield Prediction(name, _best(next(logits), classes, top), each_ms)


def _best(logits: np.ndarray, classes: Sequence[str], top: int) -> tuple[Guess, ...]:
    (best,), (shares,) = most_probable(logits[None], top)
    return tuple(
        Guess(index, classes[index] if classes else f"class {index}", share)
        for index, share in zip(best.tolist(), shares.tolist(), strict=True)
    )
