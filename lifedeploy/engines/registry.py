"""Engines by name. Nothing is imported until an engine is asked for; a new engine is one module and one line here."""

from __future__ import annotations

import importlib
from pathlib import Path

from lifedeploy.artifact import Artifact
from lifedeploy.engines.base import Availability, Engine
from lifedeploy.engines.external import onnx_files
from lifedeploy.errors import ArtifactError, EngineUnavailableError, NotInstalledError, UsageError
from lifedeploy.spec import QUANTIZED

_ENGINES = {
    "tensorrt": "lifedeploy.engines.tensorrt.engine:TensorRT",
    "tensorrt-rtx": "lifedeploy.engines.tensorrt.rtx:TensorRTRtx",
    "onnxruntime-tensorrt": "lifedeploy.engines.onnxruntime_gpu:OnnxRuntimeTensorRT",
    "onnxruntime-tensorrt-rtx": "lifedeploy.engines.onnxruntime_gpu:OnnxRuntimeRtx",
    "onnxruntime-cuda": "lifedeploy.engines.onnxruntime_gpu:OnnxRuntimeCuda",
    "openvino": "lifedeploy.engines.openvino:OpenVino",
    "onnxruntime": "lifedeploy.engines.onnxruntime:OnnxRuntime",
    "torch": "lifedeploy.engines.torch:Torch",
    "torch-cuda": "lifedeploy.engines.torch:TorchCuda",
    "torch-compiled": "lifedeploy.engines.torch:TorchCompiled",
    "fake": "lifedeploy.engines.fake:Fake",
    "fake-device": "lifedeploy.engines.fake:FakeDevice",
}
_HIDDEN = ("fake", "fake-device")
# What `auto` tries, fastest first.
AUTO_ORDER = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime")
AUTO = "auto"


def names(*, hidden: bool = False) -> tuple[str, ...]:
    """Engines that can be named; the fake ones only if asked for."""
    return tuple(name for name in _ENGINES if hidden or name not in _HIDDEN)


def get(name: str) -> type[Engine]:
    """The engine class called ``name``. Imports its module, which imports no runtime yet.

    Raises:
        UsageError: there is no such engine.
    """
    if name not in _ENGINES:
        raise UsageError(f"engine {name!r} is unknown; there are: {AUTO}, {', '.join(names())}")
    module, _, attribute = _ENGINES[name].partition(":")
    engine: type[Engine] = getattr(importlib.import_module(module), attribute)
    return engine


def resolve(name: str, *, to_build: bool = False, opens_onnx: bool = False, precision: str = "") -> type[Engine]:
    """The engine class for ``name``, which may be ``auto``: the fastest that runs here.

    With ``to_build`` a named engine need not run here, if it can be built here. With ``opens_onnx`` it must be one
    that opens any ONNX file as it is. Where ``precision`` is one that takes a quantised graph, ``auto`` is the fastest
    that has it; where none of those runs here, with ``to_build`` one that can be built here.

    Raises:
        UsageError: there is no such engine, or it opens no ONNX files.
        EngineUnavailableError: it cannot run (be built) here, or none can.
    """
    if name != AUTO:
        engine = get(name)
        status = examine(engine, to_build=to_build)
        status.require(f"engine {name} cannot {'be built' if to_build else 'run'} here")
        if opens_onnx and not engine.opens_onnx:
            offered = ", ".join(other for other in names() if get(other).opens_onnx)
            raise UsageError(
                f"engine {name} opens no ONNX file as it is; those that do: {offered}",
                hint=f"lifedeploy build-engine --engine {name} builds an engine, which can be named instead",
            )
        return engine
    candidates = [candidate for candidate in map(get, AUTO_ORDER) if not opens_onnx or candidate.opens_onnx]
    if precision in QUANTIZED:
        candidates = [candidate for candidate in candidates if precision in candidate.quantized]
    for elsewhere in (False, True) if to_build and precision in QUANTIZED else (False,):
        for candidate in candidates:
            if examine(candidate, to_build=elsewhere).ok:
                return candidate
    if precision in QUANTIZED:
        having = ", ".join(candidate.name for candidate in candidates)
        raise EngineUnavailableError(f"no engine here has {precision.upper()}; engines that do: {having}")
    raise EngineUnavailableError("no inference runtime is installed", hint="pip install 'lifedeploy[cpu]', or [gpu]")


def running(name: str, built: Path) -> type[Engine]:
    """The engine class ``name``, which is to open ``built``.

    Raises:
        EngineUnavailableError: it cannot run here.
    """
    engine = get(name)
    examine(engine).require(f"{built} is built, and cannot run here")
    return engine


def verify(artifact: Artifact) -> None:
    """Make sure that the artifact's files are those that its manifest speaks of, and that it speaks of all that will be
    read: which those are is for the engine to say that opens it, not for the manifest.

    Raises:
        ArtifactError: one is missing, has another content, or is not vouched for.
        UsageError: there is no such engine.
    """
    record = artifact.manifest.engine
    if (record is not None) != (artifact.manifest.kind == "engine"):
        raise ArtifactError(f"{artifact.manifest_path} is of kind {artifact.manifest.kind}: no engine belongs to it")
    path = artifact.file(artifact.manifest.file)
    artifact.check(get(record.name).files(path) if record else onnx_files(path))


def survey() -> dict[str, Availability]:
    """Every engine, and whether it can run here."""
    return {name: examine(get(name)) for name in names()}


def examine(engine: type[Engine], *, to_build: bool = False) -> Availability:
    """Whether ``engine`` can run (be built) here; a runtime whose installation is broken cannot."""
    try:
        return engine.can_build() if to_build else engine.availability()
    except (EngineUnavailableError, NotInstalledError) as error:
        return Availability(False, error.message, error.hint or "")
