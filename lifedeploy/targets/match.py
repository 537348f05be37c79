"""Targets side by side on labelled images: opened, and told which of their classes the images are of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.sets import ImageSet
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import EngineError, UsageError, WeightsError
from lifedeploy.evaluation.accuracy import ClassMap, map_classes
from lifedeploy.progress import Say
from lifedeploy.spec import PreprocessSpec
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target
from lifedeploy.typed import RANDOM_WEIGHTS


@dataclass(frozen=True)
class Matched:
    """An open target, and where the images' classes are among its own."""

    session: Session
    preprocess: PreprocessSpec
    classes: int
    map: ClassMap

    @property
    def target(self) -> Target:
        """What is open."""
        return self.session.target


def comparable(first: Target, second: Target) -> bool:
    """Whether both choose tokens by what is in the image, from the same patches of the same crop."""
    if not (first.kept and second.kept and first.spec and second.spec):
        return False
    return first.spec.schedule.patches == second.spec.schedule.patches and all(
        getattr(first.spec.preprocess, name) == getattr(second.spec.preprocess, name)
        for name in ("image_size", "crop_pct", "crop_mode")
    )


def match(
    targets: Sequence[Target], images: ImageSet, stack: ExitStack, *, batch: int, threads: int | None, say: Say
) -> tuple[list[Matched], list[str]]:
    """Open all of them, until ``stack`` ends; and what has to be said about them.

    Raises:
        WeightsError: one gives features, not classes.
        DataError: the images' classes are not the model's.
        UsageError: nothing says how images are prepared for a graph of another tool.
        EngineError: a graph of another tool takes no images, or gives no logits.
    """
    maps = {number: _own_map(target, images) for number, target in enumerate(targets) if target.spec}
    watched = {
        number
        for pair in combinations(range(len(targets)), 2)
        if comparable(*(targets[number] for number in pair))
        for number in pair
    }
    matched: list[Matched] = []
    warnings: list[str] = []
    for number, target in enumerate(targets):
        say(f"opening {target.name} ({target.method or 'another tool'}, {target.engine.name})")
        options = EngineOptions(threads=threads, batch=target.batch_size or batch)
        session = Session(target, "survivors" if number in watched else "nothing", options=options)
        stack.enter_context(session)
        if target.spec is None:
            entry, note = _foreign(session, targets, images)
            warnings.append(note)
        else:
            entry = Matched(session, target.spec.preprocess, target.spec.num_classes, maps[number])
            if target.weights == RANDOM_WEIGHTS:
                warnings.append(f"{target.place} has random weights: its accuracy means nothing")
        if entry.map.warning and entry.map.warning not in warnings:  # of several models the same
            warnings.append(entry.map.warning)
        matched.append(entry)
    return matched, warnings


def _own_map(target: Target, images: ImageSet) -> ClassMap:
    spec = target.spec
    assert spec is not None
    if spec.num_classes < 2:
        has = "one output" if spec.num_classes else f"no classification head: {spec.backbone} gives features"
        raise WeightsError(f"{target.place} has {has}; an evaluation needs at least 2 classes")
    return map_classes(images.classes, spec.classes, spec.num_classes, source=images.source, model=target.place)


def _foreign(session: Session, targets: Sequence[Target], images: ImageSet) -> tuple[Matched, str]:
    """A graph of another tool, which gets what the first model of ours with the same input gets."""
    path, engine = session.target.path, session.engine
    if len(engine.inputs) != 1:
        raise EngineError(f"{path} takes {len(engine.inputs)} inputs, expected one: the images")
    tensor, answer = engine.inputs[0], engine.outputs[0]
    donor = next((target for target in targets if target.spec and _fits(tensor, target.spec.preprocess)), None)
    if donor is None or donor.spec is None:
        raise UsageError(
            f"{path} has no manifest, so how images are prepared for {tensor} is unknown",
            hint="name a model of lifedeploy with the same input beside it: its preprocessing is then used for both",
        )
    classes = answer.shape[-1] if len(answer.shape) == 2 else None
    if classes is None or classes < 2:
        raise EngineError(f"{path} gives {answer}; expected logits of (batch, classes)")
    spec = donor.spec
    same = spec.num_classes == classes
    names = spec.classes if same else ()
    session.preprocess = spec.preprocess
    borrowed = "preprocessing and classes" if same else "preprocessing"
    class_map = map_classes(images.classes, names, classes, source=images.source, model=str(path))
    note = f"{path} has no manifest: it was given the {borrowed} of {donor.path}"
    return Matched(session, spec.preprocess, classes, class_map), note


def _fits(tensor: TensorSpec, spec: PreprocessSpec) -> bool:
    """Whether a graph's input takes images of ``spec``: (B, H, W, 3) bytes or (B, 3, H, W) numbers."""
    height, width = spec.image_size
    wanted = (height, width, 3) if tensor.dtype == "uint8" else (3, height, width)
    return len(tensor.shape) == 4 and all(
        have in (None, want) for have, want in zip(tensor.shape[1:], wanted, strict=True)
    )
