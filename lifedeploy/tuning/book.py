"""What was measured or asked, written down with the conditions that it holds under: it is not measured again there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from lifedeploy.errors import ArtifactError
from lifedeploy.files import compact_json, write_json
from lifedeploy.reading import read_json
from lifedeploy.typed import Number, Positive

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The time of one number of tokens, relative to all of them: the median of the rounds, and its interval."""

    time: Positive
    low: Positive
    high: Positive
    rounds: Annotated[int, Meta(ge=1)]
    seconds: Positive  # that the contest was given


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far a pruned model's classes are from the dense one's, over some images."""

    kl: Number  # mean, in nats
    agreement: Annotated[float, Meta(ge=0, le=1)]  # share of images with the same top-1


@dataclass(frozen=True, kw_only=True)
class _Probes:
    schema: int
    conditions: dict[str, Any]
    entries: dict[str, Probe]


@dataclass(frozen=True, kw_only=True)
class _Divergences:
    schema: int
    conditions: dict[str, Any]
    entries: dict[str, Divergence]


class Book:
    """A folder with a file for each set of conditions.

    Args:
        folder: it is made when something is written.
        fresh: whether what is in it from earlier times is passed over.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self._fresh = fresh
        self._written: set[Path] = set()

    def probes(self, conditions: Mapping[str, Any]) -> dict[int, Probe]:
        """Patch tokens → what was measured under these conditions."""
        entries = self._read("probes", conditions, _Probes)
        return {int(tokens): probe for tokens, probe in entries.items() if tokens.isdecimal()}

    def keep_probes(self, conditions: Mapping[str, Any], probes: Mapping[int, Probe]) -> None:
        """Write down all of them.

        Raises:
            OSError: it cannot be written.
        """
        self._write("probes", _Probes, conditions, {str(tokens): probe for tokens, probe in probes.items()})

    def divergences(self, conditions: Mapping[str, Any]) -> dict[str, Divergence]:
        """Schedule, in words → what was asked of it under these conditions."""
        return dict(self._read("divergences", conditions, _Divergences))

    def keep_divergences(self, conditions: Mapping[str, Any], divergences: Mapping[str, Divergence]) -> None:
        """Write down all of them.

        Raises:
            OSError: it cannot be written.
        """
        self._write("divergences", _Divergences, conditions, divergences)

    def _path(self, kind: str, conditions: Mapping[str, Any]) -> Path:
        return self.folder / f"{kind}-{hashlib.sha256(compact_json(conditions).encode()).hexdigest()[:16]}.json"

    def _read(self, kind: str, conditions: Mapping[str, Any], shape: Any) -> Mapping[str, Any]:
        path = self._path(kind, conditions)
        if self._fresh and path not in self._written:
            return {}
        try:
            page = read_json(path, shape)
        except ArtifactError:  # none yet; or of another version, or damaged: measured again
            return {}
        same = page.schema == SCHEMA and compact_json(page.conditions) == compact_json(conditions)
        return page.entries if same else {}

    def _write(self, kind: str, shape: Any, conditions: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
        path = self._path(kind, conditions)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(shape(schema=SCHEMA, conditions=dict(conditions), entries=dict(entries))))
        self._written.add(path)
