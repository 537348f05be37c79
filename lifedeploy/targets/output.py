"""Where an export may be written: nothing that no export made is lost."""

from __future__ import annotations

import re
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.temporary import is_temporary, sweep
from lifedeploy.text import shortened
from lifedeploy.writing import require_folder

CHECKPOINT = "weights.safetensors"
REFERENCE = "reference.npz"


def require_usable(folder: Path) -> None:
    """Found out before the work that is for nothing otherwise.

    Raises:
        UsageError: nothing can be written there, or what is there would be lost.
    """
    require_folder(folder, replaced=True)
    _require_replaceable(folder)


# What builds and calibrations left that version 0.1 had begun and somebody ended: ``.openvino-fp32.1a2b3c4d``.
_HALF_BUILT = re.compile(r"\.([a-z-]+-(fp32|fp16|bf16|int8|fp8)|int8|fp8)(\.old)?\.[a-z0-9_]{8}")


def _require_replaceable(folder: Path) -> None:
    """An export takes the place of what was in its folder: that may be nothing, or an export with its engines.

    Raises:
        UsageError: anything else is in it, and would be lost.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or Path.cwd().is_relative_to(folder.resolve()):
        what = "the current folder or above it" if folder.is_dir() else "a file"
        raise UsageError(f"{folder} cannot be written to: it is {what}")
    stems = {method.stem for method in methods.variants(methods.get(methods.DEFAULT))}
    ours = {CHECKPOINT, REFERENCE, *(f"{stem}.{ending}" for stem in stems for ending in ("onnx", "json"))}
    sweep(folder)
    foreign = [
        path.name
        for path in folder.iterdir()
        if path.name not in ours
        and not is_temporary(path.name)
        and not _HALF_BUILT.fullmatch(path.name)
        and not _is_made_of_one(path)
    ]
    if foreign:
        name = shortened(min(foreign))
        raise UsageError(f"{folder}/ holds {name}, which no export made and which would be lost", hint="-o DIR")


def _is_made_of_one(folder: Path) -> bool:
    """Whether a folder holds what was made of an export: an engine, or a calibrated graph."""
    try:
        return Artifact.read(folder / "model.json").manifest.kind != "model"
    except (ArtifactError, OSError):
        return False
