"""Files that outlive a command: manifests, and the workspace that holds them.

A folder of the workspace appears under its final name only when it is complete. A manifest ``NAME.json`` beside an
artifact says what the artifact is, where it came from and what was proven about it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lifedeploy.errors import ArtifactError
from lifedeploy.files import now, sha256, write_json
from lifedeploy.spec import ModelSpec

SCHEMA = 1
WORKSPACE = Path("artifacts")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. ``None`` in ``shape`` is a dynamic dimension; ``dtype`` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dims = ", ".join("batch" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({dims})"


@dataclass(frozen=True)
class EngineRecord:
    """How an engine was built.

    ``precision`` is what runs; ``note`` says why it is not what was asked for. ``pending`` says why the engine could
    not be held against PyTorch where it was built.
    """

    name: str
    precision: str
    requested: str
    note: str = ""
    source: str = ""  # the ONNX file, relative to the engine's folder
    source_sha256: str = ""
    runtime: str = ""  # the runtime's own version
    processor: str = ""  # what it was built on
    files: dict[str, str] = field(default_factory=dict)  # every file of the engine → sha256
    options: dict[str, Any] = field(default_factory=dict)  # build options that were given
    graph: dict[str, Any] = field(default_factory=dict)  # the form of the graph that was compiled, and its own parity
    details: dict[str, Any] = field(default_factory=dict)  # what the runtime tells of the engine: fusion, profile …
    pending: str = ""

    @property
    def label(self) -> str:
        """As shown in tables."""
        return f"{self.name} {self.precision}"


@dataclass(frozen=True)
class Manifest:
    """What stands beside an artifact.

    ``graph`` describes the export (form, batch, options), ``macs`` the work per image, ``parity`` the evidence that
    the artifact computes what PyTorch computes, ``siblings`` the same weights under the other methods.
    """

    kind: str  # "model", "calibrated" (a quantised graph of a model) or "engine"
    file: str  # relative to the manifest's folder
    sha256: str
    spec: ModelSpec
    graph: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    macs: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    reference: str = ""  # file with PyTorch's own answers, relative to the manifest's folder
    checkpoint: str = ""
    siblings: dict[str, str] = field(default_factory=dict)  # method → manifest, same folder
    engine: EngineRecord | None = None
    quantization: dict[str, Any] = field(default_factory=dict)  # how the graph was calibrated, and what that cost
    versions: dict[str, str] = field(default_factory=dict)
    created: str = field(default_factory=now)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with what a reader looks for first at the top."""
        body = asdict(self)
        head = {
            "schema": SCHEMA,
            "kind": body.pop("kind"),
            "file": body.pop("file"),
            "sha256": body.pop("sha256"),
            "created": body.pop("created"),
            "method": self.spec.method,
            "weights": self.spec.provenance.weights,
        }
        return head | body

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """The inverse of :meth:`to_dict`.

        Raises:
            ArtifactError: another schema, or a fact is missing.
        """
        if data.get("schema") != SCHEMA:
            raise ArtifactError(f"manifest schema {data.get('schema')!r} is unknown; this version reads {SCHEMA}")
        try:
            engine = data.get("engine")
            return cls(
                kind=data["kind"],
                file=data["file"],
                sha256=data["sha256"],
                spec=ModelSpec.from_dict(data["spec"]),
                graph=dict(data["graph"]),
                inputs=_tensors(data["inputs"]),
                outputs=_tensors(data["outputs"]),
                macs=dict(data["macs"]),
                parity=data["parity"],
                reference=data["reference"],
                checkpoint=data["checkpoint"],
                siblings=dict(data["siblings"]),
                engine=EngineRecord(**engine) if engine else None,
                quantization=dict(data.get("quantization") or {}),
                versions=dict(data["versions"]),
                created=data["created"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest is incomplete: {error}") from error

    def write(self, path: Path) -> None:
        """Write the manifest to ``path``."""
        write_json(path, self.to_dict())


def _tensors(data: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in data)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at ``path``.

    Raises:
        ArtifactError: missing, not JSON, or not one of ours.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is not a manifest: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is not a manifest: expected a JSON object")
    try:
        return Manifest.from_dict(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error.message}") from error


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
        return str(self.manifest.quantization.get("precision", "fp32"))

    @property
    def method(self) -> str:
        """The reducer in it."""
        return self.manifest.spec.method

    def sibling(self, method: str) -> Artifact | None:
        """The same weights under ``method``, if exported."""
        if method == self.method:
            return self
        name = self.manifest.siblings.get(method)
        return Artifact.read(self.folder / name) if name else None

    def check(self) -> None:
        """Make sure that the files are those the manifest speaks of.

        Raises:
            ArtifactError: one is missing or has another content.
        """
        files = self.manifest.engine.files if self.manifest.engine else {}
        for name, digest in ({self.manifest.file: self.manifest.sha256} | files).items():
            path = self.folder / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing, though {self.manifest_path.name} speaks of it")
            if sha256(path) != digest:
                raise ArtifactError(
                    f"{path} is not the file that {self.manifest_path.name} was written for: its SHA-256 differs",
                    hint="export or build it again",
                )


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
        found = [path for path in self.root.glob("checkpoints/**/*.safetensors") if path.parent.name != "state"]
        written = {path: path.stat().st_mtime_ns for path in found}
        newest = {path.parent: 0 for path in found}
        for path, time in written.items():
            newest[path.parent] = max(newest[path.parent], time)
        return sorted(found, key=lambda path: (newest[path.parent], path.stem == "best", written[path]), reverse=True)

    def latest_export(self) -> Artifact:
        """The export that was written last.

        Raises:
            ArtifactError: there is none.
        """
        found = self.exports()
        if not found:
            raise ArtifactError(
                f"no exported model in {self.root}/", hint="run: lifedeploy export --backbone deit_s --rho 0.7"
            )
        return found[0]

    def _newest(self, pattern: str, *, kind: str) -> list[Artifact]:
        matches = self.root.glob(pattern)
        paths = [
            path for path in matches if not any(part.startswith(".") for part in path.relative_to(self.root).parts)
        ]
        paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        found = []
        for path in paths:
            try:
                found.append(Artifact.read(path))
            except ArtifactError:
                continue  # not one of ours, or damaged: named, it gives an error; listed, it is passed over
        return [artifact for artifact in found if artifact.manifest.kind == kind]
