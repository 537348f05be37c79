"""``bench``: engines in; rows of throughput, latency and speed-up out, every number from interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Artifact, Workspace, now
from lifedeploy.bench.measure import Contender, Samples, Stop, measure
from lifedeploy.bench.memory import peak_memory_mib
from lifedeploy.bench.profile import Profile, summarise
from lifedeploy.bench.report import BenchReport, Row, Subject, contender_name, make_rows
from lifedeploy.engines import registry
from lifedeploy.engines.base import PRECISIONS, Engine, EngineOptions
from lifedeploy.engines.lanes import Array, DeviceLane, Lane, WithoutCopies, buffers
from lifedeploy.errors import ArtifactError, ParityError, UsageError
from lifedeploy.exporters import inspect as onnx_inspect
from lifedeploy.machine import cores, describe, gpu_state
from lifedeploy.workflows.build import BuildRequest, build, prove
from lifedeploy.workflows.find import find, newest_export
from lifedeploy.workflows.progress import Say, silent

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


@dataclass(frozen=True)
class _Member:
    """One contender before it is opened."""

    method: str
    engine: type[Engine]
    path: Path
    precision: str
    mac_ratio: float | None
    weights: str
    parity: dict[str, Any] | None
    note: str


@dataclass(frozen=True)
class _Team:
    """What is compared with each other: one model's methods on one engine."""

    model: str
    members: tuple[_Member, ...]

    @property
    def label(self) -> str:
        first = self.members[0]
        return f"{first.engine.name} {first.precision}"


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
    teams = list(_teams(request, workspace, say))
    before = gpu_state()
    rows: list[Row] = []
    for team, mode, batch in product(teams, request.modes, request.batches):
        rows += _contest(team, mode, batch, request, say, progress)
    after = gpu_state()
    profiles: list[Profile] = []
    if request.profile:
        for team, batch in product(teams, request.batches):
            profiles += _profiles(team, batch, request, say)
    machine = describe(threads=request.threads)
    if before:
        machine["gpu_state"] = {"before": before, "after": after}
    return BenchReport(machine, tuple(rows), now(), request.command, tuple(profiles))


def _teams(request: BenchRequest, workspace: Workspace, say: Say) -> Iterator[_Team]:
    """The engines to measure: built ones, or an ONNX file of another tool on the engines that are to run it."""
    target = find(request.model) if request.model is not None else None
    if target is not None and target.artifact is None:
        for name in request.engines or (registry.AUTO,):
            yield _foreign_team(target.path, name, say, trust=request.trust)
        return
    if target is not None and target.is_engine and not request.engines:
        assert target.artifact is not None
        yield _team(target.artifact)
        return
    if not request.engines:
        built = Workspace.engines_of(target.artifact) if target and target.artifact else workspace.engines()
        if not built:
            say("nothing is built yet: building")
            built = [build(BuildRequest(request.model), workspace, say).engine]
        yield _team(built[0])
        return
    export = newest_export(request.model, workspace)
    for name in request.engines:
        yield _team(_engine_of(export, name, workspace, say))


def _engine_of(export: Artifact, name: str, workspace: Workspace, say: Say) -> Artifact:
    """The newest build of ``NAME`` of this export, or the one of ``NAME:PRECISION``; built if there is none."""
    engine, precision = _parse(name)
    cls = registry.resolve(engine)
    if precision is None:
        for artifact in Workspace.engines_of(export):
            record = artifact.manifest.engine
            if record is not None and record.name == cls.name:
                return artifact
        say(f"building {cls.name}, which is not built yet")
    return build(BuildRequest(export.manifest_path, cls.name, precision or ""), workspace, say).engine


def _parse(name: str) -> tuple[str, str | None]:
    engine, _, precision = name.partition(":")
    if precision and precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} in {name!r} is unknown; there are: {', '.join(PRECISIONS)}")
    return engine, precision or None


def _foreign_team(path: Path, name: str, say: Say, *, trust: bool) -> _Team:
    """A file without a manifest: an ONNX graph may be run, a plan only if trusted, since plans hold code.

    Raises:
        ArtifactError: no ONNX file, or a damaged one; or a plan that is not trusted.
        UsageError: a plan, and not said of which engine.
    """
    if path.suffix == ".plan" and trust:
        if not name.startswith("tensorrt"):
            raise UsageError(
                f"{path} is a TensorRT plan, and {name} opens none", hint="--engine tensorrt, or tensorrt-rtx"
            )
        engine, precision = _parse(name)
        say(f"{path.name} was not built by lifedeploy: measured as it is, without baseline, schedule and parity")
        note = "no manifest: trusted, parity unknown"
        cls = registry.resolve(engine)
        return _Team(path.name, (_Member("unknown", cls, path, precision or "fp32", None, "unknown", None, note),))
    if path.suffix != ".onnx":
        hint = "say --trust if you know where the plan comes from" if path.suffix == ".plan" else None
        raise ArtifactError(
            f"{path} has no manifest beside it, and only ONNX files are measured without one", hint=hint
        )
    say(f"{path.name} was not exported by lifedeploy: measured as it is, without baseline, schedule and parity")
    facts = onnx_inspect.facts(onnx_inspect.load(path))
    engine, asked = _parse(name)
    cls = registry.resolve(engine)
    plan = cls.plan(asked or "fp32")
    # ONNX Runtime computes in the precision of the graph; OpenVINO in the one it is told, and says which it was.
    precision = facts.precision if cls.name.startswith("onnxruntime") else plan.precision
    note = "; ".join(filter(None, (plan.note, "no manifest: parity unknown")))
    return _Team(path.name, (_Member("unknown", cls, path, precision, None, "unknown", None, note),))


def _team(chosen: Artifact) -> _Team:
    """The engine with its baseline and bound, checked.

    Raises:
        ParityError: one of them failed its gate, or never went through it.
    """
    chosen = prove(chosen)
    members = []
    for method in ("dense", "first-k", "life"):
        artifact = chosen.sibling(method)
        if artifact is None:
            continue
        artifact.check()
        manifest = artifact.manifest
        record = manifest.engine
        if record is None:
            raise ArtifactError(f"{artifact.manifest_path} describes no engine")
        if not (manifest.parity or {}).get("passed"):
            failures = (manifest.parity or {}).get("failures") or ["it was never checked"]
            raise ParityError(
                f"no speed for {artifact.path}: it did not pass its parity gate ({failures[0]})",
                hint="lifedeploy build-engine --force builds and checks it again",
            )
        members.append(
            _Member(
                method,
                registry.running(record.name, artifact.path),
                artifact.path,
                record.precision,
                manifest.macs["speedup_bound"],
                manifest.spec.provenance.weights,
                {key: manifest.parity[key] for key in ("max_abs", "max_rel", "top1", "overlap")}
                if manifest.parity
                else None,
                record.note,
            )
        )
    return _Team(chosen.name, tuple(members))


def _contest(team: _Team, mode: str, batch: int, request: BenchRequest, say: Say, progress: Progress) -> list[Row]:
    """All methods of one team take turns in one mode at one batch size."""
    label = f"{team.label}, {mode}, batch {batch}"
    streams = request.streams if mode == "throughput" else 1
    say(f"opening {label}")
    precisions = {}
    ways: dict[bool | None, None] = {}  # with copies, without, or on no device that would need them
    with ExitStack() as stack:
        contenders = []
        for member in team.members:
            engine = stack.enter_context(member.engine(member.path, _options(member, request, streams, batch)))
            precisions[member.method] = engine.precision
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
        rows += make_rows(subjects, samples, mode=mode, batch=batch, streams=streams, threads=threads, copies=copies)
    return rows


def _ways(lanes: tuple[Lane, ...], request: BenchRequest) -> Iterator[tuple[bool | None, tuple[Lane, ...]]]:
    """The lanes with copies and without, where that makes a difference."""
    on_device = [lane for lane in lanes if isinstance(lane, DeviceLane)]
    if not on_device:
        yield None, lanes
        return
    for copies in request.copies:
        yield copies, lanes if copies else tuple(WithoutCopies(lane) for lane in on_device)


def _profiles(team: _Team, batch: int, request: BenchRequest, say: Say) -> Iterator[Profile]:
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


def _options(member: _Member, request: BenchRequest, streams: int, batch: int) -> EngineOptions:
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
