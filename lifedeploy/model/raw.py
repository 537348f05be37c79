"""Files of weights as bytes: what is in them, without executing anything, and without believing their names or sizes.

safetensors holds no code, and everything else is read with ``weights_only=True``.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from lifedeploy.errors import WeightsError
from lifedeploy.files import is_lfs_pointer
from lifedeploy.reading import foreign, reason, require_regular
from lifedeploy.text import quoted, shortened, without_colours
from lifedeploy.writing import atomic_file, saving

_CHUNK = 8 * 1024**2
_GROWTH = 16  # times its size that an archive may unpack to; torch packs nothing, and weights are hard to pack
_SHOWN = 120  # characters of another library's message

# Names of types in safetensors (https://github.com/huggingface/safetensors#format).
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically; the same content gives the same bytes.

    The library itself orders the metadata by chance. It also writes beside the file under a name of its own, which
    stays when it is killed.

    Raises:
        OSError, ArtifactError: it cannot be written; with the name of the file.
    """
    # Wide types first, as the library does it: every tensor then begins at a multiple of its type's width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as staging, saving(staging), staging.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors: by its name, or by a header of JSON behind its length, whatever it is called.

    https://github.com/huggingface/safetensors#format

    Raises:
        WeightsError: it is a file, and cannot be opened.
    """
    if path.suffix.lower() == ".safetensors" or not path.is_file():
        return path.suffix.lower() == ".safetensors"
    with foreign(str(path), WeightsError), path.open("rb") as file:
        start = file.read(9)
        return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; nothing of others.

    Raises:
        WeightsError: it is no such file, though it has the name of one.
    """
    if not is_safetensors(path):
        return {}
    require_regular(path, WeightsError)
    require_content(path)
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        WeightsError: it cannot be read.
    """
    require_regular(path, WeightsError)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except Exception as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {reason(error)}") from error


def require_content(path: Path) -> None:
    """Refuse by their first bytes what is no file of weights, though it has the name of one.

    Raises:
        WeightsError: it is none, or cannot be opened.
    """
    with foreign(str(path), WeightsError):
        pointer, torchscript = is_lfs_pointer(path), _is_torchscript(path)
    if pointer:
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
    if torchscript:
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
    except Exception:  # cut off or damaged, in whatever way: torch's reader says so
        return False


def unpickle(path: Path) -> Any:
    """What is in a file that torch or pickle wrote, if it is tensors in plain containers.

    Raises:
        WeightsError: it is damaged, declares more than it holds, or could carry code.
    """
    _require_honest(path)
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


def _require_honest(path: Path) -> None:
    """Hold the sizes that an archive declares against its own, before torch takes memory for them.

    Raises:
        WeightsError: it declares more than can be in it.
    """
    size = require_regular(path, WeightsError)
    damaged = foreign(f"{path} is damaged or no checkpoint: it", WeightsError)
    if not zipfile.is_zipfile(path):
        with damaged, path.open("rb") as file:
            _require_no_filler(file, size, path)
        return
    with damaged, zipfile.ZipFile(path) as archive:
        declared = 0
        for member in archive.infolist():
            declared += member.file_size
            if declared > _GROWTH * size:
                raise WeightsError(
                    f"{path} declares {member.file_size:,} bytes as {member.filename}, and has {size:,} in all: no "
                    "weights are packed so small"
                )
            if member.filename.endswith("data.pkl"):
                with archive.open(member) as file:
                    _require_no_filler(file, member.file_size, path)


def _require_no_filler(file: IO[bytes], size: int, path: Path) -> None:
    """Refuse the calls that torch allows in a pickle and that take and fill memory of any size: bytearray(n), and
    encode(bytes, "hex"), which doubles them; encode(text, "latin1") is how Python 2 had bytes."""
    overlap, encodes, codec = b"", False, b""
    for _ in range(0, size, _CHUNK):
        part = overlap + file.read(_CHUNK)
        encodes = encodes or b"_codecs" in part
        match = _CODEC.search(part)
        codec = match[1] if match is not None else codec
        filler = f"bytes in the codec {quoted(codec.decode())}" if encodes and codec else ""
        if b"\nbytearray\n" in part:
            filler = "a bytearray"
        if filler:
            raise WeightsError(
                f"{path} holds more than tensors and is not loaded: {filler}", hint="save a plain state dict"
            )
        overlap = part[-32:]


# Codecs that make bytes of bytes, by their names as texts of a pickle.
_CODEC = re.compile(
    rb"(?:X.\0\0\0|\x8c.|V)((?:hex|base.?64|bz2|zlib|zip|quopri|quoted.?printable|uu)(?:.codec)?)",
    re.IGNORECASE | re.DOTALL,
)
# What torch's weights-only reader names when it meets something else than tensors.
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|instantiate|Trying to load unsupported GLOBAL) ([\w.]+)")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(path)


def _one_line(error: Exception) -> str:
    said = without_colours(str(error)).strip().partition("\n")[0]
    return " ".join(part for part in (type(error).__name__, shortened(said, _SHOWN)) if part)
