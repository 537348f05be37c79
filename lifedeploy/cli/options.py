"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.errors import UsageError

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", metavar="DIR", help="Where results go and are looked for.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the report as JSON; - for standard output.")
]
ModelArgument = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="An export or engine folder, a manifest, or a model file. Default: newest."),
]


def numbers(text: str, what: str) -> tuple[int, ...]:
    """``"127,95,63"`` → (127, 95, 63).

    Raises:
        UsageError: something in it is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{what} {text!r} is no list of whole numbers; expected for example 4,7,10") from error


def fractions(text: str, what: str) -> tuple[float, ...]:
    """``"0.6,1"`` → (0.6, 1.0).

    Raises:
        UsageError: something in it is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{what} {text!r} is no list of numbers; expected for example 0.6,1") from error


def image_size(text: str) -> tuple[int, int]:
    """``"224"`` → (224, 224); ``"192x256"`` → (192, 256), height first.

    Raises:
        UsageError: neither of these.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"image size {text!r} is not allowed; expected for example 224, or 192x256 (height x width)")
    return int(parts[0]), int(parts[-1])


def precision(**given: bool) -> str:
    """The one precision asked for; '' where none was: the engine's usual one.

    Raises:
        UsageError: more than one.
    """
    chosen = [name for name, wanted in given.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)} exclude each other: an engine has one precision")
    return chosen[0] if chosen else ""


def require_folder(path: Path | None) -> None:
    """Find out before the work, not after, that a result cannot be written; ``-`` is standard output.

    Raises:
        UsageError: the folder does not exist, or is not ours to write to; or the file is a folder.
    """
    if path is None or str(path) == "-":
        return
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder, and a file is expected")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UsageError(f"{path} cannot be written: {path.parent}/ is no folder that can be written to")
