"""What a MODEL argument means: nothing, a folder, a manifest, an ONNX file, an engine file or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.errors import ArtifactError
from lifedeploy.reading import foreign, read_bytes
from lifedeploy.spec import QUANTIZED
from lifedeploy.text import quoted
from lifedeploy.writing import in_use


@dataclass(frozen=True)
class Target:
    """A file and, if lifedeploy made it, its manifest."""

    path: Path
    artifact: Artifact | None

    @property
    def is_engine(self) -> bool:
        """Whether it is a built engine."""
        return self.artifact is not None and self.artifact.manifest.kind == "engine"

    @property
    def name(self) -> str:
        """As shown to people."""
        return self.artifact.name if self.artifact else self.path.name


def find(path: Path) -> Target:
    """The artifact at ``path``.

    Raises:
        ArtifactError: nothing is there, or nothing that can be meant.
    """
    with foreign(quoted(str(path))):  # names that the system does not take
        is_folder, exists = path.is_dir(), path.exists()
    if is_folder:
        manifest = path / "model.json"
        if not manifest.is_file():
            raise ArtifactError(f"{path}/ holds no model.json: neither an export nor an engine")
        return _of(Artifact.read(manifest))
    if not exists:
        raise ArtifactError(f"{path} does not exist", hint="lifedeploy export makes a model")
    if path.suffix == ".json":
        return _of(Artifact.read(path))
    manifest = path.with_suffix(".json")
    if manifest.is_file():
        try:
            artifact = Artifact.read(manifest)
        except ArtifactError:
            if _was_meant_for_us(manifest):
                raise
            return Target(path, None)  # another tool's file that happens to have this name
        if artifact.path.name == path.name:
            return _of(artifact)
    return Target(path, None)


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Keep the artifacts at ``paths`` from being replaced while they are read, which takes several steps.

    Runs of training are written file by file, never replaced, and held by whoever trains: nobody waits for them.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    with in_use(*(folder for folder in folders if (folder / "model.json").is_file())):
        yield


def newest_export(path: Path | None, workspace: Workspace, *, method: str = "") -> Artifact:
    """The exported model at ``path``, or the newest in the workspace. What was made of an export stands for it.

    Raises:
        ArtifactError: there is none, none of ``method``, or the file was not exported by lifedeploy.
    """
    if path is None:
        return workspace.latest_export(method)
    target = find(path)
    if target.artifact is None:
        raise ArtifactError(
            f"{path} was not exported by lifedeploy: it has no manifest beside it",
            hint="bench and inspect take any ONNX file as it is",
        )
    export = target.artifact.export
    if method and export.method != method:
        raise ArtifactError(f"{export.folder} is an export of {export.method}, and --method is {method}")
    return export


def quantized_precision(path: Path | None) -> str:
    """The precision that naming ``path`` means: of a calibrated graph, or an engine of one, its own; '' of others.

    Raises:
        ArtifactError: nothing is there, or nothing that can be meant.
    """
    artifact = find(path).artifact if path is not None else None
    return artifact.precision if artifact is not None and artifact.precision in QUANTIZED else ""


def _was_meant_for_us(manifest: Path) -> bool:
    """Whether a file that cannot be read as a manifest begins like one: then it is damaged."""
    beginning = read_bytes(manifest)[:400]
    return b'"schema"' in beginning and b'"kind"' in beginning


def _of(artifact: Artifact) -> Target:
    return Target(artifact.path, artifact)
