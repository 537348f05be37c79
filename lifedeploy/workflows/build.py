"""``build-engine``: an exported model and its baselines in; engines that passed the parity gate out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lifedeploy.artifact import Artifact, EngineRecord, Manifest, Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildJob, BuildOptions, Built, Engine, Progress
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ArtifactError, EngineError, UsageError
from lifedeploy.exporters import forms
from lifedeploy.exporters.precision import HALF
from lifedeploy.files import now, sha256
from lifedeploy.optional import versions
from lifedeploy.records import FormedRecord, OptionsRecord, QuantizationRecord
from lifedeploy.spec import QUANTIZED, GraphForm
from lifedeploy.text import printable
from lifedeploy.typed import described
from lifedeploy.workflows import gate
from lifedeploy.workflows.find import newest_export, quantized_precision
from lifedeploy.workflows.members import members_of
from lifedeploy.workflows.progress import Say, silent
from lifedeploy.writing import atomic_folder, in_use


@dataclass(frozen=True)
class BuildRequest:
    """What to build."""

    model: Path | None = None  # None: the newest export
    engine: str = registry.AUTO
    precision: str = ""  # '': what is usual for the engine
    force: bool = False  # build anew even if nothing changed
    options: BuildOptions = field(default_factory=BuildOptions)


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


def build(
    request: BuildRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = lambda phase, share: None,
) -> BuildReport:
    """Build engines of a model, its dense baseline and its first-k bound, and hold each against PyTorch's answers.

    An engine that can be built but not run here is kept with the reason; its graph has been held against PyTorch, and
    building it again where it runs completes the evidence.

    Raises:
        UsageError, EngineUnavailableError: no such engine, or not here, or options that it has no use for.
        ArtifactError: no model, or its files are not those of its manifest.
        EngineError, ParityError: the runtime refused, or computes something else.
    """
    folder = newest_export(request.model, workspace).folder
    with in_use(folder, *(folder / precision for precision in QUANTIZED)):
        return _build(request, workspace, say, progress)


def _build(request: BuildRequest, workspace: Workspace, say: Say, progress: Progress) -> BuildReport:
    source = newest_export(request.model, workspace)
    asked = request.precision or quantized_precision(request.model)
    cls = registry.resolve(request.engine, to_build=True, precision=asked)
    cls.require_options(request.options)
    requested = asked or cls.usual
    cls.require_precision(requested)
    _require_remainder(requested, request.options)
    plan = cls.plan(requested)
    form = cls.form(plan.precision, request.options)
    runs = registry.examine(cls)
    folder = source.folder / f"{cls.name}-{plan.precision}"
    members = members_of(source, plan.precision)
    record = EngineRecord(
        name=cls.name,
        precision=plan.precision,
        requested=requested,
        note=plan.note,
        runtime=cls.can_build().version,
        processor=cls.target(request.options),
        options=_plain(request.options),
        pending="" if runs.ok else runs.reason,
    )
    found = None if request.force else _unchanged(folder, members, record)
    if found:
        return found
    for member in members.values():
        registry.verify(member)
        member.require_complete()

    manifests = {}
    with atomic_folder(folder) as staging:
        for method, member in members.items():
            stem = member.manifest_path.stem
            say(f"building {stem} for {cls.name} {plan.precision}")
            graph, about = _in_form(member, form, staging / f"{stem}.{plan.precision}.onnx")
            built = cls.build(BuildJob(member, graph, staging, stem, plan.precision, request.options, progress))
            if graph.parent == staging and graph.name not in built.files:
                graph.unlink()
            own = replace(
                record,
                source=_above(member, folder, member.manifest.file),
                source_sha256=member.manifest.sha256,
                files={name: sha256(staging / name) for name in built.files},
                graph=about,
                details=built.details,
            )
            say(f"checking {stem} on {cls.name}")
            manifests[method] = _finished(cls, staging, folder, member, members, built, own)
            manifests[method].write(staging / f"{stem}.json")
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=False)


def _plain(options: BuildOptions) -> OptionsRecord:
    """Options that were given, as JSON keeps them."""
    given = options.given
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if options.timing_cache:
        plain["timing_cache"] = printable(str(options.timing_cache))
    return described(plain, OptionsRecord, "the options of this build")


def _in_form(member: Artifact, form: GraphForm, target: Path) -> tuple[Path, FormedRecord]:
    """The graph to compile, and what was done and proven about it."""
    if form.as_exported:
        return member.path, {}
    done = forms.prepare(member.path, form, target).to_dict()
    about = described(done, FormedRecord, f"what was done to {member.path.name}")
    if form.precision != "fp32" and registry.examine(OnnxRuntime).ok:
        precision = member.precision if member.precision in QUANTIZED else form.precision
        evidence, reach = gate.check_graph(target, member, precision, form.precision)
        evidence.require(f"{member.path.name} turned into {form.precision.upper()}")
        about["parity"], about["reach"] = evidence.to_dict(), reach.to_dict()
    return target, about


def _finished(
    cls: type[Engine],
    staging: Path,
    folder: Path,
    member: Artifact,
    members: dict[str, Artifact],
    built: Built,
    record: EngineRecord,
) -> Manifest:
    """The manifest of what was built: with its evidence, or with the reason why there is none yet."""
    manifest = replace(
        member.manifest,
        kind="engine",
        file=built.main,
        sha256=record.files[built.main],
        parity=None,
        reference=_above(member, folder, member.manifest.reference),
        checkpoint=_above(member, folder, member.manifest.checkpoint),
        siblings={other: path.manifest_path.name for other, path in members.items()},
        engine=record,
        quantization=_without_layers(member.manifest.quantization),
        versions=versions(),
        created=now(),
    )
    if record.pending:
        return manifest
    # Trusted, since this very process has just built it, in a folder of its own.
    checked = gate.check(cls, staging / built.main, member, record.precision, trust=True)
    return _proven(checked, member, manifest)


def _without_layers(found: QuantizationRecord) -> QuantizationRecord:
    kept = found.copy()
    kept.pop("layers", None)
    return kept


def _proven(checked: gate.Checked, member: Artifact, manifest: Manifest) -> Manifest:
    """The manifest with the evidence that its engine computes what PyTorch does.

    Raises:
        ParityError, EngineError: it does not, or in another precision than it was built for.
    """
    record, stem = manifest.engine, member.manifest_path.stem
    assert record is not None  # it is an engine's
    checked.evidence.require(f"{stem} on {record.name} {checked.precision}")
    if checked.precision != record.precision:
        raise EngineError(f"{record.name} runs {stem} in {checked.precision}, though built for {record.precision}")
    details = record.details
    if checked.eight_bits is not None:
        details = details.copy()
        details["eight_bits"] = {"products": checked.eight_bits, "of": len(member.manifest.quantized_products)}
    return replace(
        manifest,
        inputs=checked.inputs,
        outputs=checked.outputs,
        parity=checked.evidence.to_dict(),
        engine=replace(record, pending="", details=details),
    )


def _above(member: Artifact, folder: Path, name: str) -> str:
    """A file of ``member``'s manifest as seen from ``folder``, beside or below it."""
    return os.path.relpath(member.folder / name, folder) if name else ""


def _require_remainder(precision: str, options: BuildOptions) -> None:
    if not options.remainder:
        return
    if precision not in QUANTIZED:
        raise UsageError(f"--remainder is for quantised graphs ({', '.join(QUANTIZED)}), and this is {precision}")
    if options.remainder not in HALF:
        raise UsageError(f"--remainder {options.remainder!r} is unknown; there are: {', '.join(HALF)}")


def _unchanged(folder: Path, members: dict[str, Artifact], wanted: EngineRecord) -> BuildReport | None:
    """The build in ``folder``, if it is of the same files, by the same runtime, for the same request and processor."""
    found = {}
    for method, member in members.items():
        path = folder / member.manifest_path.name
        if not path.is_file():
            return None
        try:
            built = Artifact.read(path)
            registry.verify(built)
            built.require_complete()
        except (ArtifactError, UsageError):
            return None  # damaged, or of an engine that there is none of: build it again
        record = built.manifest.engine
        if record is None or record.source_sha256 != member.manifest.sha256:
            return None
        same = ("name", "requested", "note", "runtime", "processor", "options")
        if any(getattr(record, name) != getattr(wanted, name) for name in same):
            return None
        if built.manifest.versions.get("lifedeploy") != versions().get("lifedeploy"):
            return None
        found[method] = built
    manifests = {method: built.manifest for method, built in found.items()}
    if not wanted.pending:
        manifests = _complete(found, members)
    (folder / "model.json").touch()  # "what was built last" is what was asked for last
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=True)


def require_current(engine: Artifact) -> None:
    """Make sure that the graph which an engine was built of is still the one beside it, if there is one.

    Raises:
        ArtifactError: it has been calibrated or exported anew since.
    """
    record = engine.manifest.engine
    if record is None or not record.source:
        return
    source = (engine.folder / record.source).with_suffix(".json")
    if source.exists() and Artifact.read(source).manifest.sha256 != record.source_sha256:
        raise ArtifactError(
            f"{engine.path} was built of another {record.source} than is there now",
            hint=f"lifedeploy build-engine {engine.export.folder} --engine {record.name} --{record.requested}",
        )


def prove(engine: Artifact) -> Artifact:
    """Complete the evidence of an engine that was built where it could not run; others are given back as they are.

    Raises:
        EngineUnavailableError: it cannot run here either.
        ArtifactError: what it was built of is no longer there to be compared with.
        ParityError, EngineError: it does not compute what PyTorch does.
    """
    record = engine.manifest.engine
    require_current(engine)
    if record is None or not record.pending:
        return engine
    registry.running(record.name, engine.path)
    members = members_of(engine.export, record.precision)
    built = {method: Artifact.read(engine.folder / member.manifest_path.name) for method, member in members.items()}
    _complete(built, members)
    return Artifact.read(engine.manifest_path)


def _complete(built: dict[str, Artifact], members: dict[str, Artifact]) -> dict[str, Manifest]:
    """Hold against PyTorch what is still to be, and write it down. It was built somewhere else, or by somebody else:
    it is opened like any other engine, once its manifest's hashes, version and processor were compared.

    Raises:
        ArtifactError, EngineError: they are not those of its manifest, or not of this machine.
        ParityError: it does not compute what PyTorch does.
    """
    done = {method: artifact.manifest for method, artifact in built.items()}
    for method, artifact in built.items():
        record, member = artifact.manifest.engine, members[method]
        if record is not None and record.pending:
            registry.verify(artifact)
            checked = gate.check(registry.get(record.name), artifact.path, member, record.precision)
            done[method] = _proven(checked, member, artifact.manifest)
            done[method].write(artifact.manifest_path)
    return done
