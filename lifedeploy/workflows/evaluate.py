"""``evaluate``: how often models are right on labelled images, several at once, in one pass over the data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy import machine
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.data.images import ImageSet, describe, read_images
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.stream import Broken, stream
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import ArtifactError, DataError, EngineError, ImageError, UsageError
from lifedeploy.evaluation import parity
from lifedeploy.evaluation.accuracy import Accuracy, Agreement, Tally
from lifedeploy.spec import METHODS, PreprocessSpec
from lifedeploy.workflows.find import Target, find
from lifedeploy.workflows.opened import Openable, openable, under
from lifedeploy.workflows.progress import Say, silent

Watch = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class EvaluateRequest:
    """Which models on which images. A model may be ``PATH:METHOD``: the same weights under another method."""

    models: tuple[str, ...]
    data: str
    split: str = ""  # train, val, all, or a split.csv; the validation half where there is one
    batch: int = 32
    on_error: str = "fail"  # or "skip"
    limit: int | None = None  # this many images, evenly spread
    threads: int | None = None
    command: str = ""


@dataclass(frozen=True)
class EvaluatedModel:
    """One model's result. ``images_per_s`` is inference alone, one after the other: a hint, not a benchmark."""

    label: str
    engine: str
    precision: str
    method: str
    weights: str
    accuracy: Accuracy
    images_per_s: float


@dataclass(frozen=True)
class EvaluateReport:
    """All results."""

    data: dict[str, Any]
    models: tuple[EvaluatedModel, ...]
    pairs: tuple[dict[str, Any], ...]
    skipped: tuple[Broken, ...]
    processes: int
    machine: dict[str, Any]
    command: str = ""

    @property
    def warning(self) -> str:
        """Set where an accuracy means nothing."""
        random = [model.label for model in self.models if model.weights == "random"]
        return f"Random weights, so its accuracy means nothing: {', '.join(random)}" if random else ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema": 1,
            "command": self.command,
            "data": self.data,
            "models": [vars(model) | {"accuracy": model.accuracy.to_dict()} for model in self.models],
            "pairs": list(self.pairs),
            "skipped": [vars(broken) for broken in self.skipped],
            "processes": self.processes,
            "machine": self.machine,
        }


@dataclass
class _Candidate:
    """A model that is being asked."""

    side: Openable
    batch: int
    preprocess: PreprocessSpec
    run: Callable[[NDArray[Any]], parity.Answer]
    in_graph: bool
    classes: NDArray[np.int64]  # class of the data → class of the head
    tally: Tally
    seconds: float = 0.0

    def ask(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Logits and kept tokens of any number of images, in runs of one size: runtimes compile for a size."""
        logits, kept = [], []
        for start in range(0, len(pixels), self.batch):
            part = pixels[start : start + self.batch]
            padding = self.batch - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], padding, axis=0)]) if padding else part
            images = model_input(full, self.preprocess, in_graph=self.in_graph)
            began = time.perf_counter()
            answer = self.run(images)
            self.seconds += time.perf_counter() - began
            logits.append(answer.logits[: len(part)])
            if answer.kept is not None:
                kept.append(answer.kept[: len(part)])
        return np.concatenate(logits), np.concatenate(kept) if kept else None


@dataclass
class _Counts:
    """What one process counted."""

    tallies: list[Tally]
    agreements: list[Agreement]
    seconds: list[float]
    skipped: list[Broken] = field(default_factory=list)


def evaluate(
    request: EvaluateRequest, workspace: Workspace, say: Say = silent, watch: Watch = lambda done, total: None
) -> EvaluateReport | None:
    """Ask every model about every image; None in all processes but the first.

    Raises:
        UsageError: the request cannot be meant.
        DataError: there are no images, or their classes are not the model's.
        ImageError: an image cannot be decoded, unless broken ones are skipped.
        EngineError: a model gives no numbers for an image.
    """
    if request.on_error not in ("fail", "skip"):
        raise UsageError(f"--on-error is {request.on_error!r}, expected fail or skip")
    if request.batch < 1 or (request.limit is not None and request.limit < 1):
        raise UsageError("--batch and --limit must be at least 1")
    rank, world = _place()
    say("reading the images' names")
    images = read_images(request.data, split=request.split)
    chosen = _chosen(len(images), request.limit)
    say("opening the models")
    sides = [_side(name) for name in request.models or _defaults(workspace)]
    preprocess = _shared_preprocess(sides)
    with ExitStack() as stack:
        overlap = sum(bool(side.taps) for side in sides) > 1
        candidates = [_candidate(side, preprocess, images, request, stack, overlap=overlap) for side in sides]
        say("asking")
        counts = _count(candidates, images, chosen[rank::world], request, watch)
    counts = _gathered(counts, world)
    if rank != 0:
        return None
    asked = len(chosen) - len(counts.skipped)
    if asked == 0:
        raise DataError(f"none of the {len(chosen)} images of {request.data} can be decoded")
    return EvaluateReport(
        describe(images) | {"split": request.split, "evaluated": asked},
        tuple(
            EvaluatedModel(
                candidate.side.label,
                candidate.side.engine.name,
                candidate.side.precision,
                candidate.side.method or "unknown",
                candidate.side.spec.provenance.weights if candidate.side.spec else "unknown",
                tally.result(_names(candidate, images)),
                # Of all processes together: each took its share of the time.
                asked / (seconds / world) if seconds else 0.0,
            )
            for candidate, tally, seconds in zip(candidates, counts.tallies, counts.seconds, strict=True)
        ),
        tuple(agreement.to_dict() for agreement in counts.agreements),
        tuple(counts.skipped),
        world,
        machine.describe(threads=request.threads),
        request.command,
    )


def _place() -> tuple[int, int]:
    """Number of this process and number of all of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=True)  # engines choose their own device; what is gathered is small
    return state.process_index, state.num_processes


def _gathered(counts: _Counts, world: int) -> _Counts:
    if world == 1:
        return counts
    from accelerate.utils import gather_object

    first, *others = gather_object([counts])
    for other in others:
        for mine, its in ((first.tallies, other.tallies), (first.agreements, other.agreements)):
            for one, more in zip(mine, its, strict=True):
                one.merge(more)
        first.seconds = [one + more for one, more in zip(first.seconds, other.seconds, strict=True)]
        first.skipped += other.skipped
    assert isinstance(first, _Counts)
    return first


def _chosen(count: int, limit: int | None) -> list[int]:
    """All images, or ``limit`` of them at even distances: folders are sorted by class."""
    if limit is None or limit >= count:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, limit).round()]


def _defaults(workspace: Workspace) -> tuple[str, ...]:
    """The engine built last and its dense baseline, else the newest export and its own."""
    built = workspace.engines()
    artifact = built[0] if built else workspace.latest_export()
    dense = artifact.sibling("dense")
    return tuple(str(one.manifest_path) for one in (dense, artifact) if one is not None)


def _side(name: str) -> Openable:
    path, _, method = name.rpartition(":")
    if method not in METHODS or not path:
        return openable(find(Path(name)))
    target = find(Path(path))
    if target.artifact is not None:
        sibling: Artifact | None = target.artifact.sibling(method)
        if sibling is None:
            raise ArtifactError(f"{path} was not exported as {method}; it has: {', '.join(_methods(target.artifact))}")
        return openable(Target(sibling.path, sibling))
    side = openable(target)
    if side.spec is None:
        raise UsageError(f"{path} is an ONNX file of another tool and has no method {method}")
    return replace(under(side, method), label=name)


def _methods(artifact: Artifact) -> list[str]:
    return [artifact.method, *(name for name in artifact.manifest.siblings if name != artifact.method)]


def _shared_preprocess(sides: Sequence[Openable]) -> PreprocessSpec | None:
    """For ONNX files of other tools: what the first model of ours takes."""
    return next((side.spec.preprocess for side in sides if side.spec), None)


def _candidate(
    side: Openable,
    shared: PreprocessSpec | None,
    images: ImageSet,
    request: EvaluateRequest,
    stack: ExitStack,
    *,
    overlap: bool,
) -> _Candidate:
    preprocess = side.spec.preprocess if side.spec else shared
    if preprocess is None:
        raise UsageError(
            f"{side.label} was not exported by lifedeploy, so how images are prepared for it is unknown",
            hint="name a model of ours first: its preprocessing is used for both",
        )
    batch = side.batch_size or request.batch
    options = EngineOptions(precision=side.precision, threads=request.threads, batch=batch, method=side.method)
    engine = stack.enter_context(side.engine(side.path, options))
    probe = None
    if side.taps and overlap:
        # What ships is asked for its classes; the tokens are learned from the same model opened a second time.
        probe = stack.enter_context(side.engine(side.path, replace(options, taps=side.taps)))
    survivors = side.spec.schedule.tokens[-1] if side.spec else 0
    given = engine.inputs[0]
    fixed = given.shape[0]
    in_graph = side.in_graph if side.spec else given.dtype == "uint8"
    height, width = preprocess.image_size
    if side.spec is None and given.shape[1:] not in ((3, height, width), (height, width, 3)):
        raise UsageError(f"{side.label} takes {given}, and images are prepared as 3 x {height} x {width} pixels")
    heads = engine.outputs[0].shape[-1]
    if heads is None:
        raise UsageError(f"{side.label} does not say how many classes it knows: {engine.outputs[0]}")
    names = side.spec.classes if side.spec else ()
    classes = _class_map(images.classes, names, heads, side.label)
    run = parity.asker(engine, probe, survivors)
    return _Candidate(side, fixed or batch, preprocess, run, in_graph, classes, Tally(heads))


def _class_map(found: Sequence[str], names: Sequence[str], heads: int, label: str) -> NDArray[np.int64]:
    """For every class of the data its place in the head: by name where the names are known, else by position."""
    if names and set(found) <= set(names):
        return np.asarray([list(names).index(name) for name in found], dtype=np.int64)
    if len(found) == heads:
        return np.arange(heads, dtype=np.int64)
    known = f", {', '.join(names[:3])} …" if names else ""
    raise DataError(
        f"the images are of {len(found)} classes ({', '.join(found[:3])} …), and {label} knows {heads}{known}: "
        "neither names nor numbers fit"
    )


def _names(candidate: _Candidate, images: ImageSet) -> Sequence[str]:
    """Names of the head's classes."""
    if candidate.side.spec and candidate.side.spec.classes:
        return candidate.side.spec.classes
    return images.classes


def _count(
    candidates: Sequence[_Candidate],
    images: ImageSet,
    chosen: Sequence[int],
    request: EvaluateRequest,
    watch: Watch,
) -> _Counts:
    labels = [candidate.side.label for candidate in candidates]
    agreements = [Agreement(*pair) for pair in combinations(labels, 2)]
    specs = list(dict.fromkeys(candidate.preprocess for candidate in candidates))
    skipped: list[Broken] = []
    done = 0
    workers = machine.cores()
    for batch in stream(images, chosen, specs, batch=request.batch, workers=workers):
        if batch.broken and request.on_error == "fail":
            raise ImageError(batch.broken[0].reason, hint="--on-error skip leaves such images out and lists them")
        skipped += batch.broken
        done += len(batch.indices) + len(batch.broken)
        if batch.indices:
            answers = []
            for candidate in candidates:
                logits, kept = candidate.ask(batch.pixels[specs.index(candidate.preprocess)])
                _require_numbers(logits, batch.indices, images, candidate.side.label)
                candidate.tally.add(logits, candidate.classes[images.targets[list(batch.indices)]])
                answers.append((logits.argmax(axis=1), kept))
            for agreement, (one, other) in zip(agreements, combinations(answers, 2), strict=True):
                agreement.add((one[0], other[0]), (one[1], other[1]))
        watch(done, len(chosen))
    return _Counts(
        [candidate.tally for candidate in candidates],
        agreements,
        [candidate.seconds for candidate in candidates],
        skipped,
    )


def _require_numbers(logits: NDArray[Any], indices: Sequence[int], images: ImageSet, label: str) -> None:
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise EngineError(f"{label} gives no finite numbers for {images.filename(indices[broken[0]])}")
