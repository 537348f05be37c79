"""How a file is opened to be asked: by which engine, in which precision, under which method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine
from lifedeploy.errors import ArtifactError
from lifedeploy.evaluation import parity
from lifedeploy.spec import ModelSpec
from lifedeploy.workflows.find import Target


@dataclass(frozen=True)
class Openable:
    """A checkpoint, an ONNX file or an engine, and all that is needed to open it."""

    label: str
    engine: type[Engine]
    path: Path
    precision: str
    method: str
    spec: ModelSpec | None  # None: an ONNX file of another tool
    in_graph: bool  # whether it takes pixels and normalises them itself
    batch_size: int | None  # the one it is fixed to
    taps: tuple[str, ...]  # what to tap to learn which tokens it keeps


def openable(target: Target) -> Openable:
    """How to open ``target``: an engine by its runtime, an ONNX file by ONNX Runtime, a checkpoint by PyTorch.

    Raises:
        ArtifactError: it is none of these, or not the file its manifest speaks of.
        EngineUnavailableError: its runtime is not here.
    """
    if target.path.suffix == ".safetensors" and not target.is_engine:
        return _checkpoint(target.path)
    if target.artifact is None:
        if target.path.suffix != ".onnx":
            raise ArtifactError(f"{target.path} is neither an export, an engine, an ONNX file nor a checkpoint of ours")
        cls = registry.resolve("onnxruntime")
        return Openable(str(target.path), cls, target.path, "fp32", "", None, False, None, ())
    target.artifact.check()
    manifest = target.artifact.manifest
    record = manifest.engine
    cls = registry.resolve(record.name if record else "onnxruntime")
    return Openable(
        str(target.path),
        cls,
        target.path,
        record.precision if record else "fp32",
        manifest.spec.method,
        manifest.spec,
        bool(manifest.graph.get("with_preprocess")),
        manifest.graph.get("batch_size"),
        parity.taps_for(manifest.spec),
    )


def _checkpoint(path: Path) -> Openable:
    from lifedeploy.model import checkpoint

    spec = checkpoint.read_spec(path) if path.is_file() else None
    if spec is None:
        raise ArtifactError(f"{path} carries no description of its model, so it cannot be run")
    cls = registry.resolve("torch")
    return Openable(str(path), cls, path, "fp32", spec.method, spec, False, None, parity.taps_for(spec))


def under(openable: Openable, method: str) -> Openable:
    """A checkpoint under another method than the one it was trained under."""
    if openable.spec is None or openable.spec.method == method:
        return openable
    spec = replace(openable.spec, method=method)
    return replace(openable, spec=spec, method=method, taps=parity.taps_for(spec))
