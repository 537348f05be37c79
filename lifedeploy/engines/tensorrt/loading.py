"""What stands between a plan on disk and one that runs: it is vouched for, fits this machine, and has its weights."""

from __future__ import annotations

import glob
from pathlib import Path
from types import ModuleType
from typing import Any

from lifedeploy.artifact import Artifact, EngineRecord
from lifedeploy.engines.tensorrt.library import Messages
from lifedeploy.errors import ArtifactError, EngineError


def vouched(path: Path, name: str) -> EngineRecord:
    """How the plan at ``path`` was built: a plan is executable code, so one without a manifest of ours is not loaded.

    Raises:
        ArtifactError: there is none beside it, or it was written for other files than those that will be read.
        EngineError: another engine than ``name`` built it; each counts its versions differently.
    """
    manifest = path.with_suffix(".json")
    if not manifest.is_file():
        raise ArtifactError(
            f"{path} has no manifest beside it, and a plan is executable code",
            hint="build it with lifedeploy build-engine, or say --trust if you know where it comes from",
        )
    artifact = Artifact.read(manifest)
    artifact.check(files_of(path))
    record = artifact.manifest.engine
    if record is None:
        raise ArtifactError(f"{manifest} describes no engine")
    if record.name != name:
        raise EngineError(f"{path} was built by {record.name}, and {name} was to open it")
    return record


def require_version(path: Path, record: EngineRecord, installed: str) -> None:
    """Make sure that the version installed loads what the version recorded has built.

    Raises:
        EngineError: it does not.
    """
    if record.runtime == installed:
        return
    if record.options.version_compatible and _numbers(installed) >= _numbers(record.runtime):
        return
    raise EngineError(
        f"{path} was built by {record.name} {record.runtime}, and {installed} is installed", hint="build it again"
    )


def require_device(path: Path, record: EngineRecord, device: str) -> None:
    """Make sure that a plan of TensorRT runs on the GPU it was built on; the runtime itself only warns of some.

    Raises:
        EngineError: this is another one.
    """
    if record.processor != device and not record.options.hardware_compatible:
        raise EngineError(
            f"{path} was built on {record.processor}, and this is {device}",
            hint="build it again; --hardware-compatible builds for Ampere and later GPUs",
        )


def require_valid(trt: ModuleType, runtime: Any, path: Path, data: bytes) -> None:
    """Ask TensorRT for RTX whether this machine can run the plan, before it is loaded.

    Raises:
        EngineError: it cannot; with what it says is wrong.
    """
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID or not diagnostics:
        return  # invalid for no reason is how it says that it cannot tell
    wrong = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) & int(diagnostics)
    ]
    raise EngineError(f"{path} cannot run on this machine: {', '.join(wrong)}", hint="build it again here")


def refit(trt: ModuleType, engine: Any, path: Path, messages: Messages) -> None:
    """Give a plan that was built without its weights those of the graph beside it.

    Raises:
        EngineError: there is no such graph, or it does not fit.
    """
    if not engine.refittable:
        return
    refitter = trt.Refitter(engine, messages.logger)
    missing = refitter.get_missing_weights()
    if not missing:
        return
    graph = refit_graph(path)
    if graph is None:
        raise EngineError(f"{path} was built without its weights, and the graph that has them is not beside it")
    parser = trt.OnnxParserRefitter(refitter, messages.logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise EngineError(f"{path} did not take the {len(missing)} weights of {graph.name}: {messages.reason()}")


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that are read when the plan at ``path`` is opened."""
    graph = refit_graph(path)
    return (path,) if graph is None else (path, graph)


def refit_graph(path: Path) -> Path | None:
    """The graph beside a plan that has its weights, if it was built without them."""
    return min(path.parent.glob(f"{glob.escape(path.stem)}.*.onnx"), default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal() and len(part) < 10)
