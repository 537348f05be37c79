"""What is measured against what: engines that are built, or are built for it, each with its baseline and its bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import PRECISIONS, Engine
from lifedeploy.errors import ArtifactError, ParityError, UsageError
from lifedeploy.exporters import inspect as onnx_inspect
from lifedeploy.workflows.build import BuildRequest, build, prove
from lifedeploy.workflows.find import find, newest_export
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
    parity: dict[str, Any] | None
    note: str


@dataclass(frozen=True)
class Team:
    """What is compared with each other: one model's methods on one engine."""

    model: str
    members: tuple[Member, ...]

    @property
    def label(self) -> str:
        first = self.members[0]
        return f"{first.engine.name} {first.precision}"


def teams(model: Path | None, engines: Sequence[str], workspace: Workspace, say: Say, *, trust: bool) -> Iterator[Team]:
    """The engines to measure: built ones, or an ONNX file of another tool on the engines that are to run it."""
    target = find(model) if model is not None else None
    if target is not None and target.artifact is None:
        for name in engines or (registry.AUTO,):
            yield _foreign_team(target.path, name, say, trust=trust)
        return
    if target is not None and target.is_engine and not engines:
        assert target.artifact is not None
        yield _team(target.artifact)
        return
    if not engines:
        built = Workspace.engines_of(target.artifact) if target and target.artifact else workspace.engines()
        if not built:
            say("nothing is built yet: building")
            built = [build(BuildRequest(model), workspace, say).engine]
        yield _team(built[0])
        return
    export = newest_export(model, workspace)
    for name in engines:
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


def _foreign_team(path: Path, name: str, say: Say, *, trust: bool) -> Team:
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
        return Team(path.name, (Member("unknown", cls, path, precision or cls.usual, None, "unknown", None, note),))
    if path.suffix != ".onnx":
        hint = "say --trust if you know where the plan comes from" if path.suffix == ".plan" else None
        raise ArtifactError(
            f"{path} has no manifest beside it, and only ONNX files are measured without one", hint=hint
        )
    say(f"{path.name} was not exported by lifedeploy: measured as it is, without baseline, schedule and parity")
    facts = onnx_inspect.facts(onnx_inspect.load(path))
    engine, asked = _parse(name)
    cls = registry.resolve(engine, opens_onnx=True)
    plan = cls.plan(asked or cls.usual)
    # ONNX Runtime computes in the precision of the graph; OpenVINO in the one it is told, and says which it was.
    precision = facts.precision if cls.name.startswith("onnxruntime") else plan.precision
    note = "; ".join(filter(None, (plan.note, "no manifest: parity unknown")))
    return Team(path.name, (Member("unknown", cls, path, precision, None, "unknown", None, note),))


def _team(chosen: Artifact) -> Team:
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
            Member(
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
    return Team(chosen.name, tuple(members))
