"""What stands between a plan on disk and one that runs: it is vouched for, fits this machine, and has its weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from lifedeploy.artifact import Artifact, EngineRecord
from lifedeploy.engines.tensorrt.flavour import Messages
from lifedeploy.errors import ArtifactError, EngineError


def vouched(path: Path) -> EngineRecord:
    """How the plan at ``path`` was built: a plan is executable code, so one without a manifest of ours is not loaded.

    Raises:
        ArtifactError: there is none beside it, or it was written for another file.
    """
    manifest = path.with_suffix(".json")
    if not manifest.is_file():
        raise ArtifactError(
            f"{path} has no manifest beside it, and a plan is executable code",
            hint="build it with lifedeploy build-engine, or say --trust if you know where it comes from",
        )
    artifact = Artifact.read(manifest)
    artifact.check()
    if artifact.manifest.engine is None:
        raise ArtifactError(f"{manifest} describes no engine")
    return artifact.manifest.engine


def require_version(path: Path, record: EngineRecord, installed: str) -> None:
    """Make sure that the version installed loads what the version recorded has built.

    Raises:
        EngineError: it does not.
    """
    if record.runtime == installed:
        return
    if record.options.get("version_compatible") and _numbers(installed) >= _numbers(record.runtime):
        return
    raise EngineError(
        f"{path} was built by {record.name} {record.runtime}, and {installed} is installed", hint="build it again"
    )


def require_device(path: Path, record: EngineRecord, device: str) -> None:
    """Make sure that a plan of TensorRT runs on the GPU it was built on; the runtime itself only warns of some.

    Raises:
        EngineError: this is another one.
    """
    if record.processor != device and not record.options.get("hardware_compatible"):
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
    graphs = sorted(path.parent.glob(f"{path.stem}.*.onnx"))
    if not graphs:
        raise EngineError(f"{path} was built without its weights, and the graph that has them is not beside it")
    parser = trt.OnnxParserRefitter(refitter, messages.logger)
    if not parser.refit_from_file(str(graphs[0])) or not refitter.refit_cuda_engine():
        raise EngineError(f"{path} did not take the {len(missing)} weights of {graphs[0].name}: {messages.reason()}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
