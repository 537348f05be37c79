"""Facts about files, and JSON that anybody can read."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifedeploy.errors import ArtifactError
from lifedeploy.text import printable
from lifedeploy.writing import atomic_file

# The variables that name the caches of PyTorch's compilers.
_COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time, UTC, ISO 8601; the one that ``SOURCE_DATE_EPOCH`` sets (https://reproducible-builds.org/specs/)."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(fixed), UTC) if fixed.isdecimal() and len(fixed) < 12 else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")


def user_cache() -> Path:
    """Where this user keeps what can be made again: ``$XDG_CACHE_HOME/lifedeploy``, else ``~/.cache/lifedeploy``.

    A relative ``XDG_CACHE_HOME`` is passed over, as https://specifications.freedesktop.org/basedir says.

    Raises:
        OSError: there is none of them.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():
        return given / "lifedeploy"
    try:
        return Path.home() / ".cache" / "lifedeploy"
    except RuntimeError as error:  # in a container, as a user that it does not know
        raise FileNotFoundError(errno.ENOENT, "this user has no home; XDG_CACHE_HOME names a folder to use") from error


def compiler_caches() -> None:
    """Have PyTorch's compilers keep their kernels where nobody else writes, unless the user has chosen a place.

    Their own place has a name that anybody can be first to use, in the folder for temporary files of all. PyTorch may
    have made it, and set the variable to it, when it was imported.
    """
    shared = str(Path(tempfile.gettempdir()) / "torchinductor_")
    for variable, name in _COMPILERS.items():
        given = os.environ.get(variable, "")
        if given.startswith(shared):
            with suppress(OSError):
                Path(given).rmdir()  # if there is nothing in it
        elif given and given != _named_cache(name):
            continue
        try:
            folder = private_cache(name)
        except (OSError, ArtifactError):  # a home that cannot be written to, or another user's
            folder = Path(tempfile.mkdtemp(prefix=f"lifedeploy-{name}-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[variable] = str(folder)


def name_compiler_caches() -> None:
    """Tell PyTorch of these places before it is imported: it makes its own as it is. Nothing is made here."""
    for variable, name in _COMPILERS.items():
        place = _named_cache(name)
        above = next((folder for folder in Path(place).parents if folder.exists()), None) if place else None
        if above is not None and os.access(above, os.W_OK) and not os.environ.get(variable):
            os.environ[variable] = place


def _named_cache(name: str) -> str:
    try:
        return str(user_cache() / name)
    except OSError:  # no home
        return ""


def private_cache(name: str) -> Path:
    """A folder of :func:`user_cache`, made for nobody but this user: kernels in it are code that will be run.

    Raises:
        ArtifactError: it belongs to somebody else.
    """
    folder = user_cache() / name
    for place in (user_cache(), folder):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            raise ArtifactError(
                f"{place}/ belongs to another user, so what is kept in it is not trusted",
                hint="set XDG_CACHE_HOME to a folder of your own",
            )
        place.chmod(0o700)  # whatever it was made with
    return folder


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as readable JSON, atomically."""
    with atomic_file(path) as staging:
        staging.write_text(readable_json(data), encoding="utf-8")


def readable_json(data: Mapping[str, Any]) -> str:
    """JSON with one fact per line; a list of plain values stays on its line."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    # A string holds no raw line end, so a bracket before one is never part of a string, and nor is white space around.
    flat = re.sub(_PLAIN_LIST, lambda match: "[" + re.sub(r",\n *", ", ", match[1]) + "]", text)
    return re.sub(_UNPRINTABLE, lambda match: f"\\u{ord(match[0]):04x}", flat) + "\n"


def compact_json(data: Any) -> str:
    """JSON on one line, for headers and for processes of ours."""
    return json.dumps(finite(data), allow_nan=False)


def finite(data: Any) -> Any:
    """``data`` with null in the place of NaN and infinity, which JSON has no words for, and file names that are no
    UTF-8 as they are shown: most readers stop at either."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, str):
        return data if data.isascii() else re.sub("[\ud800-\udfff]", lambda match: printable(match[0]), data)
    if isinstance(data, Mapping):
        return {finite(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


# Beyond ASCII, what a terminal obeys or what turns the direction of writing: JSON has escapes for it.
_UNPRINTABLE = "[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
# "[", then only scalars between raw line ends, then "]".
_SCALAR = r'(?:"(?:[^"\\\n]|\\.)*"|[^\s"\[\]{},]+)'
_PLAIN_LIST = rf"\[\n *({_SCALAR}(?:,\n *{_SCALAR})*)\n *\]"
