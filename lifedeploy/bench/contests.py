"""Contests that are over, kept: what was measured on this machine, by these versions, is not measured again.

A ratio is one of rounds in which both sides took turns, so what is kept, and what is looked for, is a contest as a
whole. One in which others took part too will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from lifedeploy.bench.report import Row
from lifedeploy.errors import ArtifactError
from lifedeploy.files import compact_json, now, write_json
from lifedeploy.reading import read_json

SCHEMA = 1
_MOST_KEPT = 10_000  # contests in a folder that are looked at


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a contest has to have in common with another one to stand for it."""

    machine: dict[str, Any]  # processor, its features, GPUs and their driver, versions of whatever computes
    engines: tuple[str, ...]  # labels, in order; the first is what all are held against
    mode: str
    batch: Annotated[int, Meta(ge=1)]
    streams: Annotated[int, Meta(ge=1)]
    threads: Annotated[int, Meta(ge=1)] | None  # None: the runtime decides
    copies: tuple[bool, ...]
    like: str  # the method that the others are held against, beside the baseline


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One that is over: who took part, and what was measured."""

    schema: int = SCHEMA
    created: str
    budget_s: Annotated[float, Meta(gt=0)]
    conditions: Conditions
    contestants: dict[str, str]  # engine, precision, method → digest of the engine's files
    gpu_state: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # clocks, temperature: before and after
    rows: tuple[Row, ...]

    def of(self, wanted: Mapping[str, str]) -> Contest | None:
        """The contest as far as it is about ``wanted``, in their order; None where one of them took no part."""
        if any(self.contestants.get(who) != digest for who, digest in wanted.items()):
            return None
        order = list(wanted)
        rows = [row for row in self.rows if contestant(row.subject.label, row.subject.shown) in wanted]
        rows.sort(key=lambda row: order.index(contestant(row.subject.label, row.subject.shown)))
        return replace(self, contestants=dict(wanted), rows=tuple(rows))


def contestant(label: str, method: str) -> str:
    """What a method on an engine is called here."""
    return f"{label} {method}"


def digest_of(files: Mapping[str, str]) -> str:
    """One digest of an engine's files, by name and SHA-256."""
    return hashlib.sha256(compact_json(dict(sorted(files.items()))).encode()).hexdigest()


class Contests:
    """A folder of contests that are over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, conditions: Conditions, wanted: Mapping[str, str], budget_s: float) -> Contest | None:
        """The newest one under the same conditions in which all that are ``wanted`` took part; no shorter one."""
        suitable = []
        for path in sorted(self.folder.glob("*.json"))[:_MOST_KEPT]:
            try:
                contest = read_json(path, Contest)
            except ArtifactError:  # of another version, or damaged: measured again
                continue
            same = contest.schema == SCHEMA and contest.conditions == conditions and contest.budget_s >= budget_s
            part = contest.of(wanted) if same else None
            if part is not None:
                suitable.append(part)
        return max(suitable, key=lambda contest: contest.created, default=None)

    def keep(
        self,
        conditions: Conditions,
        contestants: Mapping[str, str],
        budget_s: float,
        rows: Sequence[Row],
        gpu_state: Mapping[str, list[dict[str, str]]],
    ) -> Contest:
        """Write down a contest that has just ended; in the place of an earlier one of the same and as long.

        Raises:
            OSError, ArtifactError: it cannot be written.
        """
        contest = Contest(
            created=now(),
            budget_s=budget_s,
            conditions=conditions,
            contestants=dict(contestants),
            gpu_state=dict(gpu_state),
            rows=tuple(rows),
        )
        named = {"conditions": asdict(conditions), "contestants": contest.contestants, "budget_s": budget_s}
        name = hashlib.sha256(compact_json(named).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{name}.json", asdict(contest))
        return contest
