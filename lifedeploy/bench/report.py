"""What a benchmark says: rows with fixed names, as JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.bench.choices import Choice
from lifedeploy.bench.measure import Samples
from lifedeploy.bench.profile import Profile
from lifedeploy.bench.stats import percentiles
from lifedeploy.files import write_json
from lifedeploy.text import printable
from lifedeploy.writing import atomic_file

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One method on one engine, in one mode, at one batch size. None: does not apply, or is not known."""

    model: str
    method: str
    engine: str
    precision: str  # what really ran
    mode: str  # "latency" (one request at a time) or "throughput" (requests in flight)
    batch: int
    images_per_s: float  # median over rounds
    images_per_s_quartiles: tuple[float, float]
    latency_ms: dict[str, float]  # p50, p90, p99 of single requests
    speedup: float | None  # over the baseline, same engine, mode and batch; median of per-round ratios
    speedup_low: float | None
    speedup_high: float | None
    speedup_coverage: float | None
    mac_ratio: float | None  # MACs of dense over MACs of this: the bound on speed-up
    efficiency: float | None  # speedup / mac_ratio
    first_k_share: float | None  # throughput over that of the bound
    peak_memory_mib: float | None
    rounds: int
    streams: int
    threads: int
    weights: str
    parity: dict[str, Any] | None
    note: str = ""
    copies: bool | None = None  # to and from the device, part of each request; None: there is no other device
    device_ms: dict[str, float] | None = None  # p50, p90, p99 of single requests, by the device's clock
    trtexec: dict[str, float] | None = None  # what trtexec makes of the same plan, and our share of it
    base: str | None = None  # the dense model of the first engine, which took turns with this
    over_base: float | None = None  # median of per-round ratios
    over_base_low: float | None = None
    over_base_high: float | None = None


@dataclass(frozen=True)
class BenchReport:
    """All rows, and the machine they come from."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]
    created: str
    command: str = ""
    profiles: tuple[Profile, ...] = ()
    choices: tuple[Choice, ...] = ()
    images: dict[str, Any] | None = None  # what the choices were evaluated on
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "schema": SCHEMA,
            "created": self.created,
            "command": self.command,
            "machine": self.machine,
            "rows": [asdict(row) for row in self.rows],
            "profiles": [asdict(profile) for profile in self.profiles],
            "choices": [asdict(choice) for choice in self.choices],
            "images": self.images,
            "warnings": list(self.warnings),
        }

    def write_json(self, path: Path) -> None:
        """Write everything."""
        write_json(path, self.to_dict())

    def write_csv(self, path: Path) -> None:
        """Write the rows; nested facts become columns."""
        names = [field.name for field in fields(Row) if field.name not in _NESTED]
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    *names,
                    *("images_per_s_q1", "images_per_s_q3", "latency_ms_p50", "latency_ms_p90", "latency_ms_p99"),
                    *("device_ms_p50", "trtexec_images_per_s", "trtexec_share"),
                ]
            )
            for row in self.rows:
                plain = [getattr(row, name) for name in names]
                device, other = row.device_ms or {}, row.trtexec or {}
                more = (device.get("p50"), other.get("images_per_s"), other.get("share"))
                plain = [printable(value) if isinstance(value, str) else value for value in plain]
                writer.writerow([*plain, *row.images_per_s_quartiles, *row.latency_ms.values(), *more])


_NESTED = ("images_per_s_quartiles", "latency_ms", "parity", "device_ms", "trtexec")


@dataclass(frozen=True)
class Subject:
    """What a row is about, apart from its numbers."""

    model: str
    method: str
    engine: str
    precision: str
    mac_ratio: float | None
    weights: str
    parity: dict[str, Any] | None
    peak_memory_mib: float | None
    note: str = ""


def contender_name(team: str, method: str, copies: bool | None) -> str:
    """What a method's contender in a contest is called; with and without copies it takes part twice."""
    return f"{team} {method}, without copies" if copies is False else f"{team} {method}"


def make_rows(
    team: str,
    subjects: Sequence[Subject],
    samples: Samples,
    *,
    mode: str,
    batch: int,
    streams: int,
    threads: int,
    copies: bool | None = None,
    base: str | None = None,
) -> list[Row]:
    """A team's rows from the samples of one contest; ``base`` is the contender that all teams are held against."""
    rows = []
    baseline, bound = (contender_name(team, one.name, copies) for one in (methods.baseline(), methods.bound()))
    for subject in subjects:
        own = contender_name(team, subject.method, copies)
        turns = samples.rounds[own]
        device = [milliseconds for turn in turns for milliseconds in turn.device_ms]
        rates = [turn.images_per_s for turn in turns]
        latencies = [latency * 1000 for turn in turns for latency in turn.latencies_s]
        q1, median, q3 = percentiles(rates, (25, 50, 75))
        speedup = samples.ratio(own, baseline) if baseline in samples.rounds else None
        slimmed = methods.role_of(subject.method) == methods.SLIMMED
        share = samples.ratio(own, bound).median if slimmed and bound in samples.rounds else None
        over_base = samples.ratio(own, base) if base else None
        mac_ratio = subject.mac_ratio
        rows.append(
            Row(
                model=subject.model,
                method=subject.method,
                engine=subject.engine,
                precision=subject.precision,
                mode=mode,
                batch=batch,
                images_per_s=median,
                images_per_s_quartiles=(q1, q3),
                latency_ms=_spread(latencies),
                speedup=speedup.median if speedup else None,
                speedup_low=speedup.low if speedup else None,
                speedup_high=speedup.high if speedup else None,
                speedup_coverage=speedup.coverage if speedup else None,
                mac_ratio=mac_ratio,
                efficiency=speedup.median / mac_ratio if speedup and mac_ratio else None,
                first_k_share=share,
                peak_memory_mib=subject.peak_memory_mib,
                rounds=samples.count,
                streams=streams,
                threads=threads,
                weights=subject.weights,
                parity=subject.parity,
                note=subject.note,
                copies=copies,
                device_ms=_spread(device) if device else None,
                base=base,
                over_base=over_base.median if over_base else None,
                over_base_low=over_base.low if over_base else None,
                over_base_high=over_base.high if over_base else None,
            )
        )
    return rows


def _spread(milliseconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(("p50", "p90", "p99"), percentiles(milliseconds, (50, 90, 99)), strict=True))
