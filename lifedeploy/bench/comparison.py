"""What a comparison of methods says: bench's rows, and how each method's share of the work was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.bench.contests import Contest
from lifedeploy.bench.report import BenchReport, Row
from lifedeploy.errors import EngineError, ParityError

AS_TRAINED = "as-trained"  # what checkpoints are compared at, beside typed.COMPARED_AT
_EQUAL = 0.02  # an engine is as fast as itself within this share


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model, as it took part."""

    name: str  # its method's, or, of checkpoints, one of its own
    method: str
    title: str
    export: str  # its folder
    weights: str
    keep_rate: float | None  # None: it drops nothing, or has a budget of its own
    tokens: tuple[int, ...]  # patch tokens, from drop to drop
    gmacs: float  # of one image

    @classmethod
    def of(cls, model: Artifact, name: str) -> Compared:
        """A model by its manifest, under the name that it has here."""
        spec = model.manifest.spec
        return cls(
            name=name,
            method=spec.method,
            title=methods.title_of(spec.method),
            export=str(model.export.folder),
            weights=spec.provenance.weights,
            keep_rate=spec.schedule.keep_rate if spec.drops else None,
            tokens=spec.stages,
            gmacs=model.manifest.macs.total / 1e9,
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One step on the way to equal speed: a keep rate, and how fast the method was there."""

    method: str
    keep_rate: float
    gmacs: float
    speed: float  # over the method that all are brought to the speed of; median of rounds in turn


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contest of the comparison: its setting, and when it was held."""

    mode: str
    batch: int
    streams: int
    created: str
    kept: bool  # from an earlier comparison on this machine, in the same versions
    gpu_state: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # clocks, temperature: before and after

    @classmethod
    def of(cls, contest: Contest, *, kept: bool) -> Measured:
        """A contest that is over."""
        how = contest.conditions
        return cls(
            mode=how.mode,
            batch=how.batch,
            streams=how.streams,
            created=contest.created,
            kept=kept,
            gpu_state=contest.gpu_state,
        )


@contextmanager
def said_of(name: str, flag: str = "--methods") -> Iterator[None]:
    """Whatever a gate or an engine refuses says of which of the models it is, and how to go on without it: ``flag`` is
    what named them.

    Raises:
        EngineError, ParityError: the same one, with the model's name in front.
    """
    try:
        yield
    except (EngineError, ParityError) as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint or f"{flag} without {name}") from error


def inequality(rows: Sequence[Row], setting: str) -> str:
    """What to say of a contest in which the same engine, opened twice, was not as fast as itself; '' where it was.

    What is opened first may get memory in pieces where what is opened last gets it whole: on a machine whose memory is
    fragmented a quarter of an engine's speed hung on that.
    """
    row = rows[0]
    if row.twin is None or row.twin_low is None or row.twin_high is None:
        return ""
    if abs(row.twin - 1) <= _EQUAL or row.twin_low <= 1 <= row.twin_high:
        return ""
    return (
        f"{setting}: {row.base}, opened a second time, has {row.twin:.2f} ({row.twin_low:.2f} to {row.twin_high:.2f}) "
        "of its own speed, so ratios here are no better known than that. Fragmented memory does it: on Linux, as root, "
        "`echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory` before, and --fresh"
    )


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """Methods against each other."""

    bench: BenchReport
    backbone: str
    at: str  # of typed.COMPARED_AT, or AS_TRAINED
    like: str  # the one whose keep rate, work or speed the others were brought to, and that they are held against
    models: tuple[Compared, ...]
    contests: tuple[Measured, ...]
    trials: tuple[Trial, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, contest by contest."""
        return self.bench.rows

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: a benchmark's report, and more."""
        return self.bench.to_dict() | {
            "backbone": self.backbone,
            "at": self.at,
            "like": self.like,
            "models": [asdict(model) for model in self.models],
            "contests": [asdict(contest) for contest in self.contests],
            "trials": [asdict(trial) for trial in self.trials],
        }
