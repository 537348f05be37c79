"""What is measured against what: engines that are built, or are built for it, each with its baseline and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine, PrecisionPlan
from lifedeploy.errors import ArtifactError, ParityError, UsageError
from lifedeploy.exporters import inspect as onnx_inspect
from lifedeploy.records import ParityRecord
from lifedeploy.spec import PRECISIONS
from lifedeploy.text import quoted
from lifedeploy.workflows.build import BuildRequest, build, prove
from lifedeploy.workflows.find import find, newest_export, quantized_precision
from lifedeploy.workflows.progress import Say


@dataclass(frozen=True)
class Member:
    """One contender before it is opened."""

    method: str
    engine: type[Engine]
    path: Path
    precision: str
    mac_ratio: float | None
    weights: str
    parity: dict[str, float | None] | None
    note: str
    manifest: Path | None = None  # None: a file of another tool


@dataclass(frozen=True)
class Team:
    """What is compared with each other: one model's methods on one engine."""

    model: str
    members: tuple[Member, ...]

    @property
    def label(self) -> str:
        first = self.members[0]
        return f"{first.engine.name} {first.precision}"


@dataclass(frozen=True)
class _Asked:
    """An engine as it was named, and what that comes to here."""

    name: str
    engine: type[Engine]
    precision: str  # '': none was named
    plan: PrecisionPlan
    built: Artifact | None = None


def teams(
    model: Path | None, engines: Sequence[str], workspace: Workspace, say: Say, *, trust: bool
) -> tuple[list[Team], tuple[str, ...]]:
    """The engines to measure, and what has to be said about them.

    They are built ones, or built for it, or an ONNX file of another tool on the engines that are to run it. What comes
    to the same engine and precision twice is measured once.
    """
    target = find(model) if model is not None else None
    if target is not None and target.artifact is None:
        return _foreign_teams(target.path, engines or (registry.AUTO,), say, trust=trust)
    if target is not None and target.is_engine and not engines:
        assert target.artifact is not None
        return [_team(target.artifact)], ()
    if not engines:
        built = Workspace.engines_of(target.artifact) if target and target.artifact else workspace.engines()
        if not built:
            say("nothing is built yet: building")
            built = [build(BuildRequest(model), workspace, say).engine]
        return [_team(built[0])], ()
    export, usual = newest_export(model, workspace), quantized_precision(model)
    asked, warnings = _distinct([_ask(export, name, usual) for name in engines], say)
    return [_team(_built(export, one, workspace, say)) for one in asked], warnings


def _ask(export: Artifact, name: str, usual: str) -> _Asked:
    """The newest build of ``NAME`` of this export, or the one of ``NAME:PRECISION``, which may not be built yet.

    ``usual`` is the precision that a calibrated graph was named by; ''.
    """
    engine, precision = _parse(name)
    precision = precision or usual
    cls = registry.resolve(engine, precision=precision)
    cls.require_precision(precision)
    if not precision:
        for artifact in Workspace.engines_of(export):
            record = artifact.manifest.engine
            if record is not None and record.name == cls.name:
                return _Asked(name, cls, "", PrecisionPlan(record.precision, record.note), artifact)
    return _Asked(name, cls, precision, cls.plan(precision or cls.usual))


def _distinct(asked: Sequence[_Asked], say: Say) -> tuple[list[_Asked], tuple[str, ...]]:
    """Each engine in each precision once: twice it would take turns with itself."""
    found: dict[tuple[str, str], _Asked] = {}
    warnings: list[str] = []
    for one in asked:
        key = one.engine.name, one.plan.precision
        other = found.setdefault(key, one)
        if other is not one:
            why = f" ({note})" if (note := one.plan.note or other.plan.note) else ""
            warnings.append(f"{other.name} and {one.name} both are {' '.join(key)} here: measured once{why}")
            say(warnings[-1])
    return list(found.values()), tuple(warnings)


def _built(export: Artifact, asked: _Asked, workspace: Workspace, say: Say) -> Artifact:
    if asked.built is not None:
        return asked.built
    if not asked.precision:
        say(f"building {asked.engine.name}, which is not built yet")
    return build(BuildRequest(export.manifest_path, asked.engine.name, asked.precision), workspace, say).engine


def _parse(name: str) -> tuple[str, str]:
    engine, _, precision = name.partition(":")
    if precision and precision not in PRECISIONS:
        offered = ", ".join(PRECISIONS)
        raise UsageError(f"precision {quoted(precision)} in {quoted(name)} is unknown; there are: {offered}")
    return engine, precision


def _foreign_teams(path: Path, names: Sequence[str], say: Say, *, trust: bool) -> tuple[list[Team], tuple[str, ...]]:
    """A file without a manifest: an ONNX graph may be run, a plan only if trusted, since plans hold code.

    Raises:
        ArtifactError: no ONNX file, or a damaged one; or a plan that is not trusted.
        UsageError: a plan, and not said of which engine.
    """
    if path.suffix == ".plan" and trust:
        kind, unknown = "built", "no manifest: trusted, parity unknown"
        asked = [_ask_plan(path, name) for name in names]
    elif path.suffix == ".onnx":
        kind, unknown = "exported", "no manifest: parity unknown"
        facts = onnx_inspect.facts(onnx_inspect.load(path))
        asked = [_ask_graph(facts.precision, name) for name in names]
    else:
        hint = "say --trust if you know where the plan comes from" if path.suffix == ".plan" else None
        raise ArtifactError(
            f"{path} has no manifest beside it, and only ONNX files are measured without one", hint=hint
        )
    say(f"{path.name} was not {kind} by lifedeploy: measured as it is, without baseline, schedule and parity")
    distinct, warnings = _distinct(asked, say)
    made = []
    for one in distinct:
        note = "; ".join(filter(None, (one.plan.note, unknown)))
        member = Member("unknown", one.engine, path, one.plan.precision, None, "unknown", None, note)
        made.append(Team(path.name, (member,)))
    return made, warnings


def _ask_plan(path: Path, name: str) -> _Asked:
    if not name.startswith("tensorrt"):
        raise UsageError(f"{path} is a TensorRT plan, and {name} opens none", hint="--engine tensorrt, or tensorrt-rtx")
    engine, precision = _parse(name)
    cls = registry.resolve(engine)
    return _Asked(name, cls, precision, PrecisionPlan(precision or cls.usual))


def _ask_graph(precision: str, name: str) -> _Asked:
    """ONNX Runtime computes in the graph's ``precision``; OpenVINO in the one it is told, and says which it was."""
    engine, asked = _parse(name)
    cls = registry.resolve(engine, opens_onnx=True)
    plan = cls.plan(asked or cls.usual)
    return _Asked(name, cls, asked, replace(plan, precision=precision) if cls.name.startswith("onnxruntime") else plan)


def _team(chosen: Artifact) -> Team:
    """The engine with its baseline and bound, checked.

    Raises:
        ParityError: one of them failed its gate, or never went through it.
        ArtifactError: it was built of another graph than is there now.
    """
    chosen = prove(chosen)
    members = []
    for method in sorted({chosen.method, *chosen.manifest.siblings}, key=_place):
        artifact = chosen.sibling(method)
        assert artifact is not None  # it is one of them
        registry.verify(artifact)
        artifact.require_complete()
        manifest = artifact.manifest
        record = manifest.engine
        if record is None:
            raise ArtifactError(f"{artifact.manifest_path} describes no engine")
        if manifest.parity is None or not manifest.parity["passed"]:
            failures = (manifest.parity or {}).get("failures") or ["it was never checked"]
            raise ParityError(
                f"no speed for {artifact.path}: it did not pass its parity gate ({failures[0]})",
                hint="lifedeploy build-engine --force builds and checks it again",
            )
        members.append(
            Member(
                method,
                registry.running(record.name, artifact.path),
                artifact.path,
                record.precision,
                manifest.macs["speedup_bound"],
                manifest.spec.provenance.weights,
                _summary(manifest.parity),
                record.note,
                artifact.manifest_path,
            )
        )
    return Team(chosen.name, tuple(members))


def _place(method: str) -> tuple[int, str]:
    """In a table: the baseline, the bound on speed, then what is slimmed."""
    return (methods.BASELINE, methods.BOUND, methods.SLIMMED).index(methods.role_of(method)), method


def _summary(parity: ParityRecord) -> dict[str, float | None]:
    return {
        "max_abs": parity["max_abs"],
        "max_rel": parity["max_rel"],
        "top1": parity["top1"],
        "overlap": parity["overlap"],
    }
