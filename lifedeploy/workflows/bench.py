"""``bench``: engines in; rows of throughput, latency and speed-up out, every number from interleaved rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.bench.choices import ranked
from lifedeploy.bench.measure import Stop
from lifedeploy.bench.report import BenchReport, Choice, Row
from lifedeploy.bench.served import ServedReport
from lifedeploy.data.sets import ImageSet
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.wire import address_of, connect
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.files import now
from lifedeploy.limits import (
    LONGEST_BUDGET_S,
    MOST_BATCHES,
    MOST_CLIENTS,
    MOST_IMAGES,
    MOST_IN_BATCH,
    MOST_STREAMS,
    MOST_THREADS,
    require_within,
)
from lifedeploy.machine import cores, describe, gpu_state
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.targets import select
from lifedeploy.targets.contest import Rules, contest
from lifedeploy.targets.evidence import prove
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.select import Variants, WantedEngine, variants_of
from lifedeploy.targets.served import asked, served
from lifedeploy.targets.service import ServiceRules, contest_with_server
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import target_of
from lifedeploy.text import quoted
from lifedeploy.typed import MODES
from lifedeploy.workflows.build import BuildRequest, build
from lifedeploy.workflows.evaluate import EvaluateReport, EvaluateRequest, evaluate, listed
from lifedeploy.writing import in_use

_ACCURACY_BATCH = 1_024  # images at most: no answer depends on it


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure, and how."""

    model: Path | None = None  # None: what was built last
    engines: tuple[str, ...] = ()  # NAME or NAME:PRECISION; none: what was built last. The first is the base
    batches: tuple[int, ...] = (1, 8, 32)
    modes: tuple[str, ...] = ("latency",)
    streams: int = 2  # requests in flight in throughput mode
    threads: int | None = None
    stop: Stop = field(default_factory=Stop)
    memory: bool = True
    command: str = ""
    cuda_binding: str = ""  # of TensorRT: cuda-python or pycuda; '': what is installed
    trust: bool = False  # measure a TensorRT plan, which is executable code, although it has no manifest
    copies: tuple[bool, ...] = (True, False)  # engines on a device: with copies to and from it, without, or both
    profile: bool = False  # also where the time goes, layer by layer
    data: str = ""  # labelled images, for accuracy beside speed
    split: str = ""
    limit: int | None = None  # at most so many images, evenly over the set

    def __post_init__(self) -> None:
        if not 1 <= len(self.batches) <= MOST_BATCHES or not all(1 <= batch <= MOST_IN_BATCH for batch in self.batches):
            raise UsageError(
                f"batch sizes {quoted(list(self.batches))} are not allowed: each must be at least 1 and at most "
                f"{MOST_IN_BATCH:,}, and there may be {MOST_BATCHES} of them"
            )
        for mode in self.modes:
            if mode not in MODES:
                raise UsageError(f"mode {quoted(mode)} is unknown; there are: {', '.join(MODES)}")
        if not self.copies:
            raise UsageError("neither with nor without copies: there is nothing to measure")
        require_within(self.streams, MOST_STREAMS, "streams")
        require_within(self.threads, MOST_THREADS, "threads", optional=True)
        require_within(self.limit, MOST_IMAGES, "images", optional=True)
        if not 0 < self.stop.budget_s <= LONGEST_BUDGET_S:  # neither NaN nor infinity is: measuring would not end
            raise UsageError(
                f"a budget of {self.stop.budget_s:g} s is not allowed: it must be positive, and at most "
                f"{LONGEST_BUDGET_S:,} s"
            )
        if not self.data and (self.split or self.limit is not None):
            raise UsageError("--split and --limit choose among labelled images, and there are none without --data")


def bench(
    request: BenchRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> BenchReport:
    """Measure every engine at every batch size in every mode; all engines take turns with each other.

    Accuracy comes first: data that cannot be used end it before the minutes that measuring takes.

    Raises:
        UsageError, ArtifactError, EngineError: the request cannot be meant, or an engine cannot be had.
        ParityError: an engine failed its parity gate; it gets no number.
        DataError, ImageError, WeightsError: the images are missing, broken, or not of the model's classes.
    """
    evaluation = evaluation_of(request) if request.data else None
    images = listed(evaluation, say) if evaluation else None
    chosen, warnings = _chosen(request, workspace, say)
    accuracy = None
    if evaluation is not None and images is not None:
        accuracy = Accuracy(chosen, evaluation, workspace, images, say, progress)
    options = EngineOptions(threads=request.threads, cuda_binding=request.cuda_binding, trust=request.trust)
    rules = Rules(
        stop=request.stop,
        options=options,
        threads=request.threads or cores(),
        copies=request.copies,
        memory=request.memory,
    )
    before = gpu_state()
    rows: dict[str, list[Row]] = {variants.label: [] for variants in chosen}
    for mode, batch in product(request.modes, request.batches):
        streams = request.streams if mode == "throughput" else 1
        for label, measured in contest(chosen, mode, batch, streams, rules, say, progress).items():
            rows[label] += measured
    machine = describe(threads=request.threads)
    if before:
        machine["gpu_state"] = {"before": before, "after": gpu_state()}
    profiles = []
    for variants, batch in product(chosen if request.profile else (), request.batches):
        for target in variants.targets:
            say(f"profiling {target.shown_method}, {variants.label}, batch {batch}")
            with Session(target, options=rules.options_of(target, batch=batch)) as session:
                profiles.append(session.profile(variants.model, batch))
    return BenchReport(
        machine=machine,
        rows=tuple(row for measured in rows.values() for row in measured),
        created=now(),
        command=request.command,
        profiles=tuple(profiles),
        choices=accuracy.choices(rows) if accuracy else (),
        images=accuracy.report.data if accuracy else None,
        warnings=(*warnings, *(accuracy.report.warnings if accuracy else ())),
    )


def evaluation_of(request: BenchRequest) -> EvaluateRequest:
    """How accuracy is measured."""
    return EvaluateRequest(
        models=(),
        data=request.data,
        split=request.split,
        batch=min(max(request.batches), _ACCURACY_BATCH),
        limit=request.limit,
        threads=request.threads,
    )


def _chosen(request: BenchRequest, workspace: Workspace, say: Say) -> tuple[list[Variants], tuple[str, ...]]:
    """What is measured, built and proven where it was not; and what has to be said about it."""
    selection = select.for_bench(request.model, request.engines, workspace, trust=request.trust)
    for line in filter(None, (selection.note, *selection.warnings)):
        say(line)
    engines = [_built(wanted, selection.export, request, workspace, say) for wanted in selection.engines]
    return [*selection.files, *(variants_of(prove(engine)) for engine in engines)], selection.warnings


def _built(
    wanted: WantedEngine, export: Artifact | None, request: BenchRequest, workspace: Workspace, say: Say
) -> Artifact:
    if wanted.built is not None:
        return wanted.built
    if not wanted.precision:  # of those with one the build itself says whether anything is built
        say(f"building {wanted.engine}, which is not built yet" if wanted.name else "nothing is built yet: building")
    model = export.manifest_path if export is not None else request.model
    return build(BuildRequest(model=model, engine=wanted.engine, precision=wanted.precision), workspace, say).engine


class Accuracy:
    """How right baselines and slimmed models are, in one pass; the bound on speed is no model to use.

    Raises:
        UsageError: there are none, but a file of another tool.
        WeightsError, DataError, ImageError, EngineError: as :func:`evaluate`.
    """

    def __init__(
        self,
        chosen: Sequence[Variants],
        request: EvaluateRequest,
        workspace: Workspace,
        images: ImageSet,
        say: Say,
        progress: Progress,
    ) -> None:
        models = {
            (variants.label, target.shown_method): target
            for variants in chosen
            for target in variants.targets
            if target.artifact is not None and methods.role_of(target.method) != methods.BOUND
        }
        if not models:
            raise UsageError(
                f"{chosen[0].model} has no manifest, so how images are prepared for it is unknown: no --data here",
                hint="lifedeploy evaluate takes it, beside a model of lifedeploy with the same input",
            )
        try:
            report = evaluate(request, workspace, say, progress, images, tuple(models.values()))
        except ImageError as error:
            hint = "lifedeploy evaluate --on-error skip lists all broken images"
            raise ImageError(error.message, hint=hint) from error
        self.report: EvaluateReport = report
        self._numbers = {key: number for number, key in enumerate(models, start=1)}  # of the report's rows
        self._first = chosen[0].label

    def choices(self, rows: Mapping[str, Sequence[Row]]) -> tuple[Choice, ...]:
        """The rows of each engine, with their accuracy."""
        return ranked(
            self._choice(row, self._numbers[label, row.subject.shown])
            for label, measured in rows.items()
            for row in measured
            if (label, row.subject.shown) in self._numbers
        )

    def _choice(self, row: Row, number: int) -> Choice:
        accuracy = self.report.rows[number - 1].accuracy
        base = self.report.pair(number, self._numbers.get((self._first, methods.baseline().name)))
        # Of the same method on the first engine; a baseline keeps everything, and has nothing in common there.
        same = self.report.pair(number, self._numbers.get((self._first, row.subject.shown)))
        return Choice(
            row=row,
            images=accuracy.images,
            top1=accuracy.top1,
            standard_error=accuracy.standard_error,
            average_precision=accuracy.average_precision,
            same_top1=base.agreement if base else None,
            kept_overlap=same.overlap if same else None,
        )


@dataclass(frozen=True, kw_only=True)
class ServedBenchRequest:
    """Which server, by how many clients."""

    url: str
    model: Path | None = None  # what is served; None: what was built last
    concurrency: tuple[int, ...] = (1, 4, 16)
    batch: int = 1  # images in each request
    streams: int = 2  # requests in flight in the engine without a server
    threads: int | None = None
    stop: Stop = field(default_factory=Stop)
    command: str = ""

    def __post_init__(self) -> None:
        many = len(self.concurrency)
        if not 1 <= many <= MOST_BATCHES or not all(1 <= clients <= MOST_CLIENTS for clients in self.concurrency):
            raise UsageError(
                f"--concurrency {quoted(list(self.concurrency))} is not allowed: each must be from 1 to "
                f"{MOST_CLIENTS}, and there may be {MOST_BATCHES} of them"
            )
        require_within(self.batch, MOST_IN_BATCH, "images per request")
        require_within(self.streams, MOST_STREAMS, "streams")
        require_within(self.threads, MOST_THREADS, "threads", optional=True)


def bench_served(
    request: ServedBenchRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> ServedReport:
    """Measure a server at every number of clients; the engine without one takes turns with it, with as many images in
    flight.

    Raises:
        UsageError: the server's model is none of this one.
        ArtifactError, EngineError: the engine cannot be had here, or the server cannot be reached.
    """
    address = address_of(request.url)
    rules = ServiceRules(batch=request.batch, streams=request.streams, threads=request.threads, stop=request.stop)
    say(f"asking {request.url}")
    model = asked(address)
    artifact = select.for_service(request.model, model.parameters.get("sha256", ""), request.url, workspace)
    with in_use(artifact.folder):
        bare = target_of(ModelFile.of(Artifact.read(artifact.manifest_path)))
        service = served(request.url, model, bare)
        wire = connect(address)
        try:
            rows = tuple(
                contest_with_server(bare, service, wire, rules, clients, say, progress)
                for clients in request.concurrency
            )
        finally:
            wire.close()
    return ServedReport(
        created=now(),
        command=request.command,
        machine=describe(threads=request.threads),
        url=request.url,
        server=model.server,
        model=bare.name,
        engine=f"{bare.engine.name} {bare.precision}",
        same_engine="sha256" in model.parameters,
        method=bare.shown_method,
        rows=rows,
        parameters=model.parameters,
    )
