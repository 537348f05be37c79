"""``inspect``: what is in a model, an engine or any ONNX file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Manifest, Workspace
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.exporters import inspect as onnx_inspect
from lifedeploy.exporters.inspect import GraphFacts
from lifedeploy.serving import record as records
from lifedeploy.serving.record import PackageRecord, is_package
from lifedeploy.spec import ModelSpec
from lifedeploy.targets.find import find, unchanged
from lifedeploy.writing import in_use


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """What was found; each part only where there is one."""

    path: str
    manifest: Manifest | None = None
    graph: GraphFacts | None = None
    spec: ModelSpec | None = None
    package: PackageRecord | None = None
    outdated: tuple[str, ...] = ()  # what a package was made of and is another one by now

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema": 1,
            "path": self.path,
            "manifest": self.manifest.to_dict() if self.manifest else None,
            "spec": self.spec.to_dict() if self.spec else None,
            "method": self.method,
            "graph": {**asdict(self.graph), "precision": self.graph.precision} if self.graph else None,
            "package": self.package.to_dict() if self.package else None,
            "outdated": list(self.outdated),
        }

    @property
    def method(self) -> dict[str, str] | None:
        """Title of its method, what becomes of tokens, and the method's own budget, where it is that."""
        if self.spec is None:
            return None
        name = self.spec.method
        return {
            "title": methods.title_of(name),
            "fate": methods.fate_of(name),
            "own_budget": self.spec.own_budget,
        }


def inspect(model: Path | None, workspace: Workspace) -> InspectReport:
    """Look into a model, or a package: whether it is what it was, and of what it was made.

    Raises:
        ArtifactError: missing or damaged.
        UsageError: a file of a kind that cannot be looked into.
    """
    if model is None:
        artifact = workspace.latest_export()
        return _artifact(artifact)
    if is_package(model):
        with in_use(model):
            record = records.read(model)
            records.check(model, record)
            return InspectReport(path=str(model), package=record, outdated=records.outdated(model, record))
    with unchanged(model):
        file = find(model)
        if file.artifact is not None:
            return _artifact(file.artifact)
    if file.path.suffix == ".onnx":
        return InspectReport(path=str(file.path), graph=onnx_inspect.facts(onnx_inspect.load(file.path)))
    if file.path.suffix == ".safetensors":
        from lifedeploy.model import checkpoint

        spec = checkpoint.read_spec(file.path)
        if spec is None:
            raise ArtifactError(f"{file.path} carries no description of its model")
        return InspectReport(path=str(file.path), spec=spec)
    raise UsageError(f"{file.path} cannot be inspected: expected an export, an engine, a .onnx or a .safetensors")


def _artifact(artifact: Artifact) -> InspectReport:
    registry.verify(artifact)
    artifact.require_complete()
    manifest = artifact.manifest
    graph = None
    if artifact.path.suffix == ".onnx":
        # An engine of ONNX Runtime holds operators of its own, which the standard's checker does not know.
        graph = onnx_inspect.facts(onnx_inspect.load(artifact.path, check=manifest.kind != "engine"))
    return InspectReport(path=str(artifact.path), manifest=manifest, graph=graph, spec=manifest.spec)
