"""What a MODEL argument means: nothing, a folder, a manifest, an ONNX file, an engine file or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.errors import ArtifactError
from lifedeploy.reading import foreign, read_bytes
from lifedeploy.spec import QUANTIZED
from lifedeploy.text import quoted
from lifedeploy.writing import in_use


@dataclass(frozen=True)
class ModelFile:
    """A file and, if lifedeploy made it, its manifest."""

    path: Path
    artifact: Artifact | None = None

    @classmethod
    def of(cls, artifact: Artifact) -> ModelFile:
        """The main file of an artifact."""
        return cls(artifact.path, artifact)

    @property
    def is_engine(self) -> bool:
        """Whether it is a built engine."""
        return self.artifact is not None and self.artifact.manifest.kind == "engine"

    @property
    def name(self) -> str:
        """Short, for tables."""
        return self.artifact.name if self.artifact else self.path.name


def find(path: Path) -> ModelFile:
    """The model at ``path``.

    Raises:
        ArtifactError: nothing is there, or nothing that can be meant.
    """
    with foreign(quoted(str(path))):  # names that the system does not take
        is_folder, exists = path.is_dir(), path.exists()
    if is_folder:
        manifest = path / "model.json"
        if not manifest.is_file():
            raise ArtifactError(f"{path}/ holds no model.json: neither an export nor an engine")
        return ModelFile.of(Artifact.read(manifest))
    if not exists:
        raise ArtifactError(f"{path} does not exist", hint="lifedeploy export makes a model")
    if path.suffix == ".json":
        return ModelFile.of(Artifact.read(path))
    manifest = path.with_suffix(".json")
    if manifest.is_file():
        try:
            artifact = Artifact.read(manifest)
        except ArtifactError:
            if _was_meant_for_us(manifest):
                raise
            return ModelFile(path)  # another tool's file that happens to have this name
        if artifact.path.name == path.name:
            return ModelFile.of(artifact)
    return ModelFile(path)


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Keep the artifacts at ``paths`` from being replaced while they are read, which takes several steps.

    Runs of training are written file by file, never replaced, and held by whoever trains: nobody waits for them.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    with in_use(*(folder for folder in folders if (folder / "model.json").is_file())):
        yield


def export_of(path: Path | None, workspace: Workspace, *, method: str = "") -> Artifact:
    """The export that what is at ``path`` belongs to; without a path the newest in the workspace.

    Raises:
        ArtifactError: there is none, none of ``method``, or the file was not exported by lifedeploy.
    """
    if path is None:
        return workspace.latest_export(method)
    artifact = find(path).artifact
    if artifact is None:
        raise ArtifactError(
            f"{path} was not exported by lifedeploy: it has no manifest beside it",
            hint="bench and inspect take any ONNX file as it is",
        )
    export = artifact.export
    if method and export.method != method:
        raise ArtifactError(f"{export.folder} is an export of {export.method}, and --method is {method}")
    return export


def newest(workspace: Workspace) -> Artifact:
    """The engine that was built last; where there is none, the newest export.

    Raises:
        ArtifactError: there is no export either.
    """
    engines = workspace.engines()
    return engines[0] if engines else workspace.latest_export()


def quantized_precision(path: Path | None) -> str:
    """The precision that naming ``path`` means: of a calibrated graph, or an engine of one, its own; '' of others.

    Raises:
        ArtifactError: nothing is there, or nothing that can be meant.
    """
    artifact = find(path).artifact if path is not None else None
    return artifact.precision if artifact is not None and artifact.precision in QUANTIZED else ""


def variants(artifact: Artifact) -> dict[str, Artifact]:
    """Method → the same weights under that method: the baseline, the bound on speed, then what is slimmed.

    Raises:
        ArtifactError: a manifest that this one speaks of is missing or damaged.
    """
    roles = (methods.BASELINE, methods.BOUND, methods.SLIMMED)
    names = {artifact.method, *artifact.manifest.siblings}
    artifacts = {}
    for method in sorted(names, key=lambda name: (roles.index(methods.role_of(name)), name)):
        variant = artifact.sibling(method)
        assert variant is not None  # it is named
        artifacts[method] = variant
    return artifacts


def graphs_of(export: Artifact, precision: str = "fp32") -> dict[str, Artifact]:
    """Method → exported graph, the slimmed first; for a precision that needs calibration, the calibrated graphs.

    Raises:
        ArtifactError: it is not calibrated for that precision, or was before it was exported anew.
    """
    exported = variants(export)
    graphs = {export.method: export} | {method: graph for method, graph in exported.items() if method != export.method}
    if precision not in QUANTIZED:
        return graphs
    return {method: _calibrated(graph, precision) for method, graph in graphs.items()}


def _calibrated(graph: Artifact, precision: str) -> Artifact:
    path = graph.folder / precision / graph.manifest_path.name
    command = f"lifedeploy calibrate {graph.folder} --{precision} --data DIR"
    if not path.is_file():
        raise ArtifactError(f"{graph.path} is not calibrated for {precision.upper()}", hint=command)
    calibrated = Artifact.read(path)
    if calibrated.manifest.kind != "calibrated" or calibrated.method != graph.method:
        raise ArtifactError(f"{path} is no calibrated graph of {graph.method}", hint=command)
    if calibrated.manifest.quantization.source_sha256 != graph.manifest.sha256:
        raise ArtifactError(f"{path} was calibrated for another {graph.path.name} than is there now", hint=command)
    return calibrated


def _was_meant_for_us(manifest: Path) -> bool:
    """Whether a file that cannot be read as a manifest begins like one: then it is damaged."""
    beginning = read_bytes(manifest)[:400]
    return b'"schema"' in beginning and b'"kind"' in beginning
