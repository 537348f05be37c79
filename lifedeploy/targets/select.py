"""Which targets a verb takes. Nothing is built here and nothing proven: what is not built is named as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.engines.base import PrecisionPlan
from lifedeploy.errors import ArtifactError, UsageError, WeightsError
from lifedeploy.spec import PRECISIONS, ModelSpec
from lifedeploy.targets.evidence import require_passed
from lifedeploy.targets.find import ModelFile, export_of, find, newest, quantized_precision, variants
from lifedeploy.targets.target import RUNTIME, Target, graph_precision, named, of_artifact, target_of
from lifedeploy.text import quoted
from lifedeploy.typed import RANDOM_WEIGHTS


@dataclass(frozen=True)
class Variants:
    """One model's methods on one engine, which are compared with each other: the baseline first."""

    model: str
    targets: tuple[Target, ...]

    @property
    def label(self) -> str:
        """The engine and its precision, as tables name it."""
        return f"{self.targets[0].engine.name} {self.targets[0].precision}"


@dataclass(frozen=True, kw_only=True)
class WantedEngine:
    """An engine as it was named, and what that comes to here."""

    name: str  # NAME or NAME:PRECISION; '': none was named
    engine: str  # registry's name, or auto
    precision: str  # '': none was named
    plan: PrecisionPlan
    built: Artifact | None = None  # None: it is still to be built

    @property
    def key(self) -> tuple[str, str]:
        """Two of one key would be measured against themselves."""
        return self.engine, self.plan.precision


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What ``bench`` measures: engines of an export, or a file of another tool as it is."""

    engines: tuple[WantedEngine, ...] = ()  # some of them may have to be built
    files: tuple[Variants, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str = ""  # to be said before
    export: Artifact | None = None  # to build them of; None: nothing is to be built, or the newest


def for_bench(model: Path | None, engines: Sequence[str], workspace: Workspace, *, trust: bool) -> Selection:
    """The engines to measure: those named, else what was built last.

    What comes to the same engine and precision twice is measured once.

    Raises:
        UsageError, ArtifactError, EngineUnavailableError: one cannot be meant, or cannot run here.
    """
    file = find(model) if model is not None else None
    if file is not None and file.artifact is None:
        return _files(file.path, engines or (registry.AUTO,), trust=trust)
    if engines:
        export, usual = export_of(model, workspace), quantized_precision(model)
        wanted, warnings = _distinct([_wanted(export, name, usual) for name in engines])
        return Selection(engines=wanted, warnings=warnings, export=export)
    precision = quantized_precision(model)
    if precision:
        built = []  # the build finds out what there is of this calibration, and not of one before it
    elif file is None or file.artifact is None:
        built = workspace.engines()
    else:
        built = [file.artifact] if file.is_engine else Workspace.engines_of(file.artifact)
    last = WantedEngine(
        name="", engine=registry.AUTO, precision=precision, plan=PrecisionPlan(""), built=built[0] if built else None
    )
    return Selection(engines=(last,))


def for_comparison(engines: Sequence[str]) -> Selection:
    """The engines to compare methods on, each in the precision named or else its usual one; none: the fastest here.

    Raises:
        UsageError, EngineUnavailableError: one cannot be meant, or cannot run here.
    """
    wanted = []
    for name in engines or (registry.AUTO,):
        engine, precision = _parse(name)
        kind = registry.resolve(engine, precision=precision)
        kind.require_precision(precision)
        plan = kind.plan(precision or kind.usual)
        wanted.append(WantedEngine(name=name, engine=kind.name, precision=precision or kind.usual, plan=plan))
    distinct, warnings = _distinct(wanted)
    return Selection(engines=distinct, warnings=warnings)


def for_evaluation(models: Sequence[Path], runtime: str, workspace: Workspace) -> list[Target]:
    """The models named; without any, the engine built last or else the newest export, and its dense baseline.

    Raises:
        ArtifactError, UsageError, WeightsError, EngineUnavailableError: one cannot be had.
    """
    if models:
        return [named(model, runtime=runtime or RUNTIME) for model in models]
    last = newest(workspace)
    dense = last.sibling(methods.baseline().name)
    chosen = [last] + ([dense] if dense is not None and dense.method != last.method else [])
    return [target_of(ModelFile.of(artifact), runtime=runtime or RUNTIME) for artifact in chosen]


def for_prediction(model: Path | None, workspace: Workspace) -> Artifact:
    """The engine built last, else the newest export; or the artifact at ``model``.

    Raises:
        ArtifactError: there is none; or it has no manifest, which its classes stand in.
    """
    if model is None:
        return newest(workspace)
    artifact = find(model).artifact
    if artifact is None:
        raise ArtifactError(f"{model} was not exported by lifedeploy, so its classes and preprocessing are unknown")
    return artifact


def require_trained(path: Path, spec: ModelSpec) -> None:
    """Make sure that a model's answers mean something.

    Raises:
        WeightsError: its weights are random.
    """
    if spec.provenance.weights == RANDOM_WEIGHTS:
        raise WeightsError(
            f"{path} has random weights: any class it named would be made up",
            hint="export with --weights pretrained or --weights FILE",
        )


def for_packaging(model: Path | None, engine: str, workspace: Workspace) -> Artifact:
    """The engine ``NAME`` or ``NAME:PRECISION`` of a model, under the method that was named; without a name the engine
    that is meant: itself, of an export the one built last.

    Raises:
        ArtifactError: there is none, or it is a file of another tool.
        UsageError: there is no such engine or precision.
    """
    meant = for_prediction(model, workspace)
    if not engine and meant.manifest.kind == "engine":
        return meant
    export, (name, precision) = meant.export, _parse(engine or registry.AUTO)
    precision = precision or quantized_precision(model)
    wanted = "" if name == registry.AUTO else registry.get(name).name
    for built in Workspace.engines_of(export):
        record = built.manifest.engine
        if record is not None and wanted in ("", record.name) and precision in ("", record.precision):
            alike = built.sibling(meant.method)
            if alike is not None:
                return alike
    asked = f" --{precision}" if precision else ""
    raise ArtifactError(
        f"{export.folder}/ holds no engine{f' {engine}' if engine else asked and f' in {precision.upper()}'}",
        hint=f"lifedeploy build-engine {export.folder}{f' -e {wanted}' if wanted else ''}{asked}",
    )


def for_service(model: Path | None, digest: str, url: str, workspace: Workspace) -> Artifact:
    """The engine that a server says it has, by the SHA-256 of its main file: the model named, or one of its export.

    Raises:
        ArtifactError: there is no model, or none of its engines is what is served.
    """
    meant = for_prediction(model, workspace)
    if not digest:
        return meant
    engines = [variant for built in Workspace.engines_of(meant.export) for variant in variants(built).values()]
    for artifact in (meant, *engines):
        if artifact.manifest.sha256 == digest:
            return artifact
    raise ArtifactError(
        f"{url} serves another engine than {meant.export.folder}/ holds: its SHA-256 begins with {quoted(digest[:12])}",
        hint="name the model that was packaged",
    )


def variants_of(engine: Artifact) -> Variants:
    """A built engine with its baseline and bound.

    Raises:
        ParityError: one of them failed its gate, or never went through it.
        ArtifactError: one of them is damaged, or no engine.
        EngineUnavailableError: it does not run here.
    """
    targets = []
    for artifact in variants(engine).values():
        require_passed(artifact)
        targets.append(of_artifact(artifact))
    return Variants(engine.name, tuple(targets))


def _wanted(export: Artifact, name: str, usual: str) -> WantedEngine:
    """The newest build of ``NAME`` of this export, or the one of ``NAME:PRECISION``, which may not be built yet.

    ``usual`` is the precision that a calibrated graph was named by; ''.
    """
    engine, precision = _parse(name)
    precision = precision or usual
    kind = registry.resolve(engine, precision=precision)
    kind.require_precision(precision)
    if not precision:
        for built in Workspace.engines_of(export):
            record = built.manifest.engine
            if record is not None and record.name == kind.name:
                plan = PrecisionPlan(record.precision, record.note)
                return WantedEngine(name=name, engine=kind.name, precision="", plan=plan, built=built)
    return WantedEngine(name=name, engine=kind.name, precision=precision, plan=kind.plan(precision or kind.usual))


def _distinct(wanted: Sequence[WantedEngine]) -> tuple[tuple[WantedEngine, ...], tuple[str, ...]]:
    """Each engine in each precision once: twice it would take turns with itself."""
    by_key: dict[tuple[str, str], WantedEngine] = {}
    warnings: list[str] = []
    for engine in wanted:
        first = by_key.setdefault(engine.key, engine)
        if first is not engine:
            why = f" ({note})" if (note := engine.plan.note or first.plan.note) else ""
            both = f"{first.name} and {engine.name} both are {' '.join(engine.key)} here"
            warnings.append(f"{both}: measured once{why}")
    return tuple(by_key.values()), tuple(warnings)


def _parse(name: str) -> tuple[str, str]:
    engine, _, precision = name.partition(":")
    if precision and precision not in PRECISIONS:
        offered = ", ".join(PRECISIONS)
        raise UsageError(f"precision {quoted(precision)} in {quoted(name)} is unknown; there are: {offered}")
    return engine, precision


def _files(path: Path, names: Sequence[str], *, trust: bool) -> Selection:
    """A file without a manifest: an ONNX graph may be run, a plan only if trusted, since plans hold code.

    Raises:
        ArtifactError: no ONNX file, or a damaged one; or a plan that is not trusted.
        UsageError: a plan, and not said of which engine.
    """
    is_plan = path.suffix == ".plan"
    if path.suffix != ".onnx" and not (is_plan and trust):
        raise ArtifactError(
            f"{path} has no manifest beside it, and only ONNX files are measured without one",
            hint="say --trust if you know where the plan comes from" if is_plan else None,
        )
    precision = "" if is_plan else graph_precision(path, check=True)
    wanted, warnings = _distinct([_wanted_of_file(path, name, precision) for name in names])
    unknown = f"no manifest: {'trusted, ' if is_plan else ''}parity unknown"
    made_by = "built" if is_plan else "exported"
    note = f"{path.name} was not {made_by} by lifedeploy: measured as it is, without baseline, schedule and parity"
    targets = [
        Target(
            name=path.name,
            path=path,
            engine=registry.get(engine.engine),
            precision=engine.plan.precision,
            note="; ".join(filter(None, (engine.plan.note, unknown))),
        )
        for engine in wanted
    ]
    return Selection(files=tuple(Variants(path.name, (target,)) for target in targets), warnings=warnings, note=note)


def _wanted_of_file(path: Path, name: str, precision: str) -> WantedEngine:
    """Runtimes that keep a graph's precision compute in it; others in the one they are told, and say which it was."""
    engine, asked = _parse(name)
    if path.suffix == ".plan":
        if engine == registry.AUTO or path.suffix not in registry.get(engine).endings:
            raise UsageError(
                f"{path} is a TensorRT plan, and {name} opens none", hint="--engine tensorrt, or tensorrt-rtx"
            )
        kind = registry.resolve(engine)
        plan = PrecisionPlan(asked or kind.usual)
    else:
        kind = registry.resolve(engine, opens_onnx=True)
        plan = kind.plan(asked or kind.usual)
        plan = replace(plan, precision=precision) if kind.keeps_graph_precision else plan
    return WantedEngine(name=name, engine=kind.name, precision=asked, plan=plan)
