"""Facts about files, and JSON that anybody can read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifedeploy.text import printable
from lifedeploy.writing import atomic_file

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


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as readable JSON, atomically."""
    write_text(path, readable_json(data))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


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
