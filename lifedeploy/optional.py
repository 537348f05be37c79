"""Optional dependencies: one door for all, so that a missing one costs its user one line.

What a module needs as a whole it imports at its top, and nobody asks before: where that fails, :func:`of_extra` tells
the command line which extra would have brought it. :func:`require` is for what can be said earlier, or better.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from lifedeploy.errors import NotInstalledError

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
    "tritonclient",
    "pyarrow",
    "ray",
    "numpy",
)

# Extra → modules that it brings, and that are imported without asking. What runtimes are called is for engines to say.
EXTRAS = {
    "export": ("torch", "timm", "onnxscript", "onnx_ir", "ml_dtypes", "safetensors"),
    "train": ("accelerate", "tomli_w"),
    "plot": ("matplotlib",),
    "score": ("pyarrow", "fsspec"),
    "ray": ("ray",),
    "onnxruntime": ("onnx",),  # as every extra does whose engine opens ONNX files
}

# Distributions that share their module with others.
_MODULES = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime"}


def installed(module: str) -> bool:
    """Whether ``module`` can be imported, found out without importing it."""
    return importlib.util.find_spec(module) is not None


def pip_line(extra: str) -> str:
    """The command that installs one of our extras."""
    return f"pip install 'lifedeploy[{extra}]'"


def require_installed(*modules: str, extra: str) -> None:
    """Make sure that ``modules`` can be imported, without importing them: before anything is computed or written.

    Raises:
        NotInstalledError: one is not installed; with the pip line.
    """
    for module in modules:
        if not installed(module.partition(".")[0]):
            raise NotInstalledError(f"{module} is not installed", hint=pip_line(extra))


def of_extra(error: ModuleNotFoundError) -> NotInstalledError | None:
    """What to say of an import that failed; None of a module that no extra brings: that is somebody's mistake."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return NotInstalledError(f"{module} is not installed", hint=pip_line(extra)) if extra else None


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``.

    Raises:
        NotInstalledError: it is not installed (with the pip line), or fails to import (with the reason).
    """
    require_installed(module, extra=extra)
    # ONNX Runtime would tell its maker what runs, and leave a file for that where temporary ones are; whoever wants it
    # to can set the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(module)
    except Exception as error:  # a shared library that does not load, a home that a library looks for and is not there
        raise NotInstalledError(f"{module} is installed but does not import: {error}") from error


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
