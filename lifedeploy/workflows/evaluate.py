"""``evaluate``: models and labelled images in; accuracy, agreement and kept-token overlap out, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Workspace
from lifedeploy.data.batches import Batch, Broken, decoded_batches
from lifedeploy.data.images import read_images
from lifedeploy.data.sets import ImageSet, describe, evenly
from lifedeploy.engines.wire import address_of
from lifedeploy.errors import DataError, ImageError, UsageError
from lifedeploy.evaluation.accuracy import Accuracy, Tally, agreement
from lifedeploy.evaluation.parity import Answer, shared_tokens
from lifedeploy.files import now
from lifedeploy.limits import MOST_IMAGES, MOST_IN_BATCH, MOST_THREADS, require_within
from lifedeploy.machine import cores
from lifedeploy.machine import describe as describe_machine
from lifedeploy.processes import Processes, here
from lifedeploy.progress import Progress, Say, Step, silent, unwatched
from lifedeploy.targets import select
from lifedeploy.targets.match import Matched, comparable, match
from lifedeploy.targets.served import asked, served
from lifedeploy.targets.target import Target

ON_ERROR = ("skip", "fail")


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Which models, on which images."""

    models: tuple[Path, ...]  # PATH or PATH:METHOD; none: what was built last, and its dense baseline
    data: str
    split: str = ""
    batch: int = 32
    on_error: str = "fail"  # what a broken image does: "skip" or "fail"
    engine: str = ""  # runtime of ONNX files; "": onnxruntime
    urls: tuple[str, ...] = ()  # of the first model behind servers
    limit: int | None = None  # at most so many images, evenly over the set
    threads: int | None = None
    workers: int | None = None  # threads that decode; None: as many as cores
    command: str = ""

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise UsageError(f"--on-error {self.on_error!r} is unknown; there are: {', '.join(ON_ERROR)}")
        require_within(self.batch, MOST_IN_BATCH, "images per batch")
        require_within(self.limit, MOST_IMAGES, "images", optional=True)
        require_within(self.threads, MOST_THREADS, "threads", optional=True)
        require_within(self.workers, MOST_THREADS, "decoding threads", optional=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The accuracy of one model."""

    model: str
    name: str
    engine: str
    precision: str
    method: str  # "unknown" for a graph of another tool
    weights: str
    classes_by: str  # how the classes of the images were found in the model: by "name" or "position"
    accuracy: Accuracy
    images_per_s: float  # in the engine alone, while images are decoded beside it: no benchmark


@dataclass(frozen=True)
class Pair:
    """Two models, by their numbers in the rows."""

    first: int
    second: int
    agreement: float  # share of images with the same top-1
    overlap: float | None  # mean share of kept tokens that are the same; None: cannot be compared


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """Accuracy of every model, and what every two have in common."""

    created: str
    command: str
    machine: dict[str, Any]
    processes: int
    data: dict[str, Any]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    skipped: tuple[Broken, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, **asdict(self)}

    def pair(self, first: int | None, second: int | None) -> Pair | None:
        """What two models have in common, by their numbers in the rows; of one and the same nothing."""
        return next((pair for pair in self.pairs if {pair.first, pair.second} == {first, second}), None)


@dataclass
class _Shard:
    """One process's share."""

    tallies: list[Tally]
    shared: dict[tuple[int, int], list[float]]
    seconds: list[float]
    skipped: list[Broken] = field(default_factory=list)


def evaluate(
    request: EvaluateRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = unwatched,
    images: ImageSet | None = None,
    targets: Sequence[Target] = (),
) -> EvaluateReport:
    """Give every image to every model, once. Of several processes each takes its share, and all get the report.

    ``images`` and ``targets`` are those of the request, where they are known already.

    Raises:
        UsageError, ArtifactError, WeightsError: a model cannot be had, or has no classes.
        DataError: the images are missing, or their classes are not the model's.
        ImageError: an image is broken, and was not to be skipped.
        EngineError: a runtime refused, or gave numbers that are not finite.
    """
    processes = here()
    say("looking at the models")
    targets = targets or select.for_evaluation(request.models, request.engine, workspace)
    targets = [*targets, *(served(url, asked(address_of(url)), targets[0]) for url in request.urls)]
    if images is None:
        images = listed(request, say)
    with ExitStack() as stack:
        # Engines make room for whole batches.
        batch = max(min(request.batch, len(images)), 1)
        matched, warnings = match(targets, images, stack, batch=batch, threads=request.threads, say=say)
        shard = _pass(request, images, matched, processes, progress)
        rows = [partial(_row, entry, entry.session.precision) for entry in matched]
    shards = processes.gather(shard)
    skipped = sorted((broken for part in shards for broken in part.skipped), key=lambda broken: broken.index)
    if len(skipped) == len(images):
        raise DataError(f"none of the {len(images)} images of {images.source} can be read: {skipped[0].message}")
    slowest = np.max([part.seconds for part in shards], axis=0)
    whole = _merged(shards)
    return EvaluateReport(
        created=now(),
        command=request.command,
        machine=describe_machine(threads=request.threads),
        processes=processes.world,
        data=describe(images) | {"split": request.split},
        rows=tuple(
            row(tally, float(seconds)) for row, tally, seconds in zip(rows, whole.tallies, slowest, strict=True)
        ),
        pairs=_pairs([entry.map.names for entry in matched], whole),
        skipped=tuple(skipped),
        warnings=(*map(str, images.left_out), *warnings),
    )


def listed(request: EvaluateRequest, say: Say = silent) -> ImageSet:
    """The request's images.

    Raises:
        DataError: they are missing, or there is no such split.
    """
    say(f"listing {request.data}")
    images = read_images(request.data, split=request.split)
    return images if request.limit is None else evenly(images, request.limit)


def _pass(
    request: EvaluateRequest,
    images: ImageSet,
    matched: Sequence[Matched],
    processes: Processes,
    progress: Progress,
) -> _Shard:
    pairs = [
        (first, second)
        for first, second in combinations(range(len(matched)), 2)
        if comparable(matched[first].target, matched[second].target)
    ]
    shard = _Shard([Tally(entry.classes) for entry in matched], {pair: [] for pair in pairs}, [])
    batches = decoded_batches(
        images,
        [entry.preprocess for entry in matched],
        batch=request.batch,
        workers=request.workers or cores(),
        rank=processes.rank,
        world=processes.world,
    )
    mine = len(range(processes.rank, len(images), processes.world))
    seen = 0
    with closing(batches):  # an error stops the decoding at once
        for batch in batches:
            if batch.broken and request.on_error == "fail":
                raise ImageError(
                    batch.broken[0].message, hint="--on-error skip leaves broken images out and lists them by name"
                )
            shard.skipped += batch.broken
            if batch.filenames:
                answers = [_answer(entry, batch) for entry in matched]
                for entry, tally, answer in zip(matched, shard.tallies, answers, strict=True):
                    tally.add(answer.logits, entry.map.indices[batch.targets])
                for (first, second), shares in shard.shared.items():
                    ours, theirs = answers[first].kept, answers[second].kept
                    if ours is not None and theirs is not None:
                        shares += shared_tokens(ours, theirs)
            seen += batch.seen
            progress(Step("evaluating", seen / mine, f"{seen:,} of {mine:,} images"))
    shard.seconds = [entry.session.seconds for entry in matched]
    return shard


def _answer(entry: Matched, batch: Batch) -> Answer:
    return entry.session.read(entry.session.ask(batch.pixels[entry.preprocess], batch.filenames))


def _merged(shards: list[_Shard]) -> _Shard:
    whole = shards[0]
    for part in shards[1:]:
        for mine, theirs in zip(whole.tallies, part.tallies, strict=True):
            mine.merge(theirs)
        for pair, shares in part.shared.items():
            whole.shared[pair] += shares
    return whole


def _row(entry: Matched, precision: str, tally: Tally, seconds: float) -> Row:
    target, accuracy = entry.target, tally.result(entry.map.names)
    return Row(
        model=target.place,
        name=target.name,
        engine=target.engine.name,
        precision=precision,
        method=target.shown_method,
        weights=target.weights,
        classes_by=entry.map.by,
        accuracy=accuracy,
        images_per_s=accuracy.images / max(seconds, 1e-9),
    )


def _pairs(names: Sequence[Sequence[str]], whole: _Shard) -> tuple[Pair, ...]:
    pairs = []
    for first, second in combinations(range(len(names)), 2):
        shares = whole.shared.get((first, second))
        same = agreement(whole.tallies[first], whole.tallies[second], (names[first], names[second]))
        # Sorted: the same however many processes.
        pairs.append(Pair(first + 1, second + 1, same, float(np.mean(np.sort(shares))) if shares else None))
    return tuple(pairs)
