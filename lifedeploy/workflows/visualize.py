"""``visualize``: which patches stay, and how long they live where a model predicts it; the curves of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy import methods
from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import model_input, read_image, to_pixels
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.errors import ArtifactError, EngineError, UsageError
from lifedeploy.evaluation.asking import require_sound
from lifedeploy.evaluation.lives import PatchLives, lives, patch_grid
from lifedeploy.evaluation.lives import alive as who_is_alive
from lifedeploy.kept import NO_PATCH
from lifedeploy.spec import SCORES_NAME, ModelSpec
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
    kind: str  # lives, kept (of a model that predicts none), histogram or curves
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
    """The paper's Figure 4: image, life per patch where the model predicts lives, and what is left after every drop; a
    row per image.

    Raises:
        UsageError: the model chooses no tokens, or the output is no picture file.
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

    warning = _warning(side, spec)
    draw_lives(drawn, spec.schedule, output, note=_caption(side, spec))
    found = [one.life for one in drawn if one.life is not None]
    if not found:
        return VisualizeReport(output, "kept", len(drawn), warning=warning)
    return _report(output, "lives", np.stack(found), spec, warning)


def histogram(model: Path, data: str, output: Path, *, split: str, limit: int, say: Say = silent) -> VisualizeReport:
    """Lives over a data set, against what the schedule grants.

    Raises:
        UsageError: as for :func:`visualize`; or the model predicts no lives.
        DataError, ImageError: the images are missing or damaged.
    """
    check_format(output)
    require_within(limit, MOST_IMAGES, "images")
    say("reading the images' names")
    found = read_images(data, split=split)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    collected = []
    with _model(model, lives_needed=True) as (engine, side, spec):
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
    report = _report(output, "histogram", measured, spec, _warning(side, spec))
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
def _model(path: Path, *, lives_needed: bool = False) -> Iterator[tuple[Engine, Openable, ModelSpec]]:
    """The model at ``path``, open, its kept tokens and the scores that lives are made of tapped."""
    side = named(path)
    if side.spec is None:
        raise UsageError(f"{path} was not exported by lifedeploy: which tokens it keeps is unknown")
    if methods.role_of(side.method) != methods.SLIMMED:
        raise UsageError(
            f"{path} is a {side.method} model and chooses no tokens", hint="name the slimmed one beside it"
        )
    if not side.spec.schedule.prunes:
        raise UsageError(f"{path} drops nothing, so nothing lives shorter than anything else: keep rate 1")
    if not side.kept:
        raise UsageError(f"{path} does not say which tokens it keeps: they have no names in its graph")
    if lives_needed and not side.predicts_lives:
        raise UsageError(
            f"{path} is a model of {side.method}, which predicts no lives to count",
            hint="without --histogram, visualize shows which tokens it keeps",
        )
    taps = (*side.kept.taps, *([SCORES_NAME] if side.predicts_lives else []))
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
    _require_fitting(answers, side, spec)
    for name in (engine.outputs[0].name, *([SCORES_NAME] if side.predicts_lives else [])):
        require_sound(answers[name], names, f"{side.label} on {side.engine.name}")
    return answers


def _require_fitting(answers: dict[str, NDArray[Any]], side: Openable, spec: ModelSpec) -> None:
    patches, what = spec.schedule.patches, side.label
    least = {name: spec.schedule.after(layer) for layer, name in side.kept.names.items()}
    if side.predicts_lives:
        least[SCORES_NAME] = patches
    for name, size in least.items():
        shape = answers[name].shape
        if len(shape) != 2 or not size <= shape[1] <= patches:
            raise EngineError(f"{what} gives {name} of shape {shape}; expected {size} for each image")
    for name in side.kept.taps:
        kept = answers[name]
        if kept.size and not NO_PATCH <= kept.min() <= kept.max() < patches:
            raise EngineError(f"{what} keeps a patch {int(kept.max())}; there are 0 to {patches - 1}")


def _ask(
    engine: Engine, side: Openable, spec: ModelSpec, pixels: NDArray[np.uint8], names: Sequence[str]
) -> list[PatchLives]:
    answers = _run(engine, side, spec, pixels, names)
    logits = answers[engine.outputs[0].name]
    kept = {layer: side.kept.after(layer, answers) for layer in side.kept.counts}
    alive = {layer: who_is_alive(tokens, spec.schedule.patches) for layer, tokens in kept.items()}
    life = lives(answers[SCORES_NAME], spec.schedule) if side.predicts_lives else None
    grid = _grid(spec)
    return [
        PatchLives(
            name,
            pixels[index],
            grid,
            None if life is None else life[index],
            {layer: mask[index] for layer, mask in alive.items()},
            {layer: int((tokens[index] == NO_PATCH).sum()) for layer, tokens in kept.items()},
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
    trained = {"trained": "trained predictor", "identity": "untrained predictor"}.get(spec.provenance.predictor, "")
    weights = "random weights" if spec.provenance.weights == "random" else trained
    counts = ", ".join(map(str, spec.schedule.counts))
    what = f"{methods.title_of(side.method)} of {spec.backbone}, {side.engine.name} {side.precision}"
    return " · ".join(filter(None, (what, f"{spec.schedule.patches} → {counts}", weights)))


def _warning(side: Openable, spec: ModelSpec) -> str:
    if spec.provenance.weights == "random":
        what = "live longest" if side.predicts_lives else "stay"
        return f"Random weights: which patches {what} says nothing about the image."
    return ""


def _report(output: Path, kind: str, life: NDArray[Any], spec: ModelSpec, warning: str) -> VisualizeReport:
    schedule = spec.schedule
    # As drawn. Unclamped, every image's lives have the schedule's mean and deviation by construction.
    life = life.clip(schedule.base_layer, schedule.depth)
    mean, std = float(life.mean()), float(life.std())
    return VisualizeReport(output, kind, len(life), mean, std, schedule.mean_life, schedule.std_life, warning)
