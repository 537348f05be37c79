"""A job: which model gives which answers to which images, and how it went.

A job has a key, which is in the name of every part: what another model, other options or another input have made is
never taken for it. Batch sizes, threads and where it runs are none of that: a job may be taken up on a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated

from msgspec import Meta

from lifedeploy.files import compact_json
from lifedeploy.scoring.answers import Kept
from lifedeploy.text import shortened

EXAMPLES = 10  # images without an answer that are named
_Count = Annotated[int, Meta(ge=0)]
_SAID = {
    "model": "model",
    "sha256": "model",
    "engine": "engine",
    "precision": "precision",
    "keep": "--keep",
    "top": "--top",
    "input": "images",
    "root": "images",
    "column": "--column",
    "part": "--part",
    "format": "format",
    "max_pixels": "--max-pixels",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What makes rows what they are."""

    model: str  # its name: only shown
    source: str  # the input as it was named: only shown
    root: str  # address of the folder that names are below
    column: str  # of a manifest
    sha256: str  # of the model's file
    engine: str
    precision: str
    keep: Kept
    top: int
    input: str  # digest of the images' names, or of the manifest
    part: int  # images in a part
    format: str
    max_pixels: int

    @property
    def key(self) -> str:
        """The same for the same rows."""
        told = {name: value for name, value in asdict(self).items() if name not in ("model", "source")}
        return hashlib.sha256(compact_json(told).encode()).hexdigest()[:12]

    def differences(self, other: Job) -> list[str]:
        """In which words it is another one."""
        odd = [name for name in _SAID if name != "model" and getattr(self, name) != getattr(other, name)]
        said = []
        for name in odd:
            if "input" in odd and name in ("root", "column"):
                continue  # other images altogether
            ours, theirs = getattr(self, name), getattr(other, name)
            if name == "sha256":
                ours, theirs = (f"{job.model} ({job.sha256[:8]})" for job in (self, other))
            elif name == "input":
                ours, theirs = (f"{job.source} ({job.input[:8]})" for job in (self, other))
            said.append(f"{_SAID[name]} {theirs}, not {ours}")
        return said


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Rows that are done."""

    images: _Count = 0
    bad: _Count = 0
    examples: tuple[tuple[str, str], ...] = ()  # the first bad ones: name, what is wrong

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Tally:
        """What rows come to: the name of each, and what is wrong with its image; ''."""
        count, bad = 0, 0
        examples: list[tuple[str, str]] = []
        for name, problem in rows:
            count += 1
            if problem:
                bad += 1
                examples += [(name, shortened(problem))] if len(examples) < EXAMPLES else []
        return cls(images=count, bad=bad, examples=tuple(examples))

    def __add__(self, other: Tally) -> Tally:
        examples = (*self.examples, *other.examples)[:EXAMPLES]
        return Tally(images=self.images + other.images, bad=self.bad + other.bad, examples=examples)


def told(name: str, problem: str) -> str:
    """What is wrong with an image, with its name, which is in most of what is said of one."""
    return shortened(problem if name in problem else f"{name}: {problem}", 300)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What lies beside the rows: which job they are of."""

    lifedeploy: str  # version
    created: str
    job: Job
    complete: bool = False
    parts: _Count = 0
    tally: Tally = field(default_factory=Tally)
