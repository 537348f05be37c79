"""``build-engine``: an exported model and its baselines in; engines that passed the parity gate out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lifedeploy.artifact import Artifact, EngineRecord, Manifest, Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildJob, BuildOptions
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.files import now, sha256
from lifedeploy.optional import require_installed, versions
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.records import FormedRecord, OptionsRecord
from lifedeploy.spec import HALVES, QUANTIZED, GraphForm
from lifedeploy.targets.evidence import check, compiled, complete, proven
from lifedeploy.targets.find import export_of, graphs_of, quantized_precision
from lifedeploy.targets.tunable import unlike_built
from lifedeploy.text import printable
from lifedeploy.writing import atomic_folder, in_use


@dataclass(frozen=True, kw_only=True)
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
    manifests: dict[str, Manifest]  # method → manifest
    reused: bool

    @property
    def record(self) -> EngineRecord:
        """How it was built."""
        record = self.engine.manifest.engine
        assert record is not None  # an engine's manifest always has one
        return record

    @property
    def fusion_note(self) -> str:
        """What there is to say of attentions that could be fused and are not, or are not known to be; '' of none."""
        fusion = self.record.details.fusion
        return fusion.note if fusion is not None and (fusion.unfused or fusion.attention is None) else ""

    @property
    def unlike_tuned(self) -> str:
        """What is another there than where the model's schedule was tuned, in a sentence; '' where nothing is."""
        tuned, record = self.engine.manifest.tuned, self.record
        if tuned is None:
            return ""
        return unlike_built(tuned, record)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        engines = {method: manifest.to_dict() for method, manifest in self.manifests.items()}
        facts = {"folder": str(self.engine.folder), "reused": self.reused, "unlike_tuned": self.unlike_tuned}
        return {"schema": 1, **facts, "engines": engines}


def build(
    request: BuildRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = unwatched,
) -> BuildReport:
    """Build engines of a model, its dense baseline and its first-k bound, and hold each against PyTorch's answers.

    An engine that can be built but not run here is kept with the reason; its graph has been held against PyTorch, and
    building it again where it runs completes the evidence.

    Raises:
        UsageError, EngineUnavailableError: no such engine, or not here, or options that it has no use for.
        NotInstalledError: it compiles another form of the graph, and what makes that is not there.
        ArtifactError: no model, or its files are not those of its manifest.
        EngineError, ParityError: the runtime refused, or computes something else.
    """
    folder = export_of(request.model, workspace).folder
    with in_use(folder, *(folder / precision for precision in QUANTIZED)):
        return _build(request, workspace, say, progress)


def _build(request: BuildRequest, workspace: Workspace, say: Say, progress: Progress) -> BuildReport:
    source = export_of(request.model, workspace)
    asked = request.precision or quantized_precision(request.model)
    cls = registry.resolve(request.engine, to_build=True, precision=asked)
    cls.require_options(request.options)
    requested = asked or cls.usual
    cls.require_precision(requested)
    _require_remainder(requested, request.options)
    plan = cls.plan(requested)
    form = cls.form(plan.precision, request.options)
    if not form.as_exported:
        require_installed("onnx_ir", extra="export")  # before anything is built
    runs = registry.examine(cls)
    folder = source.folder / f"{cls.name}-{plan.precision}"
    graphs = graphs_of(source, plan.precision)
    record = EngineRecord(
        name=cls.name,
        precision=plan.precision,
        requested=requested,
        note=plan.note,
        runtime=cls.can_build().version,
        processor=cls.processor(request.options),
        options=_plain(request.options),
        pending="" if runs.ok else runs.reason,
    )
    unchanged = None if request.force else _unchanged(folder, graphs, record)
    if unchanged:
        return unchanged
    for exported in graphs.values():
        registry.verify(exported)
        exported.require_complete()

    manifests = {}
    with atomic_folder(folder) as staging:
        for method, exported in graphs.items():
            stem = exported.manifest_path.stem
            say(f"building {stem} for {cls.name} {plan.precision}")
            path, formed = _in_form(exported, form, staging / f"{stem}.{plan.precision}.onnx")
            job = BuildJob(
                source=exported,
                graph=path,
                folder=staging,
                stem=stem,
                precision=plan.precision,
                options=request.options,
                progress=progress,
            )
            built = cls.build(job)
            if path.parent == staging and path.name not in built.files:
                path.unlink()
            built_record = replace(
                record,
                source=_above(exported, folder, exported.manifest.file),
                source_sha256=exported.manifest.sha256,
                files={name: sha256(staging / name) for name in built.files},
                graph=formed,
                details=built.details,
            )
            manifest = replace(
                exported.manifest,
                kind="engine",
                file=built.main,
                sha256=built_record.files[built.main],
                parity=None,
                reference=_above(exported, folder, exported.manifest.reference),
                checkpoint=_above(exported, folder, exported.manifest.checkpoint),
                siblings={name: graph.manifest_path.name for name, graph in graphs.items()},
                engine=built_record,
                quantization=exported.manifest.quantization.but(layers=None),
                versions=versions(),
                created=now(),
            )
            if not record.pending:
                say(f"checking {stem} on {cls.name}")
                # Trusted, since this very process has just built it, in a folder of its own.
                target = compiled(exported, cls, staging / built.main, plan.precision)
                manifest = proven(check(target, exported, trust=True), exported, manifest)
            manifests[method] = manifest
            manifest.write(staging / f"{stem}.json")
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=False)


def _plain(options: BuildOptions) -> OptionsRecord:
    """Options that were given, as JSON keeps them."""
    given = options.given
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if options.timing_cache:
        plain["timing_cache"] = printable(str(options.timing_cache))
    return OptionsRecord.read(plain, "the options of this build")


def _in_form(graph: Artifact, form: GraphForm, destination: Path) -> tuple[Path, FormedRecord]:
    """The file to compile, and what was done to it and proven of it."""
    if form.as_exported:
        return graph.path, FormedRecord()
    from lifedeploy.targets.formed import in_form  # takes graphs apart, which runtimes alone cannot

    return destination, in_form(graph, form, destination)


def _above(graph: Artifact, folder: Path, name: str) -> str:
    """A file of ``graph``'s manifest as seen from ``folder``, beside or below it."""
    return os.path.relpath(graph.folder / name, folder) if name else ""


def _require_remainder(precision: str, options: BuildOptions) -> None:
    if not options.remainder:
        return
    if precision not in QUANTIZED:
        raise UsageError(f"--remainder is for quantised graphs ({', '.join(QUANTIZED)}), and this is {precision}")
    if options.remainder not in HALVES:
        raise UsageError(f"--remainder {options.remainder!r} is unknown; there are: {', '.join(HALVES)}")


def _unchanged(folder: Path, graphs: dict[str, Artifact], wanted: EngineRecord) -> BuildReport | None:
    """The build in ``folder``, if it is of the same files, by the same runtime, for the same request and processor."""
    engines = {}
    for method, graph in graphs.items():
        path = folder / graph.manifest_path.name
        if not path.is_file():
            return None
        try:
            engine = Artifact.read(path)
            registry.verify(engine)
            engine.require_complete()
        except (ArtifactError, UsageError):
            return None  # damaged, or of an engine that there is none of: build it again
        record = engine.manifest.engine
        if record is None or record.source_sha256 != graph.manifest.sha256:
            return None
        same = ("name", "requested", "note", "runtime", "processor", "options")
        if any(getattr(record, name) != getattr(wanted, name) for name in same):
            return None
        if engine.manifest.versions.get("lifedeploy") != versions().get("lifedeploy"):
            return None
        engines[method] = engine
    manifests = {method: engine.manifest for method, engine in engines.items()}
    if not wanted.pending:
        manifests = complete(engines, graphs)
    (folder / "model.json").touch()  # "what was built last" is what was asked for last
    return BuildReport(Artifact.read(folder / "model.json"), manifests, reused=True)
