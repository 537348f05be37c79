"""``tune``: an exported model and an engine in; the token schedule that suits the two, measured, out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.measure import Stop
from lifedeploy.data.batches import whole_batches
from lifedeploy.data.samples import photographs
from lifedeploy.data.sets import evenly
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines import registry
from lifedeploy.errors import EngineUnavailableError, UsageError
from lifedeploy.files import now
from lifedeploy.limits import (
    LONGEST_BUDGET_S,
    MOST_IN_BATCH,
    MOST_STREAMS,
    MOST_THREADS,
    MOST_TUNED_IMAGES,
    require_within,
)
from lifedeploy.machine import cores, describe, gpu_state
from lifedeploy.model import checkpoint
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.spec import QUANTIZED, PreprocessSpec
from lifedeploy.targets import select
from lifedeploy.targets.divergence import Teacher
from lifedeploy.targets.find import export_of, find, quantized_precision
from lifedeploy.targets.held import machine_conditions
from lifedeploy.targets.probing import Deadline, probe_staircase
from lifedeploy.targets.session import Session
from lifedeploy.targets.tunable import base_layers, processor_here, require_tunable
from lifedeploy.targets.workbench import Asked, Workbench, times
from lifedeploy.text import quoted
from lifedeploy.tuned import Tuned, TunedFor
from lifedeploy.tuning.book import Book, Divergence
from lifedeploy.tuning.choosing import Goal, best_of, candidates, keeps, require_within_front
from lifedeploy.tuning.expected import Expected
from lifedeploy.tuning.front import Choice, Front
from lifedeploy.tuning.losses import Images, expected_losses, require_open
from lifedeploy.tuning.pace import Pace
from lifedeploy.tuning.report import Point, TuneReport, rank_correlation, said_of, warned_of
from lifedeploy.tuning.staircase import Staircase
from lifedeploy.typed import MODES
from lifedeploy.writing import in_use

Pixels = NDArray[np.uint8]
FOLDER = "tuning"  # of the workspace: what was measured
_DENSE = "the dense model"  # as it is called among what takes turns
_DECODED = 32  # images at a time
_ENOUGH = 12  # turns of each in the verification: rounds, and what is asked before them
_CONTESTS = 7.5  # the share of the budget that each further contest may take
_STOP = Stop(budget_s=20.0, half_width=0.004, min_rounds=15, max_rounds=200, round_s=0.15)


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What to tune, for what, and how."""

    model: Path | None = None  # None: the newest export
    engine: str = ""  # NAME or NAME:PRECISION; '': the model's own where it is an engine, else the fastest here
    mode: str = MODES[0]
    batch: int = 1
    streams: int = 2  # requests in flight in throughput mode
    threads: int | None = None
    goal: Goal = field(default_factory=Goal)
    base_layer: int | None = None  # of a model that is still to be trained
    data: str = ""  # images, whose labels do not matter
    split: str = ""
    images: int = 256
    budget_s: float = 150.0  # of measuring the staircase
    fresh: bool = False  # pass over what was measured before
    command: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode {quoted(self.mode)} is unknown; there are: {', '.join(MODES)}")
        require_within(self.batch, MOST_IN_BATCH, "images per batch")
        require_within(self.streams, MOST_STREAMS, "streams")
        require_within(self.threads, MOST_THREADS, "threads", optional=True)
        require_within(self.images, MOST_TUNED_IMAGES, "images")
        if not 0 < self.budget_s <= LONGEST_BUDGET_S:
            raise UsageError(
                f"a budget of {self.budget_s:g} s is not allowed: it must be above 0, at most {LONGEST_BUDGET_S:,}"
            )
        if self.goal.max_kl is not None and not self.data:
            raise UsageError("--max-kl needs images to ask about: --data DIR; their labels do not matter")
        if self.split and not self.data:
            raise UsageError("--split chooses among images, and there are none without --data")


def tune(request: TuneRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched) -> TuneReport:
    """Measure how an engine's time depends on the number of tokens, and find the schedule that suits it.

    Raises:
        UsageError: the request cannot be meant, the method cannot be tuned, or the goal is out of reach.
        ArtifactError: no model, a damaged one, or one that is not calibrated for that precision.
        EngineUnavailableError: the engine does not run here.
        DataError, ImageError: the images are missing or broken.
        EngineError, ExportError: the runtime refused, or the graph has a form that is not known.
    """
    folder = export_of(request.model, workspace).folder
    with in_use(folder, *(folder / precision for precision in QUANTIZED)):
        return _tune(request, workspace, say, progress)


def _tune(request: TuneRequest, workspace: Workspace, say: Say, progress: Progress) -> TuneReport:
    began, export = time.monotonic(), export_of(request.model, workspace)
    require_tunable(export, request.batch)
    bases, spec = base_layers(export, request.base_layer), export.manifest.spec
    if request.goal.max_kl is not None and not spec.num_classes:
        raise UsageError(f"{export.path} has no classes for --max-kl", hint="--speedup, or --latency-ms")
    bench, warning = _bench(request, export)
    model, _ = checkpoint.load(export.file(export.manifest.checkpoint))
    require_open(model)
    book = Book(workspace.root / FOLDER, fresh=request.fresh)
    machine = machine_conditions(gpu_state())
    say("reading images" if request.data else "reading the packaged photographs")
    pixels = _pixels(request, spec.preprocess)
    with bench.dense() as dense:
        say("building what is measured first")
        probed = probe_staircase(bench, dense, book, machine, Deadline.after(request.budget_s), progress)
        pace = _pace(bench, dense, Staircase(probed.times), request.budget_s, progress)
        say("looking at the model")
        # Of a model that may rank after any layer there would be a table of single cuts for each.
        asks = bool(request.data and spec.num_classes)
        images, layers = Images(pixels, spec.preprocess), sorted({*bases, spec.schedule.base_layer})
        expected = expected_losses(model, images, layers, cuts=asks and len(layers) == 1, progress=progress)
        say("looking at all schedules")
        front = Front({base: pace.tables(expected, base) for base in bases})
        require_within_front(front, request.goal, pace.dense_ms)
        before = pace.price(spec.schedule, expected)
        teacher = Teacher(bench, pixels, book, machine, progress) if asks else None
        if teacher is not None:
            teacher.divergence(before)  # so that losses are of one kind
        choices = candidates(front, request.goal, before, pace.dense_ms, teacher.kl if teacher else None)
        known = teacher.known if teacher else {}
        before_point, *verified = _verified(bench, dense, [before, *choices], known, pace, request.budget_s, progress)
    may_stay = spec.schedule.base_layer in bases
    chosen = best_of(before_point, verified, request.goal, pace.dense_ms, may_stay=may_stay)
    missed = "" if keeps(chosen, request.goal, pace.dense_ms) else request.goal.words
    warnings = warned_of(chosen, verified, before_point, missed=missed)
    elastic = spec.provenance.elastic
    return TuneReport(
        model=export.name,
        goal=request.goal.words,
        tuned=_tuned(bench, chosen, expected.unit, request.command),
        improves=chosen is not before_point,
        machine=describe(threads=request.threads),
        created=now(),
        command=request.command,
        images=len(pixels),
        data=request.data,
        loss_is=expected.unit,
        dense_ms=pace.dense_ms,
        ordering=pace.ordering,
        slicing=pace.slicing,
        probes=dict(sorted(probed.probes.items())),
        new_probes=probed.measured,
        fitted=dict(zip(pace.stairs.counts, pace.stairs.times, strict=True)),
        edges=pace.stairs.edges,
        jump=pace.stairs.jump,
        schedules=front.looked_at,
        before=before_point,
        chosen=chosen,
        front=tuple(map(Point.of, front.best())),
        verified=tuple(verified),
        asked=tuple(sorted((Point.of(choice, true=it) for choice, it in known.items()), key=lambda point: point.time)),
        correlations=_correlations(expected, known),
        seconds=time.monotonic() - began,
        notes=said_of(expected.unit, pace.stairs, asked=asks, elastic=elastic, complete=probed.complete),
        warnings=(*filter(None, [warning]), *warnings),
    )


def _correlations(expected: Expected, known: Mapping[Choice, Divergence]) -> dict[str, float]:
    """How far each proxy ranks as the true divergence does."""
    true = [divergence.kl for divergence in known.values()]
    prices = [expected.of(choice.schedule) for choice in known]
    ranks = {unit: rank_correlation([price[unit] for price in prices], true) for unit in (prices[0] if prices else ())}
    return {unit: rank for unit, rank in ranks.items() if rank is not None}


def _bench(request: TuneRequest, export: Artifact) -> tuple[Workbench, str]:
    """The engine that is asked for; else the model's own, where it is an engine; else the fastest here. And what is
    to be said of it."""
    model = find(request.model).artifact if request.model is not None else None
    record = model.manifest.engine if model is not None else None
    named, precision = request.engine or registry.AUTO, quantized_precision(request.model)
    if not request.engine and record is not None:
        named, precision = record.name, record.precision
    if precision and ":" not in named:
        named = f"{named}:{precision}"
    try:
        wanted = select.for_comparison([named]).engines[0]
    except EngineUnavailableError as error:
        raise EngineUnavailableError(f"{error.message}; tune measures where an engine runs", hint=error.hint) from error
    engine = registry.get(wanted.engine)
    if engine.endings == (".safetensors",):
        raise UsageError(
            f"engine {engine.name} runs checkpoints, and schedules are tuned on graphs; expected another engine"
        )
    streams = request.streams if request.mode == MODES[1] else 1
    asked = Asked(mode=request.mode, batch=request.batch, streams=streams, threads=request.threads)
    optional = record is not None and bool(record.options)
    built_otherwise = "measured as it is built without its build options" if optional else ""
    said = "; ".join(filter(None, (wanted.plan.note, built_otherwise)))
    return Workbench(export, engine, wanted.plan.precision, asked), said


def _pixels(request: TuneRequest, preprocess: PreprocessSpec) -> Pixels:
    """The images to look at, (B, H, W, 3): those given, evenly over the set, else the packaged photographs.

    Raises:
        DataError, ImageError: there are none, or one is broken.
    """
    if not request.data:
        return np.stack(photographs(preprocess))
    images = evenly(read_unlabelled(request.data, split=request.split), request.images)
    hint = "remove this image: tune needs those that can be read"
    return np.concatenate([*whole_batches(images, preprocess, batch=_DECODED, workers=cores(), hint=hint)])


def _pace(bench: Workbench, dense: Session, stairs: Staircase, budget_s: float, progress: Progress) -> Pace:
    """What cannot be told from the staircase: how long the dense model takes, and what ordering and slicing add."""
    manifest = bench.baseline.manifest
    graphs = {"sliced": bench.bound, "ordered": bench.slimmed}
    with ExitStack() as stack:
        # Twice each: two engines of one graph differ by as much as what is to be told from them.
        opened = {
            f"{name} {twin}": stack.enter_context(bench.opened(graphs[name])) for name in graphs for twin in (1, 2)
        }
        stop = replace(_STOP, budget_s=min(_STOP.budget_s, budget_s / _CONTESTS))
        samples = bench.compare({_DENSE: dense, **opened}, stop, "measuring what ordering takes", progress)
    ratios = times(samples, _DENSE)
    mean = {name: (ratios[f"{name} 1"].median + ratios[f"{name} 2"].median) / 2 for name in graphs}
    latencies = [seconds for turn in samples.turns[_DENSE] for seconds in turn.latencies_s]
    return Pace.of(
        stairs,
        manifest.macs.per_layer or (),
        bench.slimmed.manifest.spec.schedule,
        sliced=mean["sliced"],
        ordered=mean["ordered"],
        dense_ms=1000 * float(np.median(latencies)),
    )


def _verified(
    bench: Workbench,
    dense: Session,
    choices: Sequence[Choice],
    known: Mapping[Choice, Divergence],
    pace: Pace,
    budget_s: float,
    progress: Progress,
) -> list[Point]:
    """The choices, measured in one contest with the dense model; the first is the schedule that the model has."""
    by_words: dict[str, Choice] = {}
    for choice in choices:
        by_words.setdefault(choice.words, choice)
    distinct = list(by_words.values())
    with ExitStack() as stack:
        sessions = {_DENSE: dense}
        sessions |= {str(place): stack.enter_context(bench.under(it.schedule)) for place, it in enumerate(distinct)}
        turn_s = max(pace.dense_ms / 1000, _STOP.round_s or 0.0)
        enough_s = _ENOUGH * len(sessions) * turn_s  # for as many rounds as certainty takes
        stop = replace(_STOP, budget_s=max(min(_STOP.budget_s, budget_s / _CONTESTS), enough_s))
        samples = bench.compare(sessions, stop, "verifying", progress)
    points = []
    for place, choice in enumerate(distinct):
        over_dense, over_before = (samples.ratio(str(place), other) for other in (_DENSE, "0"))
        points.append(Point.of(choice, true=known.get(choice), measured=over_dense, over_before=over_before))
    return points


def _tuned(bench: Workbench, chosen: Point, unit: str, command: str) -> Tuned:
    spec, asked = bench.slimmed.manifest.spec, bench.asked
    assert chosen.measured is not None and chosen.over_before is not None  # it was verified
    return Tuned(
        backbone=spec.timm_name,
        method=spec.method,
        image_size=spec.image_size,
        patches=spec.schedule.patches,
        depth=spec.schedule.depth,
        counts=chosen.counts,
        drop_layers=chosen.drop_layers,
        tuned_for=TunedFor(
            engine=bench.engine.name,
            precision=bench.precision,
            runtime=bench.engine.availability().version,
            processor=processor_here(bench.engine),
            mode=asked.mode,
            batch=asked.batch,
            streams=asked.streams,
            threads=asked.threads or cores(),
        ),
        speedup=chosen.measured.median,
        over_before=chosen.over_before.median,
        loss=chosen.true.kl if chosen.true else chosen.loss,
        loss_is="KL divergence as deployed, in nats" if chosen.true else unit,
        command=command,
    )
