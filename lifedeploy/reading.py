"""Bytes that others wrote: one door for all of them.

Whatever a parser raises at bytes that are damaged, or made to break it, becomes one of our errors here. What is read is
a regular file (a pipe or a device has no end), of a size that somebody bounded, and what it declares about itself is
converted and checked all the way down by msgspec, which names the place that is wrong.
"""

from __future__ import annotations

import math
import os
import re
import stat
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lifedeploy.errors import ArtifactError, LifedeployError
from lifedeploy.text import printable, shortened

if TYPE_CHECKING:  # the command line's help imports this module, and no numpy
    from numpy.typing import NDArray

T = TypeVar("T")
Failure = type[LifedeployError]
_LONGEST_KEY = 1000  # characters of a key with dots in it
TOML_LIMIT = 64 * 1024  # bytes of settings: Python's reader takes the square of its time over them
TEXT_LIMIT = 64 * 1024**2  # bytes of JSON, TOML, CSV or plain text: a manifest of 21,000 classes has one
ARRAYS_LIMIT = 1024**3  # bytes of all arrays of an .npz: recorded answers have megabytes
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@contextmanager
def foreign(what: str, failure: Failure = ArtifactError, *, hint: str | None = None) -> Iterator[None]:
    """Around a parser of other people's bytes: ``what`` is named as unreadable by whatever it raises.

    Raises:
        ``failure``: in the place of every exception that is none of ours.
    """
    try:
        yield
    except LifedeployError:
        raise
    except Exception as error:  # parsers fail in every way there is at bytes that nobody meant them to see
        raise failure(f"{what} cannot be read: {reason(error)}", hint=hint) from error


def reason(error: BaseException) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, KeyError):
        return f"{shortened(str(error))} is missing"
    return shortened(str(error)) or type(error).__name__


def require_regular(path: Path, failure: Failure = ArtifactError, *, hint: str | None = None) -> int:
    """Make sure that ``path`` is a file with an end, before a library waits for it; its size in bytes.

    Raises:
        ``failure``: it does not exist, cannot be looked at, or is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise failure(f"{path} does not exist", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in it
        raise failure(f"{path} cannot be opened: {reason(error)}", hint=hint) from error
    if stat.S_ISDIR(status.st_mode):
        raise failure(f"{path} is a folder; expected a file", hint=hint)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise failure(f"{path} is {kind}; expected a regular file", hint=hint)
    return status.st_size


def read_bytes(path: Path, failure: Failure = ArtifactError, *, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        ``failure``: it does not exist, is none, is larger, or cannot be read.
    """
    require_regular(path, failure)
    with foreign(str(path), failure), open(path, "rb", opener=_without_waiting) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        most = f"{limit / 1024**2:,.0f} MiB" if limit >= 1024**2 else f"{limit / 1024:,.0f} KiB"
        raise failure(f"{path} is larger than the {most} that such a file may have")
    return data


def read_text(path: Path, failure: Failure = ArtifactError, *, limit: int = TEXT_LIMIT) -> str:
    """The same as UTF-8 text, without a byte order mark.

    Raises:
        ``failure``: as :func:`read_bytes`; or it is not UTF-8.
    """
    data = read_bytes(path, failure, limit=limit)
    with foreign(str(path), failure):
        return data.decode("utf-8-sig")


def read_json(path: Path, kind: type[T], failure: Failure = ArtifactError, *, what: str = "") -> T:
    """A JSON file as ``kind``, typed all the way down.

    Raises:
        ``failure``: it cannot be read, is no JSON, or something in it is of another type; with the place.
    """
    text = read_text(path, failure)
    return decode_json(text, kind, what or str(path), failure)


def decode_json(text: str | bytes, kind: type[T], what: str, failure: Failure = ArtifactError) -> T:
    """JSON text as ``kind``, typed all the way down; ``what`` is what errors call it.

    Raises:
        ``failure``: it is no JSON, or something in it is of another type; with the place.
    """
    with foreign(what, failure):
        return msgspec.json.decode(text, type=kind)


def read_toml(path: Path, failure: Failure = ArtifactError) -> dict[str, Any]:
    """A TOML file, unchecked.

    Raises:
        ``failure``: it cannot be read, or is no TOML.
    """
    text = read_text(path, failure, limit=TOML_LIMIT)
    if max(map(len, re.findall(r"[\w.]*\.[\w.]*", text)), default=0) > _LONGEST_KEY:
        raise failure(f"{path} cannot be read: a key in it has more than {_LONGEST_KEY} characters")
    with foreign(str(path), failure):
        return tomllib.loads(text.replace("\r\n", "\n"))


def read_arrays(path: Path, failure: Failure = ArtifactError) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file, each held against the bytes that are there before memory is taken for it.

    Raises:
        ``failure``: it cannot be read, or an array declares more than its member holds.
    """
    size = require_regular(path, failure)
    with foreign(str(path), failure), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        whole = sum(member.file_size for member in members)
        arrays = {}
        for member in members:
            # Deflate makes a thousandth of the most regular bytes: what promises more than that is no honest file.
            if member.file_size > 1100 * max(member.compress_size, 1) or member.compress_size > size:
                raise failure(f"{path}: {printable(member.filename)} declares more bytes than can be in it")
            if whole > ARRAYS_LIMIT:
                raise failure(f"{path} holds {whole:,} bytes of arrays; expected at most {ARRAYS_LIMIT:,}")
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = _array(file, member.file_size, path, failure)
        return arrays


def _array(file: Any, held: int, path: Path, failure: Failure) -> NDArray[Any]:
    import numpy as np

    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise failure(f"{path} holds objects, which could be code; expected plain arrays")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > held or min(shape, default=0) < 0:
        raise failure(f"{path} declares an array of {shape}, {wanted:,} bytes, where {held:,} are held")
    data = np.frombuffer(file.read(wanted), dtype=dtype).copy()
    return data.reshape(shape, order="F" if fortran else "C")


def _without_waiting(path: str, flags: int) -> int:
    """Opens what may have become a pipe since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
