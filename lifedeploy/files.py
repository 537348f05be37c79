"""Files that outlive a command: hashes, names that appear when their content is complete, and JSON to be read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_cache() -> Path:
    """Where this user keeps what can be made again: ``$XDG_CACHE_HOME/lifedeploy``, else ``~/.cache/lifedeploy``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifedeploy"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: what was at ``path`` is replaced as a whole, or stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            previous = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            try:
                path.replace(previous)
                temporary.replace(path)
            except BaseException:
                if not path.exists():
                    previous.replace(path)  # if this fails too, what there was stays where it is
                raise
            shutil.rmtree(previous, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as readable JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(readable_json(data), encoding="utf-8")


def readable_json(data: Mapping[str, Any]) -> str:
    """JSON with one fact per line; a list of plain values stays on its line."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    # A string holds no raw line end, so a bracket before one is never part of a string, and nor is white space around.
    flat = re.sub(_PLAIN_LIST, lambda match: "[" + re.sub(r",\n *", ", ", match[1]) + "]", text)
    return flat + "\n"


def compact_json(data: Any) -> str:
    """JSON on one line, for headers and for processes of ours."""
    return json.dumps(finite(data), allow_nan=False)


def finite(data: Any) -> Any:
    """``data`` with null in the place of NaN and infinity, which JSON has no words for: most readers stop at them."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


# "[", then only scalars between raw line ends, then "]".
_SCALAR = r'(?:"(?:[^"\\\n]|\\.)*"|[^\s"\[\]{},]+)'
_PLAIN_LIST = rf"\[\n *({_SCALAR}(?:,\n *{_SCALAR})*)\n *\]"
