"""What a benchmark through a server says: speed by the number of clients, and what the server costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lifedeploy.bench.measure import Samples
from lifedeploy.bench.stats import percentiles

SERVER, BARE = "server", "bare engine"
POINTS = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """So many clients, each of whom sends its next request when it has the last one's answer."""

    concurrency: int
    batch: int  # images in each request
    images_per_s: float  # median over rounds
    latency_ms: dict[str, float]  # p50, p90, p99 of single requests
    formed: dict[int, int]  # batch size → how many of it the server formed meanwhile; empty: it does not tell
    bare_images_per_s: float  # of the engine without a server, in the same rounds
    bare_batch: int  # with as many images in flight as the clients have
    bare_streams: int
    share: float  # the server's speed over the engine's: median of per-round ratios
    share_low: float
    share_high: float
    share_coverage: float
    rounds: int

    @property
    def mean_formed(self) -> float | None:
        """Images in a batch that the server formed, on average."""
        batches = sum(self.formed.values())
        return sum(size * count for size, count in self.formed.items()) / batches if batches else None


@dataclass(frozen=True, kw_only=True)
class ServedReport:
    """A model behind a server against its engine without one."""

    created: str
    command: str
    machine: dict[str, Any]
    url: str
    server: str
    model: str
    engine: str  # without a server, and its precision
    same_engine: bool  # whether the server says that this is what it has; else it says nothing
    method: str
    rows: tuple[ServedRow, ...]
    parameters: dict[str, str] = field(default_factory=dict)  # what the server's configuration says of the model

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        rows = [asdict(row) | {"mean_formed": row.mean_formed} for row in self.rows]
        return {"schema": 1, **asdict(self), "rows": rows}


def served_row(
    samples: Samples,
    formed: Mapping[int, int],
    *,
    concurrency: int,
    batch: int,
    bare_batch: int,
    bare_streams: int,
) -> ServedRow:
    """One row of what was measured."""
    share = samples.ratio(SERVER, BARE)
    turns = samples.turns[SERVER]
    latencies = percentiles([seconds * 1000 for turn in turns for seconds in turn.latencies_s], POINTS)
    (median,) = percentiles([turn.images_per_s for turn in turns], (50,))
    (bare,) = percentiles([turn.images_per_s for turn in samples.turns[BARE]], (50,))
    return ServedRow(
        concurrency=concurrency,
        batch=batch,
        images_per_s=median,
        latency_ms={f"p{point}": value for point, value in zip(POINTS, latencies, strict=True)},
        formed=dict(sorted(formed.items())),
        bare_images_per_s=bare,
        bare_batch=bare_batch,
        bare_streams=bare_streams,
        share=share.median,
        share_low=share.low,
        share_high=share.high,
        share_coverage=share.coverage,
        rounds=samples.count,
    )
