"""``package``: an engine in; a folder out that a model server, or a container, starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lifedeploy import __version__
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.optional import versions
from lifedeploy.progress import Say, silent
from lifedeploy.serving import docker, kserve_package, ovms, triton
from lifedeploy.serving import plan as plans
from lifedeploy.serving import record as records
from lifedeploy.serving.record import PackageRecord, is_package
from lifedeploy.serving.served import Served, largest_batch, name_of, require_servable
from lifedeploy.targets import select
from lifedeploy.targets.evidence import require_current, require_passed
from lifedeploy.targets.target import opened_by
from lifedeploy.text import quoted
from lifedeploy.typed import MOST_CLASSES, RANDOM_WEIGHTS, SERVERS, TRITON_BACKENDS
from lifedeploy.writing import atomic_folder, in_use

Writer = Callable[[Path, Served, str, dict[str, str]], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """What to package, and for which server."""

    target: str  # "triton", "ovms", "kserve", "docker"
    out: Path
    model: Path | None = None  # None: what was built last
    engine: str = ""  # NAME or NAME:PRECISION; '': what is named, or was built last
    backend: str = ""  # Triton's; '': what suits the engine
    name: str = ""  # as the server calls the model; '': backbone and method
    top: int = 0  # classes to name for each image
    max_batch: int | None = None
    instances: int | None = None
    bench: Path | None = None  # report of `bench --json`: batches, delay and instances are read off it
    force: bool = False  # replace what is at ``out`` and is no package

    def __post_init__(self) -> None:
        if self.target not in SERVERS:
            raise UsageError(f"--for {quoted(self.target)} is unknown; there are: {', '.join(SERVERS)}")
        if self.backend and self.target != "triton":
            raise UsageError(f"--backend is of Triton, and this is for {self.target}")
        if self.backend and self.backend not in TRITON_BACKENDS:
            raise UsageError(f"backend {quoted(self.backend)} is unknown; there are: {', '.join(TRITON_BACKENDS)}")
        if not 0 <= self.top <= MOST_CLASSES:
            raise UsageError(f"--top {self.top} is not allowed: at most {MOST_CLASSES:,} classes are named")


@dataclass(frozen=True)
class PackageReport:
    """What was written."""

    folder: str
    record: PackageRecord
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"schema": 1, "folder": self.folder, "warnings": list(self.warnings), "package": self.record.to_dict()}


def package(request: PackageRequest, workspace: Workspace, say: Say = silent) -> PackageReport:
    """Write a package, as a whole or not at all.

    Raises:
        ArtifactError: there is no such engine, it is damaged or out of date, or something else lies at ``out``.
        ParityError: the engine did not pass its gate.
        UsageError: the server cannot have this engine in this way.
    """
    _require_free(request.out, force=request.force)
    artifact = select.for_packaging(request.model, request.engine, workspace)
    folders = {source.folder for source in _sources(artifact)}
    held = next((folder for folder in folders if folder.resolve().is_relative_to(request.out.resolve())), None)
    if held is not None:
        raise UsageError(f"{request.out}/ holds {held}/, which is to be packaged: its package would replace it")
    with in_use(*folders):
        return _package(request, Artifact.read(artifact.manifest_path), say)


def _package(request: PackageRequest, artifact: Artifact, say: Say) -> PackageReport:
    say(f"packaging {artifact.path}")
    served = _served(request, artifact)
    backend = request.backend or triton.usual_backend(served.target)
    needs = _needs(served, request.target, backend)
    with atomic_folder(request.out) as folder:
        models = _WRITERS[request.target](folder, served, backend, needs)
        record = records.write(
            folder,
            PackageRecord(
                target=request.target,  # type: ignore[arg-type]  # one of SERVERS
                models=models,
                method=served.target.method,
                engine=served.target.engine.name,
                precision=served.target.precision,
                backend=backend if request.target == "triton" else request.target,
                plan=served.plan,
                top=served.top,
                needs=needs,
                sources=tuple(records.source_of(source, request.out) for source in _sources(artifact)),
            ),
        )
    return PackageReport(str(request.out), record, _warnings(served, request))


def _served(request: PackageRequest, artifact: Artifact) -> Served:
    """The model as the server is to have it; it passed its gate."""
    require_current(artifact)
    require_passed(artifact, "no package of")
    record = artifact.manifest.engine
    assert record is not None  # it passed a gate
    target = opened_by(registry.get(record.name), artifact)  # which need not run here: it is not opened
    require_servable(target)
    spec = artifact.manifest.spec
    if request.top and not spec.num_classes:
        raise UsageError(f"--top {request.top}: {artifact.path} has no classification head, so no classes to name")
    if request.top > (spec.num_classes or 0):
        raise UsageError(f"--top {request.top} is more than the {spec.num_classes} classes of {artifact.path}")
    most = largest_batch(artifact, request.max_batch)
    plan = plans.usual(most) if request.bench is None else plans.measured(request.bench, target, most)
    if request.instances is not None:
        plan = replace(plan, instances=request.instances)
    return Served(name=name_of(artifact, request.name), target=target, artifact=artifact, plan=plan, top=request.top)


def _needs(served: Served, target: str, backend: str) -> dict[str, str]:
    """What has to be on the server: the runtime, in the version that it was built by, and lifedeploy for our code."""
    engine = served.artifact.manifest.engine
    runtime = {}
    if engine is not None and engine.runtime:
        runtime = {served.target.engine.name: engine.runtime}
    if target == "ovms":  # none of our code runs there
        return runtime
    if target != "triton" or backend == "python":
        return {"lifedeploy": __version__, **runtime}
    # The preprocessing of the ensemble is our code.
    return {"lifedeploy": __version__, **runtime, **versions(("numpy", "pillow"))}


def _sources(artifact: Artifact) -> list[Artifact]:
    """The engine, the graph that it was built of, and the export, as far as they are there."""
    record, sources = artifact.manifest.engine, [artifact]
    with suppress(ArtifactError):  # they may have stayed where it was built
        sources.append(artifact.export)
        if record is not None and record.source:
            graph = Artifact.read((artifact.folder / record.source).with_suffix(".json"))
            sources += [graph] if graph.manifest_path.resolve() != sources[1].manifest_path.resolve() else []
    return sources


def _warnings(served: Served, request: PackageRequest) -> tuple[str, ...]:
    lines = []
    if served.target.weights == RANDOM_WEIGHTS:
        lines.append(f"{served.artifact.path} has random weights: any class it named would be made up")
    if request.bench is None and request.target != "docker":
        lines.append("batches, delay and instances are not measured: --bench FILE takes a report of lifedeploy bench")
    return tuple(lines)


def _require_free(out: Path, *, force: bool) -> None:
    """Make sure that nothing of the user's is replaced: nothing there, an empty folder, or a package that is whole.

    Raises:
        UsageError: something else is there.
    """
    if not out.exists() or force:
        return
    if not out.is_dir() or (any(out.iterdir()) and not is_package(out)):
        raise UsageError(f"{out} is there and is no package of lifedeploy", hint="--force replaces it")
    if is_package(out):
        try:
            records.check(out, records.read(out))
        except ArtifactError as error:
            raise UsageError(
                f"{out} is a package that somebody has changed: {error.message}", hint="--force replaces it"
            ) from error


_WRITERS: Mapping[str, Writer] = {
    "triton": triton.write,
    "ovms": ovms.write,
    "kserve": kserve_package.write,
    "docker": docker.write,
}
