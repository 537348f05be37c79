"""The models of one evaluation: chosen, opened side by side, and told which of their classes the images are of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.data.images import ImageSet
from lifedeploy.engines.base import Engine
from lifedeploy.errors import EngineError, UsageError, WeightsError
from lifedeploy.evaluation.accuracy import ClassMap, map_classes
from lifedeploy.evaluation.asking import Asking, fits
from lifedeploy.spec import PreprocessSpec
from lifedeploy.workflows.find import Target
from lifedeploy.workflows.opened import Openable, named, openable
from lifedeploy.workflows.progress import Say


@dataclass(frozen=True)
class Contender:
    """One model, open."""

    side: Openable
    ask: Asking
    preprocess: PreprocessSpec
    classes: int
    map: ClassMap
    precision: str  # what runs


def choose(models: Sequence[Path], runtime: str, workspace: Workspace) -> list[Openable]:
    """The models named; without any, the engine built last or else the newest export, and its dense baseline."""
    if models:
        return [named(model, runtime=runtime) for model in models]
    built = workspace.engines()
    newest = built[0] if built else workspace.latest_export()
    dense = newest.sibling(methods.baseline().name)
    chosen = [newest] + ([dense] if dense is not None and dense.method != newest.method else [])
    return [openable(Target(artifact.path, artifact), runtime=runtime) for artifact in chosen]


def comparable(first: Openable, second: Openable) -> bool:
    """Whether both choose tokens by what is in the image, from the same patches of the same crop."""
    if not (first.kept and second.kept and first.spec and second.spec):
        return False
    return first.spec.schedule.patches == second.spec.schedule.patches and all(
        getattr(first.spec.preprocess, name) == getattr(second.spec.preprocess, name)
        for name in ("image_size", "crop_pct", "crop_mode")
    )


def enter(
    sides: Sequence[Openable], images: ImageSet, stack: ExitStack, *, batch: int, threads: int | None, say: Say
) -> tuple[list[Contender], list[str]]:
    """Open all of them, until ``stack`` ends; and what has to be said about them.

    Raises:
        WeightsError: one gives features, not classes.
        DataError: the images' classes are not the model's.
        UsageError: nothing says how images are prepared for a graph of another tool.
    """
    maps = {number: _own_map(side, images) for number, side in enumerate(sides) if side.spec}
    tapped = {
        number
        for pair in combinations(range(len(sides)), 2)
        if comparable(*(sides[number] for number in pair))
        for number in pair
    }
    contenders: list[Contender] = []
    warnings: list[str] = []
    for number, side in enumerate(sides):
        say(f"opening {side.name} ({side.method or 'another tool'}, {side.engine.name})")
        free = number in tapped and not side.engine.taps_change_plan
        size = side.batch_size or batch
        taps = side.kept.last_tap
        engine = stack.enter_context(side.open(taps=taps if free else (), threads=threads, batch=size))
        probe = engine if free else None
        if number in tapped and not free:
            # The logits are those of the engine as it ships: with taps it may be compiled to other arithmetic.
            probe = stack.enter_context(side.open(taps=taps, threads=threads, batch=size))
        if side.spec is None:
            contender, note = _foreign(side, engine, sides, images)
            warnings.append(note)
            mapped = contender.map
        else:
            spec = side.spec
            ask = Asking(engine, probe, side.kept, spec.preprocess, in_graph=side.in_graph)
            mapped = maps[number]
            contender = Contender(side, ask, spec.preprocess, spec.num_classes, mapped, engine.precision)
            if spec.provenance.weights == "random":
                warnings.append(f"{side.label} has random weights: its accuracy means nothing")
        if mapped.warning and mapped.warning not in warnings:  # of several models the same
            warnings.append(mapped.warning)
        contenders.append(contender)
    return contenders, warnings


def _own_map(side: Openable, images: ImageSet) -> ClassMap:
    spec = side.spec
    assert spec is not None
    if spec.num_classes < 2:
        has = "one output" if spec.num_classes else f"no classification head: {spec.backbone} gives features"
        raise WeightsError(f"{side.label} has {has}; an evaluation needs at least 2 classes")
    return map_classes(images.classes, spec.classes, spec.num_classes, source=images.source, model=side.label)


def _foreign(side: Openable, engine: Engine, sides: Sequence[Openable], images: ImageSet) -> tuple[Contender, str]:
    """A graph of another tool, which gets what the first model of ours with the same input gets."""
    if len(engine.inputs) != 1:
        raise EngineError(f"{side.label} takes {len(engine.inputs)} inputs, expected one: the images")
    tensor, answer = engine.inputs[0], engine.outputs[0]
    donor = next((other for other in sides if other.spec and fits(tensor, other.spec.preprocess)), None)
    if donor is None or donor.spec is None:
        raise UsageError(
            f"{side.label} has no manifest, so how images are prepared for {tensor} is unknown",
            hint="name a model of lifedeploy with the same input beside it: its preprocessing is then used for both",
        )
    classes = answer.shape[-1] if len(answer.shape) == 2 else None
    if classes is None or classes < 2:
        raise EngineError(f"{side.label} gives {answer}; expected logits of (batch, classes)")
    spec = donor.spec
    same = spec.num_classes == classes
    names = spec.classes if same else ()
    mapped = map_classes(images.classes, names, classes, source=images.source, model=side.label)
    ask = Asking(engine, None, side.kept, spec.preprocess, in_graph=tensor.dtype == "uint8")
    borrowed = "preprocessing and classes" if same else "preprocessing"
    note = f"{side.label} has no manifest: it was given the {borrowed} of {donor.label}"
    return Contender(side, ask, spec.preprocess, classes, mapped, _foreign_precision(engine)), note


def _foreign_precision(engine: Engine) -> str:
    """ONNX Runtime computes in the precision of the graph; the others say what they compute in."""
    if not engine.name.startswith("onnxruntime"):
        return engine.precision
    from lifedeploy.exporters import inspect as onnx_inspect

    return onnx_inspect.facts(onnx_inspect.load(engine.path, check=False)).precision
