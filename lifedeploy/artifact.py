"""Files that outlive a command: manifests, and the workspace that holds them.

A folder of the workspace appears under its final name only when it is complete. A manifest ``NAME.json`` beside an
artifact says what the artifact is, where it came from and what was proven about it.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lifedeploy.errors import ArtifactError
from lifedeploy.files import sha256
from lifedeploy.manifest import EngineRecord, Manifest, TensorSpec, read_manifest
from lifedeploy.reading import foreign, require_regular
from lifedeploy.temporary import is_temporary

__all__ = ["WORKSPACE", "Artifact", "EngineRecord", "Manifest", "TensorSpec", "Workspace", "read_manifest"]

WORKSPACE = Path("artifacts")


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk together with its manifest."""

    manifest_path: Path
    manifest: Manifest

    @classmethod
    def read(cls, manifest_path: Path) -> Artifact:
        """Read the manifest; the artifact itself is not opened."""
        return cls(manifest_path, read_manifest(manifest_path))

    @property
    def folder(self) -> Path:
        """The folder both are in."""
        return self.manifest_path.parent

    @property
    def path(self) -> Path:
        """The artifact's main file."""
        return self.folder / self.manifest.file

    def file(self, name: str) -> Path:
        """A file that the manifest names, by that name.

        Raises:
            ArtifactError: it is not there, or a link that leads out of the folder; for what is of the export above, out
                of the export.
        """
        path = self.folder / name
        home = self.folder.parent if name.startswith("../") else self.folder
        if not path.exists():
            raise ArtifactError(f"{path} is missing, though {self.manifest_path.name} speaks of it")
        with foreign(str(path)):
            inside = path.resolve().is_relative_to(home.resolve())
        if not inside:
            raise ArtifactError(
                f"{path} is a link that leads out of {home}/, which {self.manifest_path.name} cannot vouch for",
                hint="put the file itself there",
            )
        require_regular(path)
        return path

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is opened from, the main one first."""
        others = self.manifest.engine.files if self.manifest.engine else {}
        return (self.path, *(self.folder / name for name in others if name != self.manifest.file))

    @property
    def name(self) -> str:
        """The export's name: its folder's, whether this is the export or was made of it."""
        return self.folder.name if self.manifest.kind == "model" else self.folder.parent.name

    @property
    def export(self) -> Artifact:
        """The export that this was made of: itself, or the one in the folder above.

        Raises:
            ArtifactError: it is gone.
        """
        return self if self.manifest.kind == "model" else Artifact.read(self.folder.parent / "model.json")

    @property
    def precision(self) -> str:
        """What it computes in: an engine's own; of a graph, its tensors'."""
        if self.manifest.engine is not None:
            return self.manifest.engine.precision
        return self.manifest.quantization.precision or "fp32"

    @property
    def method(self) -> str:
        """The reducer in it."""
        return self.manifest.spec.method

    def sibling(self, method: str) -> Artifact | None:
        """The same weights under ``method``, if exported."""
        if method == self.method:
            return self
        name = self.manifest.siblings.get(method)
        if not name:
            return None
        sibling = Artifact.read(self.file(name))
        if sibling.method != method:
            raise ArtifactError(f"{sibling.manifest_path} is of method {sibling.method}, expected {method}")
        return sibling

    def check(self, opened: Collection[Path] = ()) -> None:
        """Make sure that the files are those the manifest speaks of.

        Args:
            opened: files that will be read when this is opened, as the reader of them says. The manifest has to vouch
                for all of them, whatever else it speaks of.

        Raises:
            ArtifactError: one is missing, has another content, leads out of the folder, or has no SHA-256.
        """
        manifest = self.manifest
        known = {**(manifest.engine.files if manifest.engine else {}), manifest.file: manifest.sha256}
        for path in opened:
            if path.parent != self.folder or path.name not in known:
                raise ArtifactError(
                    f"{path} would be read with {self.path.name}, and {self.manifest_path.name} has no SHA-256 of it",
                    hint="export or build it again",
                )
        for name, digest in known.items():
            path = self.file(name)
            with foreign(str(path)):
                changed = sha256(path) != digest
            if changed:
                raise ArtifactError(
                    f"{path} is not the file that {self.manifest_path.name} was written for: its SHA-256 differs",
                    hint="export or build it again",
                )

    def require_complete(self) -> None:
        """Make sure that the manifest lacks nothing that is shown or computed with.

        Raises:
            ArtifactError: it does.
        """
        self.manifest.require_complete(str(self.manifest_path))


class Workspace:
    """The folder that commands write to and find each other's results in; ``artifacts/`` unless told."""

    def __init__(self, root: Path = WORKSPACE) -> None:
        self.root = root

    def exports(self) -> list[Artifact]:
        """Exported models (one per export: the slimmed one), newest first."""
        return self._newest("*/model.json", kind="model")

    def engines(self) -> list[Artifact]:
        """Built engines (one per build: the slimmed one), newest first."""
        return self._newest("*/*/model.json", kind="engine")

    @staticmethod
    def engines_of(export: Artifact) -> list[Artifact]:
        """Engines built of one export, newest first, wherever it is."""
        return Workspace(export.folder)._newest("*/model.json", kind="engine")

    def checkpoints(self) -> list[Path]:
        """Checkpoints that training left here: newest run first, and of a run the best before the last."""
        matches = self._finished("checkpoints/**/*.safetensors")
        written = {path: time for path, time in matches.items() if path.parent.name != "state"}
        newest = {path.parent: 0 for path in written}
        for path, time in written.items():
            newest[path.parent] = max(newest[path.parent], time)
        return sorted(written, key=lambda path: (newest[path.parent], path.stem == "best", written[path]), reverse=True)

    def latest_export(self, method: str = "") -> Artifact:
        """The export that was written last; of a method, if one is named.

        Raises:
            ArtifactError: there is none.
        """
        exports = [export for export in self.exports() if method in ("", export.method)]
        if not exports:
            of, more = (f" of {method}", f" --method {method}") if method else ("", "")
            raise ArtifactError(
                f"no exported model{of} in {self.root}/",
                hint=f"run: lifedeploy export --backbone deit_s{more} --rho 0.7",
            )
        return exports[0]

    def _newest(self, pattern: str, *, kind: str) -> list[Artifact]:
        written = self._finished(pattern)
        artifacts = []
        for path in sorted(written, key=lambda path: written[path], reverse=True):
            with suppress(ArtifactError):  # not one of ours, or damaged: named, it is an error; listed, passed over
                artifacts.append(Artifact.read(path))
        return [artifact for artifact in artifacts if artifact.manifest.kind == kind]

    def _finished(self, pattern: str) -> dict[Path, int]:
        """Files that are there whole → when they were written, in ns; others may take them away in between."""
        written = {}
        for path in self.root.glob(pattern):
            parts = path.relative_to(self.root).parts
            if any(part.startswith(".") or is_temporary(part) for part in parts):
                continue
            with suppress(OSError):
                written[path] = path.stat().st_mtime_ns
        return written
