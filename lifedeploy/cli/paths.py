"""Options that are paths: looked at before the work, as far as that can be done without doing it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lifedeploy import writing
from lifedeploy.cli.values import LONGEST_PATH, Value, length_in_bytes
from lifedeploy.errors import UsageError
from lifedeploy.optional import require_installed
from lifedeploy.text import quoted

PICTURES = (".png", ".svg", ".pdf")  # what a picture can be written as


class Source(Value):
    """Text that may be a path: the name of a data set, of weights, of a list of images."""

    def __init__(self, flag: str, empty: str = "") -> None:
        super().__init__(flag)
        self.empty = empty

    def read(self, text: str) -> str:
        if not text and self.empty:
            raise UsageError(self.empty)
        return _path(text, self.flag)


class Place(Source):
    """A path, or the address of a model behind a server."""

    def read(self, text: str) -> str:
        place = super().read(text)
        if "://" in place:
            from lifedeploy.engines.wire import address_of

            address_of(place)  # raises
        return place


class Url(Place):
    """The address of a model behind a server."""

    def read(self, text: str) -> str:
        if "://" not in text:
            raise UsageError(f"{self.flag} {quoted(text)} is no address; expected http://HOST:PORT/MODEL, or grpc")
        return super().read(text)


class Input(Value):
    """A path to read from; whether it is there is found out by who reads it."""

    def read(self, text: str) -> Path:
        return Path(_path(text, self.flag))


class Folder(Input):
    """A folder to read from, which may not exist yet; with ``written``, one that can be written."""

    def __init__(self, flag: str, *, written: bool = False) -> None:
        super().__init__(flag)
        self.written = written

    def read(self, text: str) -> Path:
        path = super().read(text)
        if self.written:
            writing.require_folder(path)
        elif _is_file(path):
            raise UsageError(f"{path} is a file, and {self.flag} takes a folder")
        return path


class Output(Value):
    """A file to write, which is found out to be possible here, before the work; with ``endings``, a picture.

    With ``dash``, ``-`` is standard output.
    """

    def __init__(self, flag: str, *, endings: Sequence[str] = (), dash: bool = False) -> None:
        super().__init__(flag)
        self.endings, self.dash = endings, dash

    def __call__(self, given: Any) -> Any:
        return self.read(str(given)) if isinstance(given, Path) else super().__call__(given)  # a default too

    def read(self, text: str) -> Path:
        path = Path(_path(text, self.flag))
        if self.dash and text == "-":
            return path
        writing.require_writable(path)
        if self.endings and path.suffix.lower() not in self.endings:
            raise UsageError(f"{path} is no plot file: its ending must be one of {', '.join(self.endings)}")
        if self.endings:
            require_installed("matplotlib", extra="plot")
        return path


def matching(path: Path) -> list[Path]:
    """The files that a pattern is of, ``DIR/*.safetensors``, by name; a path that is none, or of nothing, as it is."""
    if os.path.lexists(path) or not set("*?[") & set(str(path)):
        return [path]
    with suppress(ValueError):  # no pattern, as a**
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) or [path]
    return [path]


def _path(text: str, flag: str) -> str:
    if "\0" in text or not 0 < length_in_bytes(text) <= LONGEST_PATH:
        raise UsageError(
            f"Invalid value for '{flag}': {quoted(text)} is no path; "
            f"it must have 1 to {LONGEST_PATH:,} bytes, none of them 0"
        )
    return text


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that cannot be: who reads it says so
        return False
