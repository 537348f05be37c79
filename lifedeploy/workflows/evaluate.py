"""``evaluate``: models and labelled images in; accuracy, agreement and kept-token overlap out, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Workspace
from lifedeploy.data.images import ImageSet, Subset, describe, read_images
from lifedeploy.data.stream import Batch, Broken, stream
from lifedeploy.errors import DataError, ImageError, UsageError
from lifedeploy.evaluation.accuracy import Accuracy, Tally, agreement
from lifedeploy.evaluation.asking import require_sound, shared_tokens
from lifedeploy.evaluation.parity import Answer
from lifedeploy.files import now
from lifedeploy.machine import cores
from lifedeploy.machine import describe as describe_machine
from lifedeploy.workflows.contenders import Contender, choose, comparable, enter
from lifedeploy.workflows.limits import MOST_IMAGES, MOST_IN_BATCH, MOST_THREADS, require_within
from lifedeploy.workflows.processes import Processes, here
from lifedeploy.workflows.progress import Say, silent

ON_ERROR = ("skip", "fail")
Progress = Callable[[int, int], None]  # images seen, images in all


@dataclass(frozen=True)
class EvaluateRequest:
    """Which models, on which images."""

    models: tuple[Path, ...]  # PATH or PATH:METHOD; none: what was built last, and its dense baseline
    data: str
    split: str = ""
    batch: int = 32
    on_error: str = "fail"  # what a broken image does: "skip" or "fail"
    engine: str = ""  # runtime of ONNX files; "": onnxruntime
    limit: int | None = None  # at most so many images, evenly over the set
    threads: int | None = None
    workers: int | None = None  # threads that decode; None: as many as cores
    command: str = ""

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise UsageError(f"--on-error {self.on_error!r} is unknown; there are: {', '.join(ON_ERROR)}")
        for value, most, what in (
            (self.batch, MOST_IN_BATCH, "images per batch"),
            (self.limit, MOST_IMAGES, "images"),
            (self.threads, MOST_THREADS, "threads"),
            (self.workers, MOST_THREADS, "decoding threads"),
        ):
            if value is not None:
                require_within(value, most, what)


@dataclass(frozen=True)
class Row:
    """One model."""

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


@dataclass(frozen=True)
class EvaluateReport:
    """What came out."""

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


@dataclass
class _Shard:
    """What one process found."""

    tallies: list[Tally]
    shared: dict[tuple[int, int], list[float]]
    seconds: list[float]
    skipped: list[Broken] = field(default_factory=list)


def evaluate(
    request: EvaluateRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = lambda seen, images: None,
    images: ImageSet | None = None,
) -> EvaluateReport:
    """Give every image to every model, once. Of several processes each takes its share, and all get the report.

    ``images`` are those of the request, where they have been listed already.

    Raises:
        UsageError, ArtifactError, WeightsError: a model cannot be had, or has no classes.
        DataError: the images are missing, or their classes are not the model's.
        ImageError: an image is broken, and was not to be skipped.
        EngineError: a runtime refused, or gave numbers that are not finite.
    """
    processes = here()
    say("looking at the models")
    sides = choose(request.models, request.engine or "onnxruntime", workspace)
    if images is None:
        images = listed(request, say)
    with ExitStack() as stack:
        # Engines make room for whole batches.
        batch = max(min(request.batch, len(images)), 1)
        contenders, warnings = enter(sides, images, stack, batch=batch, threads=request.threads, say=say)
        shard = _pass(request, images, contenders, processes, progress)
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
            _row(contender, tally, float(seconds))
            for contender, tally, seconds in zip(contenders, whole.tallies, slowest, strict=True)
        ),
        pairs=_pairs(contenders, whole),
        skipped=tuple(skipped),
        warnings=(*map(str, images.left_out), *warnings),
    )


def listed(request: EvaluateRequest, say: Say = silent) -> ImageSet:
    """The request's images.

    A ``limit`` takes them at even distances: folders come class by class, so the first ones would be of one class.

    Raises:
        DataError: they are missing, or there is no such split.
    """
    say(f"listing {request.data}")
    images, limit = read_images(request.data, split=request.split), request.limit
    if limit is None or limit >= len(images):
        return images
    return Subset(images, np.arange(limit, dtype=np.int64) * len(images) // limit)


def _pass(
    request: EvaluateRequest,
    images: ImageSet,
    contenders: list[Contender],
    processes: Processes,
    progress: Progress,
) -> _Shard:
    pairs = [pair for pair in _numbered(contenders) if comparable(*(contenders[number].side for number in pair))]
    shard = _Shard([Tally(contender.classes) for contender in contenders], {pair: [] for pair in pairs}, [])
    batches = stream(
        images,
        [contender.preprocess for contender in contenders],
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
                answers = [_answer(contender, batch) for contender in contenders]
                for contender, tally, answer in zip(contenders, shard.tallies, answers, strict=True):
                    tally.add(answer.logits, contender.map.indices[batch.targets])
                for (one, other), shares in shard.shared.items():
                    first, second = answers[one].kept, answers[other].kept
                    if first is not None and second is not None:
                        shares += shared_tokens(first, second)
            seen += batch.seen
            progress(seen, mine)
    shard.seconds = [contender.ask.seconds for contender in contenders]
    return shard


def _answer(contender: Contender, batch: Batch) -> Answer:
    answer = contender.ask(batch.pixels[contender.preprocess])
    require_sound(answer.logits, batch.filenames, f"{contender.side.label} on {contender.side.engine.name}")
    return answer


def _merged(shards: list[_Shard]) -> _Shard:
    whole = shards[0]
    for part in shards[1:]:
        for mine, theirs in zip(whole.tallies, part.tallies, strict=True):
            mine.merge(theirs)
        for pair, shares in part.shared.items():
            whole.shared[pair] += shares
    return whole


def _row(contender: Contender, tally: Tally, seconds: float) -> Row:
    side = contender.side
    accuracy = tally.result(contender.map.names)
    return Row(
        model=side.label,
        name=side.name,
        engine=side.engine.name,
        precision=contender.precision,
        method=side.method or "unknown",
        weights=side.spec.provenance.weights if side.spec else "unknown",
        classes_by=contender.map.by,
        accuracy=accuracy,
        images_per_s=accuracy.images / max(seconds, 1e-9),
    )


def _numbered(contenders: list[Contender]) -> list[tuple[int, int]]:
    return list(combinations(range(len(contenders)), 2))


def _pairs(contenders: list[Contender], whole: _Shard) -> tuple[Pair, ...]:
    made = []
    for one, other in _numbered(contenders):
        names = (contenders[one].map.names, contenders[other].map.names)
        shares = whole.shared.get((one, other))
        made.append(
            Pair(
                one + 1,
                other + 1,
                agreement(whole.tallies[one], whole.tallies[other], names),
                float(np.mean(np.sort(shares))) if shares else None,  # sorted: the same however many processes
            )
        )
    return tuple(made)
