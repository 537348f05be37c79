"""How a server asks a model: which batches it forms, how long it waits for them, and how many copies it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from lifedeploy.errors import ArtifactError
from lifedeploy.limits import MOST_BATCHES, MOST_IN_BATCH, MOST_STREAMS, require_within
from lifedeploy.reading import read_json
from lifedeploy.targets.target import Target
from lifedeploy.typed import BatchSize

USUAL_MAX_BATCH = 8  # where neither a profile nor a measurement says more
_LONGEST_US = 60_000_000  # that a request waits
_NEAR = 0.95  # of the best speed: a smaller batch that has as much is preferred, since it is there earlier
# Of the speed of one request at a time: several in flight that have as much are worth as many copies of the model.
# While the answers of one are on their way another computes: 0.9 of the engine's speed, not 0.8 (benchmarks/serving).
_WORTH = 0.97


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a server asks a model."""

    max_batch: BatchSize
    preferred: Annotated[tuple[BatchSize, ...], Meta(max_length=MOST_BATCHES)]
    delay_us: Annotated[int, Meta(ge=0, le=_LONGEST_US)] = (
        0  # how long a request may wait for others to fill a preferred batch
    )
    instances: Annotated[int, Meta(ge=1, le=MOST_STREAMS)] = 1  # copies of the model, which share the cores
    measured: str = ""  # the report that this was read off; '': nothing was measured

    def __post_init__(self) -> None:
        require_within(self.max_batch, MOST_IN_BATCH, "images per batch")
        require_within(self.instances, MOST_STREAMS, "instances")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What of a benchmark's row is of use here."""

    model: str
    engine: str
    precision: str
    method: str
    mode: str
    batch: Annotated[int, Meta(ge=1)]
    streams: Annotated[int, Meta(ge=1)]
    images_per_s: Annotated[float, Meta(gt=0)]
    latency_ms: dict[str, float]
    copies: bool | None = None

    @property
    def with_copies(self) -> bool:
        """Whether requests bring their images, as a server's do."""
        return self.copies is not False


@dataclass(frozen=True, kw_only=True)
class _Report:
    rows: tuple[_Row, ...]


def usual(most: int) -> Plan:
    """Where nothing was measured: powers of two, nobody waits, one copy."""
    return Plan(max_batch=most, preferred=tuple(sizes_up_to(most)))


def measured(report: Path, target: Target, most: int) -> Plan:
    """What a report of ``lifedeploy bench --json`` says of an engine, up to batches of ``most``.

    Preferred are the smallest batch that has 95 % of the best speed, and those above it that were measured. A request
    waits at most as long as a batch saves on one image: what waiting costs is then never more than what it may win.
    As many copies as there were requests in flight, unless these were slower than one at a time.

    Raises:
        ArtifactError: it is no such report, or says nothing of this engine.
    """
    engine, precision = target.engine.name, target.precision
    wanted = (target.name, engine, precision, target.method)
    rows = [
        row
        for row in read_json(report, _Report).rows
        if (row.model, row.engine, row.precision, row.method) == wanted and row.with_copies and row.batch <= most
    ]
    if not rows:
        raise ArtifactError(
            f"{report} says nothing of {target.name} on {engine} {precision} at a batch up to {most}",
            hint=f"lifedeploy bench --engine {engine}:{precision} --mode latency --mode throughput --json {report}",
        )
    singly, at_once = ([row for row in rows if row.mode == mode] for mode in ("latency", "throughput"))
    in_flight = bool(at_once) and _best(at_once) >= _WORTH * _best(singly)
    chosen = at_once if in_flight or not singly else singly
    enough = min(row.batch for row in chosen if row.images_per_s >= _NEAR * _best(chosen))
    return Plan(
        max_batch=most,
        preferred=tuple(sorted({row.batch for row in chosen if row.batch >= enough})),
        delay_us=_saved_us(singly or chosen, enough),
        instances=max(row.streams for row in at_once) if in_flight else 1,
        measured=str(report),
    )


def _best(rows: Sequence[_Row]) -> float:
    return max((row.images_per_s for row in rows), default=0.0)


def _saved_us(rows: Sequence[_Row], batch: int) -> int:
    """What a batch of that size saves on one image, of one that goes alone, in µs."""
    speeds: Mapping[int, float] = {row.batch: row.images_per_s for row in rows}
    if 1 not in speeds or batch not in speeds:
        return 0
    return max(0, round((1 / speeds[1] - 1 / speeds[batch]) * 1e6))


def sizes_up_to(most: int) -> list[int]:
    """Powers of two up to ``most``, and ``most``."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
