"""``bench``: engines in; rows of throughput, latency and speed-up out, every number from interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from lifedeploy.artifact import TensorSpec, Workspace
from lifedeploy.bench import trtexec
from lifedeploy.bench.measure import Contender, Samples, Stop, measure
from lifedeploy.bench.memory import peak_memory_mib
from lifedeploy.bench.profile import Profile, summarise
from lifedeploy.bench.report import BenchReport, Row, Subject, contender_name, make_rows
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array, DeviceLane, Lane, WithoutCopies, buffers
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.files import now
from lifedeploy.machine import cores, describe, gpu_state
from lifedeploy.workflows.progress import Say, silent
from lifedeploy.workflows.teams import Member, Team, teams

MODES = ("latency", "throughput")
_SEED = 5
Progress = Callable[[str, int, float], None]  # what is measured, rounds made, share of the way


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, and how."""

    model: Path | None = None  # None: what was built last
    engines: tuple[str, ...] = ()  # NAME or NAME:PRECISION; none: what was built last
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

    def __post_init__(self) -> None:
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise UsageError(f"batch sizes {list(self.batches)} are not allowed: each must be at least 1")
        for mode in self.modes:
            if mode not in MODES:
                raise UsageError(f"mode {mode!r} is unknown; there are: {', '.join(MODES)}")
        if not self.copies:
            raise UsageError("neither with nor without copies: there is nothing to measure")
        if self.streams < 1:
            raise UsageError(f"{self.streams} streams are not allowed: at least 1 is needed")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads are not allowed: at least 1 is needed")
        if self.stop.budget_s <= 0:
            raise UsageError(f"a budget of {self.stop.budget_s:g} s is not allowed: it must be positive")


def bench(
    request: BenchRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = lambda label, rounds, share: None,
) -> BenchReport:
    """Measure every engine at every batch size in every mode.

    Raises:
        UsageError, ArtifactError, EngineError: the request cannot be meant, or an engine cannot be had.
        ParityError: an engine failed its parity gate; it gets no number.
    """
    chosen = list(teams(request.model, request.engines, workspace, say, trust=request.trust))
    before = gpu_state()
    rows: list[Row] = []
    for team, mode, batch in product(chosen, request.modes, request.batches):
        rows += _contest(team, mode, batch, request, say, progress)
    after = gpu_state()
    profiles: list[Profile] = []
    if request.profile:
        for team, batch in product(chosen, request.batches):
            profiles += _profiles(team, batch, request, say)
    machine = describe(threads=request.threads)
    if before:
        machine["gpu_state"] = {"before": before, "after": after}
    return BenchReport(machine, tuple(rows), now(), request.command, tuple(profiles))


def _contest(team: Team, mode: str, batch: int, request: BenchRequest, say: Say, progress: Progress) -> list[Row]:
    """All methods of one team take turns in one mode at one batch size."""
    label = f"{team.label}, {mode}, batch {batch}"
    streams = request.streams if mode == "throughput" else 1
    say(f"opening {label}")
    precisions: dict[str, str] = {}
    inputs: dict[str, tuple[TensorSpec, ...]] = {}
    ways: dict[bool | None, None] = {}  # with copies, without, or on no device that would need them
    with ExitStack() as stack:
        contenders = []
        for member in team.members:
            engine = stack.enter_context(member.engine(member.path, _options(member, request, streams, batch)))
            precisions[member.method], inputs[member.method] = engine.precision, engine.inputs
            lanes = tuple(_filled(engine.lane(batch), lane) for lane in range(streams))
            for copies, own in _ways(lanes, request):
                ways[copies] = None
                against = contender_name(team.members[0].method, copies)
                contenders.append(Contender(contender_name(member.method, copies), batch, own, against))
        samples: Samples = measure(
            contenders, request.stop, progress=lambda rounds, share: progress(label, rounds, share)
        )
    subjects = []
    for member in team.members:
        peak = None
        if request.memory:
            say(f"measuring the memory of {member.method}, {label}")
            peak = peak_memory_mib(member.engine.name, member.path, _options(member, request, streams, batch), batch)
        subjects.append(
            Subject(
                team.model,
                member.method,
                member.engine.name,
                precisions[member.method],
                member.mac_ratio,
                member.weights,
                member.parity,
                peak,
                member.note,
            )
        )
    threads = request.threads or cores()
    rows: list[Row] = []
    for copies in ways:
        made = make_rows(subjects, samples, mode=mode, batch=batch, streams=streams, threads=threads, copies=copies)
        opinions = _opinions(team, batch, inputs, say) if copies is False and streams == 1 else {}
        rows += [_with_opinion(row, opinions.get(row.method)) for row in made]
    return rows


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
        trust=request.trust,
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
