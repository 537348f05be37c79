"""``build-engine``: an exported model and its baselines in; engines that passed the parity gate out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lifedeploy.artifact import Artifact, EngineRecord, Manifest, TensorSpec, Workspace, atomic_folder, now, sha256
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import parity_samples
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.errors import ArtifactError, EngineError
from lifedeploy.evaluation import parity
from lifedeploy.machine import identity
from lifedeploy.optional import versions
from lifedeploy.workflows.find import newest_export
from lifedeploy.workflows.progress import Say, silent


@dataclass(frozen=True)
class BuildRequest:
    """What to build."""

    model: Path | None = None  # None: the newest export
    engine: str = registry.AUTO
    precision: str = "fp32"
    force: bool = False  # build anew even if nothing changed


@dataclass(frozen=True)
class BuildReport:
    """What was built, or found built."""

    engine: Artifact  # of the slimmed model
    members: dict[str, Manifest]  # method → manifest
    reused: bool

    @property
    def record(self) -> EngineRecord:
        """How it was built."""
        record = self.engine.manifest.engine
        assert record is not None  # an engine's manifest always has one
        return record

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        members = {method: manifest.to_dict() for method, manifest in self.members.items()}
        return {"schema": 1, "folder": str(self.engine.folder), "reused": self.reused, "engines": members}


def build(request: BuildRequest, workspace: Workspace, say: Say = silent) -> BuildReport:
    """Build engines of a model, its dense baseline and its first-k bound, and hold each against PyTorch's answers.

    Raises:
        UsageError, EngineUnavailableError: no such engine, or not here.
        ArtifactError: no model, or its files are not those of its manifest.
        EngineError, ParityError: the runtime refused, or computes something else.
    """
    source = newest_export(request.model, workspace)
    cls = registry.resolve(request.engine)
    plan = cls.plan(request.precision)
    folder = source.folder / f"{cls.name}-{plan.precision}"
    members = _members(source)
    record = EngineRecord(
        name=cls.name,
        precision=plan.precision,
        requested=request.precision,
        note=plan.note,
        runtime=cls.availability().version,
        processor=identity(),
    )
    found = None if request.force else _unchanged(folder, members, record)
    if found:
        return found
    for member in members.values():
        member.check()

    manifests = {}
    with atomic_folder(folder) as staging:
        for method, member in members.items():
            stem = member.manifest_path.stem
            say(f"building {stem} for {cls.name} {plan.precision}")
            built = cls.build(member, staging, stem, plan.precision)
            say(f"checking {stem} on {cls.name}")
            checked = _gate(cls, staging / built.main, member, plan.precision)
            checked.evidence.require(f"{stem} on {cls.name} {checked.precision}")
            if checked.precision != plan.precision:
                raise EngineError(f"{cls.name} runs {stem} in {checked.precision}, though built for {plan.precision}")
            own = replace(
                record,
                precision=checked.precision,
                source=f"../{member.manifest.file}",
                source_sha256=member.manifest.sha256,
                files={name: sha256(staging / name) for name in built.files},
            )
            manifests[method] = replace(
                member.manifest,
                kind="engine",
                file=built.main,
                sha256=own.files[built.main],
                inputs=checked.inputs,
                outputs=checked.outputs,
                parity=checked.evidence.to_dict(),
                reference=f"../{member.manifest.reference}",
                checkpoint=f"../{member.manifest.checkpoint}",
                siblings={other: path.manifest_path.name for other, path in members.items()},
                engine=own,
                versions=versions(),
                created=now(),
            )
            manifests[method].write(staging / f"{stem}.json")
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=False)


def _members(source: Artifact) -> dict[str, Artifact]:
    """The slimmed model and what it is compared with: method → artifact."""
    members = {source.method: source}
    for method in source.manifest.siblings:
        sibling = source.sibling(method)
        if sibling is not None:
            members[method] = sibling
    return members


def _unchanged(folder: Path, members: dict[str, Artifact], wanted: EngineRecord) -> BuildReport | None:
    """The build in ``folder``, if it is of the same files, by the same runtime, for the same request and processor."""
    manifests = {}
    for method, member in members.items():
        path = folder / member.manifest_path.name
        if not path.is_file():
            return None
        try:
            built = Artifact.read(path)
            built.check()
        except ArtifactError:
            return None  # damaged: build it again
        record = built.manifest.engine
        if record is None or record.source_sha256 != member.manifest.sha256:
            return None
        same = ("name", "requested", "note", "runtime", "processor")
        if any(getattr(record, name) != getattr(wanted, name) for name in same):
            return None
        if built.manifest.versions.get("lifedeploy") != versions().get("lifedeploy"):
            return None
        manifests[method] = built.manifest
    (folder / "model.json").touch()  # "what was built last" is what was asked for last
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=True)


@dataclass(frozen=True)
class _Checked:
    """What the gate found out about an engine."""

    evidence: parity.Parity
    precision: str  # what ran
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _gate(cls: type[Engine], path: Path, member: Artifact, precision: str) -> _Checked:
    """The engine's answers against PyTorch's."""
    manifest = member.manifest
    spec = manifest.spec
    samples = parity_samples(spec.preprocess, manifest.graph.get("batch_size"))
    in_graph = bool(manifest.graph.get("with_preprocess"))
    inputs = [model_input(sample.pixels, spec.preprocess, in_graph=in_graph) for sample in samples]
    reference = parity.recorded(member.folder / manifest.reference, spec.method, inputs)
    options = EngineOptions(precision=precision, method=spec.method)
    taps = parity.taps_for(spec)
    with cls(path, options) as engine:
        ran, inputs_of, outputs_of = engine.precision, engine.inputs, engine.outputs
        # A probe of its own, since a further output may change what the runtime fuses: logits come from the real one.
        probe = cls(path, replace(options, taps=taps)).open() if taps else None
        try:
            run = parity.asker(engine, probe, spec.schedule.tokens[-1])
            answers = [run(images) for images in inputs]
        finally:
            if probe is not None:
                probe.close()
    return _Checked(parity.compare(reference, answers, samples, ran), ran, inputs_of, outputs_of)
