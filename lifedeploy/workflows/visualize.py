"""``visualize``: which patches live, and for how long; lives over a data set; the curves of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import model_input, read_image, to_pixels
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.errors import ArtifactError, EngineError, UsageError
from lifedeploy.evaluation.asking import require_sound
from lifedeploy.evaluation.lives import PatchLives, alive_after, lives, patch_grid
from lifedeploy.spec import ORDER_NAME, SCORES_NAME, ModelSpec
from lifedeploy.text import shortened
from lifedeploy.training.log import FILE, read_log
from lifedeploy.viz.style import check_format
from lifedeploy.workflows.limits import MOST_IMAGES, require_within
from lifedeploy.workflows.opened import Openable, named
from lifedeploy.workflows.progress import Say, silent

_BATCH = 16
_ROWS = 100  # images in a picture: with more, it is higher than programs open


@dataclass(frozen=True)
class VisualizeReport:
    """What was drawn."""

    file: Path
    kind: str  # lives, histogram or curves
    images: int
    mean_life: float | None = None  # over all patches drawn, in layers
    std_life: float | None = None
    granted_mean: float | None = None  # μ and σ of the schedule
    granted_std: float | None = None
    warning: str = ""
    left_out: tuple[str, ...] = ()  # of the data set: what is not used, and why

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **vars(self), "file": str(self.file)}


def visualize(model: Path, images: Sequence[Path], output: Path, say: Say = silent) -> VisualizeReport:
    """The paper's Figure 4: image, life per patch, and what is left after every drop; a row per image.

    Raises:
        UsageError: the model predicts no lives, or the output is no picture file.
        ImageError: a file is no image.
    """
    check_format(output)
    if not 1 <= len(images) <= _ROWS:
        raise UsageError(f"{len(images)} images cannot be drawn in one picture; expected 1 to {_ROWS}")
    say("reading the images")
    with _model(model) as (engine, side, spec):
        pixels = [to_pixels(read_image(path), spec.preprocess) for path in images]
        drawn: list[PatchLives] = []
        for start in range(0, len(pixels), _batch(side)):
            say(f"asking about image {start + 1} of {len(pixels)}")
            part = np.stack(pixels[start : start + _batch(side)])
            names = [path.name for path in images[start : start + _batch(side)]]
            drawn += _ask(engine, side, spec, part, names)
    say("drawing")
    from lifedeploy.viz.lives import draw_lives

    warning = _warning(spec)
    draw_lives(drawn, spec.schedule, output, note=_caption(side, spec))
    return _report(output, "lives", np.stack([one.life for one in drawn]), spec, warning)


def histogram(model: Path, data: str, output: Path, *, split: str, limit: int, say: Say = silent) -> VisualizeReport:
    """Lives over a data set, against what the schedule grants.

    Raises:
        UsageError: as for :func:`visualize`.
        DataError, ImageError: the images are missing or damaged.
    """
    check_format(output)
    require_within(limit, MOST_IMAGES, "images")
    say("reading the images' names")
    found = read_images(data, split=split)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    collected = []
    with _model(model) as (engine, side, spec):
        for start in range(0, len(chosen), _batch(side)):
            say(f"asking about image {start + 1} of {len(chosen)}")
            part = chosen[start : start + _batch(side)]
            pixels = np.stack([to_pixels(found.image(int(index)), spec.preprocess) for index in part])
            names = [found.filename(int(index)) for index in part]
            collected.append(lives(_run(engine, side, spec, pixels, names)[SCORES_NAME], spec.schedule))
    say("drawing")
    from lifedeploy.viz.lives import draw_histogram

    measured = np.concatenate(collected)
    note = f"{len(measured)} images of {shortened(data, 60)} · {_caption(side, spec)}"
    draw_histogram(measured, spec.schedule, output, note=note)
    report = _report(output, "histogram", measured, spec, _warning(spec))
    return replace(report, left_out=tuple(map(str, found.left_out)))


def curves(run: Path, output: Path) -> VisualizeReport:
    """Loss, accuracy and rates of a training run.

    Raises:
        TrainingError: there is no log that can be read.
        ArtifactError: there is nothing in it.
    """
    check_format(output)
    path = run / FILE if run.is_dir() else run
    rows = read_log(path)
    if not rows:
        raise ArtifactError(f"{path} has no rows yet", hint="train writes one every --log-every steps")
    from lifedeploy.viz.curves import draw_curves

    draw_curves(rows, output, title=str(run))
    return VisualizeReport(output, "curves", 0)


@contextmanager
def _model(path: Path) -> Iterator[tuple[Engine, Openable, ModelSpec]]:
    """The model at ``path``, open, its lives tapped."""
    side = named(path)
    if side.spec is None:
        raise UsageError(f"{path} was not exported by lifedeploy: where its lives are is unknown")
    if side.method != "life":
        raise UsageError(f"{path} is a {side.method} model and predicts no lives", hint="name the life model beside it")
    if not side.spec.schedule.prunes:
        raise UsageError(f"{path} drops nothing, so nothing lives shorter than anything else: keep rate 1")
    taps = (ORDER_NAME, SCORES_NAME)
    options = EngineOptions(precision=side.precision, batch=side.batch_size, taps=taps, method=side.method)
    with side.engine(side.path, options) as engine:
        yield engine, side, side.spec


def _batch(side: Openable) -> int:
    return side.batch_size or _BATCH


def _run(
    engine: Engine, side: Openable, spec: ModelSpec, pixels: NDArray[np.uint8], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Answers to up to a batch of images; a model fixed to a batch gets the last one repeated.

    Raises:
        EngineError: logits or scores are not all numbers, or scores and ranking are none of the spec's patches.
    """
    count = len(pixels)
    if side.batch_size and count < side.batch_size:
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], side.batch_size - count, axis=0)])
    answers = engine.run({engine.inputs[0].name: model_input(pixels, spec.preprocess, in_graph=side.in_graph)})
    answers = {name: value[:count] for name, value in answers.items()}
    _require_fitting(answers, spec, side.label)
    for name in (engine.outputs[0].name, SCORES_NAME):
        require_sound(answers[name], names, f"{side.label} on {side.engine.name}")
    return answers


def _require_fitting(answers: dict[str, NDArray[Any]], spec: ModelSpec, what: str) -> None:
    patches, going_on = spec.schedule.patches, spec.schedule.after(spec.schedule.drop_layers[0])
    for name, least in ((SCORES_NAME, patches), (ORDER_NAME, going_on)):
        shape = answers[name].shape
        if len(shape) != 2 or not least <= shape[1] <= patches:
            raise EngineError(f"{what} gives {name} of shape {shape}; expected {least} for each image")
    order = answers[ORDER_NAME]
    if order.size and not 0 <= order.min() <= order.max() < patches:
        raise EngineError(f"{what} ranks a patch {int(order.max())}; there are 0 to {patches - 1}")


def _ask(
    engine: Engine, side: Openable, spec: ModelSpec, pixels: NDArray[np.uint8], names: Sequence[str]
) -> list[PatchLives]:
    answers = _run(engine, side, spec, pixels, names)
    scores, logits = answers[SCORES_NAME], answers[engine.outputs[0].name]
    # The tapped order ends where the first drop does; ties beyond it are nobody's business.
    alive = alive_after(answers[ORDER_NAME], spec.schedule)
    life = lives(scores, spec.schedule)
    grid = _grid(spec)
    return [
        PatchLives(
            name,
            pixels[index],
            grid,
            life[index],
            {layer: mask[index] for layer, mask in alive.items()},
            _guess(logits[index], spec),
        )
        for index, name in enumerate(names)
    ]


def _grid(spec: ModelSpec) -> tuple[int, int]:
    try:
        return patch_grid(spec.image_size, spec.schedule.patches)
    except ValueError as error:
        raise ArtifactError(f"the model's description is wrong: {error}") from error


def _guess(logits: NDArray[Any], spec: ModelSpec) -> str:
    if spec.provenance.weights == "random" or not spec.num_classes:
        return ""
    odds = np.exp(logits.astype(np.float64) - logits.max())
    best = int(odds.argmax())
    name = spec.classes[best] if spec.classes else f"class {best}"
    return f"{shortened(name.split(',')[0], 28)} {odds[best] / odds.sum():.0%}"


def _caption(side: Openable, spec: ModelSpec) -> str:
    predictor = "trained predictor" if spec.provenance.predictor == "trained" else "untrained predictor"
    weights = "random weights" if spec.provenance.weights == "random" else predictor
    counts = ", ".join(map(str, spec.schedule.counts))
    return f"{spec.backbone}, {side.engine.name} {side.precision} · {spec.schedule.patches} → {counts} · {weights}"


def _warning(spec: ModelSpec) -> str:
    if spec.provenance.weights == "random":
        return "Random weights: which patches live longest says nothing about the image."
    return ""


def _report(output: Path, kind: str, life: NDArray[Any], spec: ModelSpec, warning: str) -> VisualizeReport:
    schedule = spec.schedule
    # As drawn. Unclamped, every image's lives have the schedule's mean and deviation by construction.
    life = life.clip(schedule.base_layer, schedule.depth)
    mean, std = float(life.mean()), float(life.std())
    return VisualizeReport(output, kind, len(life), mean, std, schedule.mean_life, schedule.std_life, warning)
