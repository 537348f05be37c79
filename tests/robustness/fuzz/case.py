"""What a case is, and where it is made."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.inputs import EXPORT, Inputs

MARK = "EXECUTED"  # a file of this name appears if something of a case is run as code


@dataclass(frozen=True)
class Case:
    """A command line in a folder that was made for it."""

    about: str  # what is not as it should be, for whoever looks into a failure
    argv: tuple[str, ...]
    bad: bool = False  # whether it has to be refused; False: refused or done, both are right
    says: str = ""  # a pattern that the error of a case that is refused has to match
    writes: tuple[str, ...] = ()  # files and folders that may be there, or other ones, after a failure too
    links: tuple[str, ...] = ()  # links that are to be written through
    terminal: bool = False
    encoding: str = "utf-8"
    largest_file: int = 0  # bytes; 0: any
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """The current folder of a case, and what it draws with."""

    folder: Path
    inputs: Inputs
    rng: random.Random

    def take(self, *names: str) -> None:
        """Copy inputs into it."""
        self.inputs.copy(self.folder, *names)

    def take_export(self, *parts: str) -> Path:
        """Copy the export without what was made of it, and ``parts`` of that; the export's folder."""
        names = [path.name for path in (self.inputs.root / EXPORT).iterdir() if path.is_file()]
        self.take(*(f"{EXPORT}/{name}" for name in (*names, *parts)))
        return self.folder / EXPORT

    def path(self, name: str) -> Path:
        """A path in the folder; the folder it is in exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, data: bytes) -> Path:
        """A file in the folder."""
        path = self.path(name)
        path.write_bytes(data)
        return path

    def one_of(self, *choices: Any) -> Any:
        """One of several."""
        return self.rng.choice(choices)


Make = Callable[[Place], Case]


@dataclass(frozen=True)
class Kind:
    """Cases of one kind. ``share`` is how many of them there are beside others; ``cheap``: mostly done in half a
    second."""

    name: str
    make: Make
    share: int
    cheap: bool


KINDS: dict[str, Kind] = {}


def kind(name: str, *, share: int = 10, cheap: bool = True) -> Callable[[Make], Make]:
    """Register a function that makes cases."""

    def register(make: Make) -> Make:
        KINDS[name] = Kind(name, make, share, cheap)
        return make

    return register


def sign(manifest: Path) -> None:
    """Write the hashes of the files into a manifest, as if it had been made for them: what is wrong is inside."""
    data = json.loads(manifest.read_text(encoding="utf-8"))
    data["sha256"] = _sha256(manifest.parent / data["file"])
    if data.get("engine"):
        files = data["engine"]["files"]
        data["engine"]["files"] = {name: _sha256(manifest.parent / name) for name in files}
    manifest.write_text(json.dumps(data), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
