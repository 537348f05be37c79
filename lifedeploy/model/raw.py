"""Files of weights as bytes: what is in them, without executing anything, and without believing their names.

safetensors holds no code, and everything else is read with ``weights_only=True``.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lifedeploy.errors import WeightsError
from lifedeploy.files import is_lfs_pointer

_SHOWN = 120  # characters of another library's message


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors: by its name, or by a header of JSON behind its length, whatever it is called.

    https://github.com/huggingface/safetensors#format
    """
    if path.suffix.lower() == ".safetensors" or not path.is_file():
        return path.suffix.lower() == ".safetensors"
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; nothing of others.

    Raises:
        WeightsError: it is no such file, though it has the name of one.
    """
    if not is_safetensors(path):
        return {}
    if path.is_file():
        require_content(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def require_content(path: Path) -> None:
    """Refuse by their first bytes what is no file of weights, though it has the name of one."""
    if is_lfs_pointer(path):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights it stands for", hint="git lfs pull fetches them"
        )
    if path.suffix in (".npz", ".npy"):
        raise WeightsError(
            f"{path} is a NumPy archive, as JAX and Flax models are kept in, and not read",
            hint="timm's create_model(NAME, checkpoint_path=FILE) reads it: save its state_dict() as safetensors",
        )
    if path.suffix == ".json":
        raise WeightsError(f"{path} is no file of weights", hint="of weights in several files, join them in one")
    if _is_torchscript(path):
        raise WeightsError(
            f"{path} is a TorchScript archive, which holds code, and is not loaded",
            hint="torch.jit.load(FILE).state_dict(), saved as safetensors, is",
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # cut off: torch's reader says so
        return False


def unpickle(path: Path) -> Any:
    """What is in a file that torch or pickle wrote, if it is tensors in plain containers.

    Raises:
        WeightsError: it is damaged, or could carry code.
    """
    try:
        # timm's and DeiT's training scripts keep their arguments beside the weights: plain attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Not torch's first line, which advises to load it all the same.
        named = _FORBIDDEN.search(str(error))
        if named is None and not _is_pickle(path):  # the page of a download that failed, say
            raise WeightsError(f"{path} is damaged or no checkpoint: it is no pickle") from error
        raise WeightsError(
            f"{path} holds more than tensors and is not loaded, since that could run code: "
            + (named[1] if named else "a pickle that torch did not write"),
            hint="save it again as safetensors, or as a plain state dict",
        ) from error
    except Exception as error:  # on bytes that are no pickle torch's reader fails in every way there is
        raise WeightsError(f"{path} is damaged or no checkpoint: {_one_line(error)}") from error


# What torch's weights-only reader names when it meets something else than tensors.
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|instantiate|Trying to load unsupported GLOBAL) ([\w.]+)")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(path)


def _one_line(error: Exception) -> str:
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    said = " ".join((lines[0] if lines else "").split())
    short = said if len(said) <= _SHOWN else said[:_SHOWN].rpartition(" ")[0] + " …"
    return " ".join(part for part in (type(error).__name__, short) if part)
