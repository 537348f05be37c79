"""``visualize``: which patches stay, and how long they live where a model predicts it; the curves of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy import methods
from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.errors import ArtifactError, EngineError, UsageError
from lifedeploy.evaluation.lives import PatchLives, lives, patch_grid
from lifedeploy.evaluation.lives import alive as who_is_alive
from lifedeploy.kept import NO_PATCH
from lifedeploy.limits import MOST_IMAGES, require_within
from lifedeploy.progress import Say, silent
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME, ModelSpec
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, named
from lifedeploy.text import shortened
from lifedeploy.training.log import FILE, read_log
from lifedeploy.typed import RANDOM_WEIGHTS
from lifedeploy.viz.style import check_format

_BATCH = 16
_ROWS = 100  # images in a picture: with more, it is higher than programs open
# What random weights decide, by what becomes of tokens.
_DECIDED = {"dropped": "stay", "merged": "are merged", "parked": "wait", "halted": "live longest"}


@dataclass(frozen=True, kw_only=True)
class VisualizeReport:
    """What was drawn."""

    file: Path
    kind: str  # lives, kept (of a model that predicts none), histogram or curves
    images: int
    mean_life: float | None = None  # over all patches drawn, in layers
    std_life: float | None = None
    granted_mean: float | None = None  # μ and σ of the schedule; None: it drops nothing, so it grants nothing
    granted_std: float | None = None
    warning: str = ""
    left_out: tuple[str, ...] = ()  # of the data set: what is not used, and why

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **vars(self), "file": str(self.file)}


def visualize(model: Path, images: Sequence[Path], output: Path, say: Say = silent) -> VisualizeReport:
    """The paper's Figure 4: image, life per patch where the model says how long each lives, what is left after drops,
    and the groups of a model that merges; a row per image.

    Raises:
        UsageError: the model chooses no tokens, or the output is no picture file.
        ImageError: a file is no image.
    """
    check_format(output)
    if not 1 <= len(images) <= _ROWS:
        raise UsageError(f"{len(images)} images cannot be drawn in one picture; expected 1 to {_ROWS}")
    say("reading the images")
    target, spec = _target(model)
    drawn: list[PatchLives] = []
    with Session(target, "lives") as session:
        pixels = [to_pixels(read_image(path), spec.preprocess) for path in images]
        for part in _parts(len(pixels), target, say):
            names = [path.name for path in images[part]]
            drawn += _patch_lives(session, spec, np.stack(pixels[part]), names)
    say("drawing")
    from lifedeploy.viz.lives import draw_lives

    warning = _warning(target)
    draw_lives(drawn, spec.schedule, output, note=_caption(target, spec))
    predicted = [picture.life for picture in drawn if picture.life is not None]
    if not predicted:
        return VisualizeReport(file=output, kind="kept", images=len(drawn), warning=warning)
    return _report(output, "lives", np.stack(predicted), spec, warning)


def histogram(model: Path, data: str, output: Path, *, split: str, limit: int, say: Say = silent) -> VisualizeReport:
    """Lives over a data set, against what the schedule grants, if it grants any.

    Raises:
        UsageError: as for :func:`visualize`; or the model predicts no lives.
        DataError, ImageError: the images are missing or damaged.
    """
    check_format(output)
    require_within(limit, MOST_IMAGES, "images")
    say("reading the images' names")
    images = read_images(data, split=split)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    target, spec = _target(model, lives_needed=True)
    collected = []
    with Session(target, "lives") as session:
        for part in _parts(len(chosen), target, say):
            pixels = np.stack([to_pixels(images.image(int(index)), spec.preprocess) for index in chosen[part]])
            names = [images.filename(int(index)) for index in chosen[part]]
            collected.append(_lives(_tensors(session, spec, pixels, names), spec))
    say("drawing")
    from lifedeploy.viz.lives import draw_histogram

    measured = np.concatenate(collected)
    note = f"{len(measured)} images of {shortened(data, 60)} · {_caption(target, spec)}"
    draw_histogram(measured, spec.schedule, output, note=note)
    report = _report(output, "histogram", measured, spec, _warning(target))
    return replace(report, left_out=tuple(map(str, images.left_out)))


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
    return VisualizeReport(file=output, kind="curves", images=0)


def _target(path: Path, *, lives_needed: bool = False) -> tuple[Target, ModelSpec]:
    """The model at ``path``, which has to say what it keeps or how long patches live; the latter where it is needed."""
    target = named(path)
    if target.spec is None:
        raise UsageError(f"{path} was not exported by lifedeploy: which tokens it keeps is unknown")
    if methods.role_of(target.method) != methods.SLIMMED:
        raise UsageError(
            f"{path} is a {target.method} model and chooses no tokens", hint="name the slimmed one beside it"
        )
    counts = target.predicts_lives and _counts_lives(target.spec)
    if not (target.spec.schedule.prunes or counts):
        raise UsageError(f"{path} drops nothing, so nothing lives shorter than anything else: keep rate 1")
    if not (target.kept or counts):
        raise UsageError(f"{path} does not say which tokens it keeps: they have no names in its graph")
    if lives_needed and not target.predicts_lives:
        raise UsageError(
            f"{path} is a model of {target.method}, which predicts no lives to count",
            hint="without --histogram, visualize shows which tokens it keeps",
        )
    return target, target.spec


def _parts(count: int, target: Target, say: Say) -> Iterator[slice]:
    """So many images at once as the model takes."""
    size = target.batch_size or _BATCH
    for start in range(0, count, size):
        say(f"asking about image {start + 1} of {count}")
        yield slice(start, start + size)


def _tensors(
    session: Session, spec: ModelSpec, pixels: NDArray[np.uint8], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Logits, kept tokens, scores and groups of some images.

    Raises:
        EngineError: logits or scores are not all numbers, or scores, ranking and groups are none of the spec's patches.
    """
    tensors = session.ask(pixels, names)
    _require_fitting(tensors, session.target, spec)
    return tensors


def _require_fitting(tensors: dict[str, NDArray[Any]], target: Target, spec: ModelSpec) -> None:
    patches = spec.schedule.patches
    least = {name: spec.schedule.after(layer) for layer, name in target.kept.names.items()}
    told = {SCORES_NAME: target.predicts_lives, GROUPS_NAME: target.tells_groups}
    least |= {name: patches for name, tells in told.items() if tells}
    for name, size in least.items():
        shape = tensors[name].shape
        if len(shape) != 2 or not size <= shape[1] <= patches:
            raise EngineError(f"{target.path} gives {name} of shape {shape}; expected {size} for each image")
    for name in target.kept.taps:
        kept = tensors[name]
        if kept.size and not NO_PATCH <= kept.min() <= kept.max() < patches:
            raise EngineError(f"{target.path} keeps a patch {int(kept.max())}; there are 0 to {patches - 1}")
    if target.tells_groups and not 0 <= tensors[GROUPS_NAME].min() <= tensors[GROUPS_NAME].max() < patches:
        raise EngineError(f"{target.path} merges patches into what is none; there are 0 to {patches - 1}")


def _counts_lives(spec: ModelSpec) -> bool:
    """Whether the scores of its method are lives already."""
    method = methods.known(spec.method)
    return method is not None and method.counts_lives


def _lives(tensors: dict[str, NDArray[Any]], spec: ModelSpec) -> NDArray[np.float64]:
    return lives(tensors[SCORES_NAME], spec.schedule, counted=_counts_lives(spec))


def _patch_lives(
    session: Session, spec: ModelSpec, pixels: NDArray[np.uint8], names: Sequence[str]
) -> list[PatchLives]:
    target, tensors = session.target, _tensors(session, spec, pixels, names)
    logits = session.read(tensors).logits
    fate = methods.fate_of(spec.method)
    # One that parks tokens chooses anew at every drop, whether more leave there or not.
    chose = spec.schedule.drop_layers if fate == "parked" else spec.schedule.leaving_layers
    kept = {layer: target.kept.after(layer, tensors) for layer in chose if layer in target.kept.counts}
    alive = {layer: who_is_alive(tokens, spec.schedule.patches) for layer, tokens in kept.items()}
    life = _lives(tensors, spec) if target.predicts_lives else None
    groups = tensors[GROUPS_NAME].astype(np.int64) if target.tells_groups else None
    grid = _grid(spec)
    return [
        PatchLives(
            name=name,
            pixels=pixels[index],
            grid=grid,
            life=None if life is None else life[index],
            alive={layer: mask[index] for layer, mask in alive.items()},
            fused={layer: int((tokens[index] == NO_PATCH).sum()) for layer, tokens in kept.items()},
            fate=fate,
            groups=None if groups is None else groups[index],
            guess=_guess(logits[index], spec),
        )
        for index, name in enumerate(names)
    ]


def _grid(spec: ModelSpec) -> tuple[int, int]:
    try:
        return patch_grid(spec.image_size, spec.schedule.patches)
    except ValueError as error:
        raise ArtifactError(f"the model's description is wrong: {error}") from error


def _guess(logits: NDArray[Any], spec: ModelSpec) -> str:
    if spec.provenance.weights == RANDOM_WEIGHTS or not spec.num_classes:
        return ""
    odds = np.exp(logits.astype(np.float64) - logits.max())
    best = int(odds.argmax())
    name = spec.classes[best] if spec.classes else f"class {best}"
    return f"{shortened(name.split(',')[0], 28)} {odds[best] / odds.sum():.0%}"


def _caption(target: Target, spec: ModelSpec) -> str:
    trained = {"trained": "trained predictor", "identity": "untrained predictor"}.get(spec.provenance.predictor, "")
    weights = "random weights" if spec.provenance.weights == RANDOM_WEIGHTS else trained
    counts = ", ".join(map(str, spec.schedule.counts))
    tokens = f"{spec.schedule.patches} → {counts}" if counts else f"{spec.schedule.patches} patches"
    what = f"{methods.title_of(target.method)} of {spec.backbone}, {target.engine.name} {target.precision}"
    return " · ".join(filter(None, (what, spec.own_budget, tokens, weights)))


def _warning(target: Target) -> str:
    if target.weights == RANDOM_WEIGHTS:
        what = "live longest" if target.predicts_lives else _DECIDED[methods.fate_of(target.method)]
        return f"Random weights: which patches {what} says nothing about a trained model."
    return ""


def _report(output: Path, kind: str, life: NDArray[Any], spec: ModelSpec, warning: str) -> VisualizeReport:
    schedule = spec.schedule
    # As drawn. Unclamped, every image's lives have the schedule's mean and deviation by construction.
    life = life.clip(schedule.shortest_life, schedule.depth)
    mean, std = float(life.mean()), float(life.std())
    return VisualizeReport(
        file=output,
        kind=kind,
        images=len(life),
        mean_life=mean,
        std_life=std,
        granted_mean=schedule.mean_life if schedule.prunes else None,
        granted_std=schedule.std_life if schedule.prunes else None,
        warning=warning,
    )
