"""``bench``: engines in; rows of throughput, latency and speed-up out, every number from interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from lifedeploy import methods
from lifedeploy.artifact import TensorSpec, Workspace
from lifedeploy.bench import trtexec
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.bench.memory import peak_memory_mib
from lifedeploy.bench.profile import Profile, summarise
from lifedeploy.bench.report import BenchReport, Row, Subject, contender_name, make_rows
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array, DeviceLane, Lane, WithoutCopies, buffers
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.files import now
from lifedeploy.machine import cores, describe, gpu_state
from lifedeploy.text import quoted
from lifedeploy.workflows.choices import Judgement, judge
from lifedeploy.workflows.evaluate import EvaluateRequest, listed
from lifedeploy.workflows.progress import Say, silent
from lifedeploy.workflows.teams import Member, Team, teams

MODES = ("latency", "throughput")
MOST_BATCHES, LARGEST_BATCH = 64, 65_536
MOST_STREAMS, MOST_THREADS = 1_024, 4_096
MOST_IMAGES = 1_000_000_000
LONGEST_BUDGET_S = 30 * 86_400
_SEED = 5
Progress = Callable[[str, str, float], None]  # what is done, how far that is, share of the way


@dataclass(frozen=True)
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
        if not 1 <= len(self.batches) <= MOST_BATCHES or not all(1 <= batch <= LARGEST_BATCH for batch in self.batches):
            raise UsageError(
                f"batch sizes {quoted(list(self.batches))} are not allowed: each must be at least 1 and at most "
                f"{LARGEST_BATCH:,}, and there may be {MOST_BATCHES} of them"
            )
        for mode in self.modes:
            if mode not in MODES:
                raise UsageError(f"mode {quoted(mode)} is unknown; there are: {', '.join(MODES)}")
        if not self.copies:
            raise UsageError("neither with nor without copies: there is nothing to measure")
        for name, count, most in (
            ("streams", self.streams, MOST_STREAMS),
            ("threads", self.threads, MOST_THREADS),
            ("images", self.limit, MOST_IMAGES),
        ):
            if count is not None and not 1 <= count <= most:
                allowed = f"at least 1 is needed, and at most {most:,}"
                raise UsageError(f"{quoted(count)} {name} are not allowed: {allowed}")
        if not 0 < self.stop.budget_s <= LONGEST_BUDGET_S:  # neither NaN nor infinity is: measuring would not end
            raise UsageError(
                f"a budget of {self.stop.budget_s:g} s is not allowed: it must be positive, and at most "
                f"{LONGEST_BUDGET_S:,} s"
            )
        if not self.data and (self.split or self.limit is not None):
            raise UsageError("--split and --limit choose among labelled images, and there are none without --data")


def bench(
    request: BenchRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = lambda label, so_far, share: None,
) -> BenchReport:
    """Measure every engine at every batch size in every mode; all engines take turns with each other.

    Accuracy comes first: data that cannot be used end it before the minutes that measuring takes.

    Raises:
        UsageError, ArtifactError, EngineError: the request cannot be meant, or an engine cannot be had.
        ParityError: an engine failed its parity gate; it gets no number.
        DataError, ImageError, WeightsError: the images are missing, broken, or not of the model's classes.
    """
    evaluation = EvaluateRequest(
        (), request.data, request.split, max(request.batches), limit=request.limit, threads=request.threads
    )
    images = listed(evaluation, say) if request.data else None
    chosen, warnings = teams(request.model, request.engines, workspace, say, trust=request.trust)
    judgement: Judgement | None = None
    if images is not None:
        judgement = judge(chosen, evaluation, workspace, images, say, partial(_seen, progress))
        warnings += judgement.report.warnings
    before = gpu_state()
    rows: dict[str, list[Row]] = {team.label: [] for team in chosen}
    for mode, batch in product(request.modes, request.batches):
        for team, found in _contest(chosen, mode, batch, request, say, progress).items():
            rows[team] += found
    after = gpu_state()
    profiles: list[Profile] = []
    if request.profile:
        for one, batch in product(chosen, request.batches):
            profiles += _profiles(one, batch, request, say)
    machine = describe(threads=request.threads)
    if before:
        machine["gpu_state"] = {"before": before, "after": after}
    return BenchReport(
        machine,
        tuple(row for own in rows.values() for row in own),
        now(),
        request.command,
        tuple(profiles),
        judgement.choices(rows) if judgement else (),
        judgement.report.data if judgement else None,
        warnings,
    )


def _seen(progress: Progress, seen: int, images: int) -> None:
    progress("evaluating", f"{seen:,} of {images:,} images", seen / images)


@dataclass(frozen=True)
class _Entry:
    """A member of a team, open."""

    team: Team
    member: Member
    ways: dict[bool | None, tuple[Lane, ...]]  # with copies, without, or on no device that would need them
    precision: str  # what runs
    inputs: tuple[TensorSpec, ...]

    def name(self, copies: bool | None) -> str:
        """Of its contender."""
        return contender_name(self.team.label, self.member.method, copies)


def _contest(
    chosen: Sequence[Team], mode: str, batch: int, request: BenchRequest, say: Say, progress: Progress
) -> dict[str, list[Row]]:
    """All methods of all teams take turns in one mode at one batch size: team → rows."""
    who = chosen[0].label if len(chosen) == 1 else f"{len(chosen)} engines"
    label = f"{who}, {mode}, batch {batch}"
    streams = request.streams if mode == "throughput" else 1
    with ExitStack() as stack:
        entries = []
        for team in chosen:
            say(f"opening {team.label}, {mode}, batch {batch}")
            entries += [_enter(team, member, request, streams, batch, stack) for member in team.members]
        samples = measure(
            [contender for entry in entries for contender in _contenders(entry, entries, batch)],
            replace(request.stop, budget_s=request.stop.budget_s * len(chosen)),
            progress=lambda rounds, share: progress(label, f"{rounds} round{'' if rounds == 1 else 's'}", share),
        )
    made: dict[str, list[Row]] = {}
    for team in chosen:
        own = [entry for entry in entries if entry.team is team]
        subjects = [
            _subject(entry, request, streams, batch, f"{team.label}, {mode}, batch {batch}", say) for entry in own
        ]
        rows: list[Row] = []
        for copies in own[0].ways:
            found = make_rows(
                team.label,
                subjects,
                samples,
                mode=mode,
                batch=batch,
                streams=streams,
                threads=request.threads or cores(),
                copies=copies,
                base=_base(entries, copies),
            )
            inputs = {entry.member.method: entry.inputs for entry in own}
            opinions = _opinions(team, batch, inputs, say) if copies is False and streams == 1 else {}
            rows += [_with_opinion(row, opinions.get(row.method)) for row in found]
        made[team.label] = rows
    return made


def _enter(team: Team, member: Member, request: BenchRequest, streams: int, batch: int, stack: ExitStack) -> _Entry:
    engine = stack.enter_context(member.engine(member.path, _options(member, request, streams, batch)))
    lanes = tuple(_filled(engine.lane(batch), lane) for lane in range(streams))
    return _Entry(team, member, dict(_ways(lanes, request)), engine.precision, engine.inputs)


def _contenders(entry: _Entry, entries: Sequence[_Entry], batch: int) -> Iterator[Contender]:
    for copies, lanes in entry.ways.items():
        against = contender_name(entry.team.label, entry.team.members[0].method, copies)
        base = _base(entries, copies) or ""
        yield Contender(entry.name(copies), batch, lanes, against, base, entry.team.label)


def _base(entries: Sequence[_Entry], copies: bool | None) -> str | None:
    """The contender that all are held against: the first team's dense model, with copies or without as they are.

    Where it knows no such difference, or was not asked for it, it is taken as it is.
    """
    first = entries[0]
    if methods.role_of(first.member.method) != methods.BASELINE:
        return None
    return first.name(copies if copies in first.ways else next(iter(first.ways)))


def _subject(entry: _Entry, request: BenchRequest, streams: int, batch: int, label: str, say: Say) -> Subject:
    member, peak = entry.member, None
    if request.memory:
        say(f"measuring the memory of {member.method}, {label}")
        peak = peak_memory_mib(member.engine.name, member.path, _options(member, request, streams, batch), batch)
    return Subject(
        entry.team.model,
        member.method,
        member.engine.name,
        entry.precision,
        member.mac_ratio,
        member.weights,
        member.parity,
        peak,
        member.note,
    )


def _opinions(
    team: Team, batch: int, inputs: Mapping[str, tuple[TensorSpec, ...]], say: Say
) -> dict[str, trtexec.Opinion | str]:
    """What NVIDIA's own tool measures of the same plan, or why it does not; nothing where it is not installed.

    Only the slimmed model's plan, which is the last: what is held against the tool is our runtime.
    """
    found: dict[str, trtexec.Opinion | str] = {}
    for member in team.members[-1:]:
        tool = trtexec.find(member.engine.name)
        if tool is None:
            continue
        say(f"asking {Path(tool).name} about {member.method}, {team.label}, batch {batch}")
        try:
            found[member.method] = trtexec.measure(tool, member.path, inputs[member.method], batch)
        except EngineError as error:
            found[member.method] = error.message
    return found


def _with_opinion(row: Row, opinion: trtexec.Opinion | str | None) -> Row:
    if opinion is None:
        return row
    if isinstance(opinion, str):
        return replace(row, note="; ".join(filter(None, (row.note, opinion))))
    other = {"images_per_s": opinion.images_per_s, "gpu_ms": opinion.gpu_ms}
    return replace(row, trtexec=other | {"share": row.images_per_s / opinion.images_per_s})


def _ways(lanes: tuple[Lane, ...], request: BenchRequest) -> Iterator[tuple[bool | None, tuple[Lane, ...]]]:
    """The lanes with copies and without, where that makes a difference."""
    on_device = [lane for lane in lanes if isinstance(lane, DeviceLane)]
    if not on_device:
        yield None, lanes
        return
    for copies in request.copies:
        yield copies, lanes if copies else tuple(WithoutCopies(lane) for lane in on_device)


def _profiles(team: Team, batch: int, request: BenchRequest, say: Say) -> Iterator[Profile]:
    """Where the time of each method goes."""
    for member in team.members:
        say(f"profiling {member.method}, {team.label}, batch {batch}")
        with member.engine(member.path, _options(member, request, 1, batch)) as engine:
            feeds = buffers(engine.inputs, batch)
            _fill(feeds, seed=0)
            yield summarise(
                engine.profile(feeds),
                model=team.model,
                method=member.method,
                engine=member.engine.name,
                precision=engine.precision,
                batch=batch,
            )


def _options(member: Member, request: BenchRequest, streams: int, batch: int) -> EngineOptions:
    return EngineOptions(
        precision=member.precision,
        threads=request.threads,
        streams=streams,
        batch=batch,
        method=member.method,
        cuda_binding=request.cuda_binding,
        trust=request.trust and member.manifest is None,  # a manifest, where there is one, is asked in any case
    )


def _filled(lane: Lane, seed: int) -> Lane:
    """The lane with something other than zeros in it: some processors are faster on zeros, and TopK on ties."""
    _fill(lane.inputs, seed)
    return lane


def _fill(inputs: Mapping[str, Array], seed: int) -> None:
    generator = np.random.default_rng(_SEED + seed)
    for array in inputs.values():
        if np.issubdtype(array.dtype, np.floating):
            array[...] = generator.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)
        else:
            array[...] = generator.integers(0, 128, array.shape, dtype=np.int64).astype(array.dtype)
