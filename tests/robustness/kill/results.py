"""What a command leaves, and what of it is the same every time it is run."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of what is measured, of how a command was started, and of how much was left to do: another one every time. The rest is
# found by comparison.
_MEASURED = (
    *("minutes", "seconds", "images_per_s", "engine_images_per_s", "command", "machine", "processor", "rounds"),
    *("created", "parts_before", "scored", "root"),
)
_KEY = re.compile(r"(?<=part-[0-9]{5})-[0-9a-f]{12}(?=\.)")  # of a job, which is another one in another folder


@dataclass(frozen=True)
class Results:
    """Files below a folder: path → content, without what is measured; None for a folder."""

    contents: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Results:
        """What is there now. A file that cannot be read as what it is called is kept as its bytes."""
        contents = {}
        for path in folder.rglob("*"):
            name = str(path.relative_to(folder))
            plain = _KEY.sub("", name)
            name = plain if plain not in contents else name  # where two jobs have been in one folder
            contents[name] = _content(path) if path.is_file() else None
        return cls(contents)


@dataclass(frozen=True)
class Expected:
    """Results of two runs that nobody disturbed."""

    one: Results
    other: Results

    @property
    def stable(self) -> list[str]:
        """Files that are the same in both."""
        return [name for name, content in self.one.contents.items() if self.other.contents.get(name) == content]

    def differences(self, found: Results) -> list[str]:
        """What is not as it was both times: too much, too little, or another content."""
        wanted, there = self.one.contents.keys() | self.other.contents.keys(), found.contents.keys()
        said = [f"{name} is left over" for name in sorted(there - wanted)]
        said += [f"{name} is missing" for name in sorted(wanted - there)]
        stable = [name for name in self.stable if name in there]
        said += [f"{name} is another one" for name in stable if found.contents[name] != self.one.contents[name]]
        empty = [name for name in sorted(wanted & there) if found.contents[name] == b"" != self.one.contents[name]]
        return said + [f"{name} is empty" for name in empty]


def _content(path: Path) -> Any:
    data = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _without_measured(json.loads(data))
        if path.suffix == ".csv":
            return [_without_measured(row) for row in csv.DictReader(io.StringIO(data.decode()))]
        if path.suffix == ".safetensors":
            end = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:end])
            facts = {name: _facts(text) for name, text in header.pop("__metadata__", {}).items()}
            return header, facts, data[end:]
    except (ValueError, TypeError):
        return data
    return data


def _facts(text: str) -> Any:
    try:
        return _without_measured(json.loads(text))
    except ValueError:
        return text


def _without_measured(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _without_measured(value) for name, value in data.items() if name not in _MEASURED}
    return [_without_measured(value) for value in data] if isinstance(data, list) else data
