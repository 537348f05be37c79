"""Optional dependencies: one door for all, so that a missing one costs its user one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from lifedeploy.errors import EngineUnavailableError

# What the reports name. Distribution names, as pip knows them.
REPORTED = (
    "lifedeploy",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "cuda-bindings",
    "numpy",
)

# Distributions that share their module with others.
_MODULES = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime"}


def installed(module: str) -> bool:
    """Whether ``module`` can be imported, found out without importing it."""
    return importlib.util.find_spec(module) is not None


def pip_line(extra: str) -> str:
    """The command that installs one of our extras."""
    return f"pip install 'lifedeploy[{extra}]'"


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``.

    Raises:
        EngineUnavailableError: it is not installed (with the pip line), or fails to import (with the reason).
    """
    if not installed(module.partition(".")[0]):
        raise EngineUnavailableError(f"{module} is not installed", hint=pip_line(extra))
    # ONNX Runtime would tell its maker what runs, and leave a file for that where temporary ones are; whoever wants it
    # to can set the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(module)
    except Exception as error:  # a shared library that does not load, a home that a library looks for and is not there
        raise EngineUnavailableError(f"{module} is installed but does not import: {error}") from error


def versions(names: tuple[str, ...] = REPORTED) -> dict[str, str]:
    """Versions of the distributions in ``names`` that are installed, and whose modules are those that are imported."""
    return {name: version for name in names if (version := _version(name))}


@cache
def _version(name: str) -> str:
    """'' where it is not installed, or another distribution's module is imported in place of its own."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return ""
    return "" if _shadowed(distribution) else distribution.version


def _shadowed(distribution: metadata.Distribution) -> bool:
    """Whether its module is imported from elsewhere: a distribution of the same module comes earlier on the path."""
    module = _MODULES.get(distribution.metadata["Name"])
    spec = importlib.util.find_spec(module) if module else None
    if module is None or spec is None or spec.origin is None:
        return False
    file = Path(str(distribution.locate_file(f"{module}/__init__.py")))
    return file.exists() and not file.samefile(spec.origin)
