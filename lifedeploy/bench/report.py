"""What a benchmark says: rows with fixed names, as JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.bench.measure import Samples
from lifedeploy.bench.profile import Profile
from lifedeploy.bench.stats import percentiles
from lifedeploy.text import printable
from lifedeploy.writing import atomic_file

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured. None: does not apply, or is not known."""

    model: str
    method: str
    name: str = ""  # what tells it from others of its method, where there are any
    engine: str
    precision: str  # what really ran
    mac_ratio: float | None  # MACs of dense over MACs of this: the bound on speed-up
    weights: str
    parity: dict[str, float | None] | None  # the worst of the gate's cases
    note: str = ""
    gmacs: float | None = None  # of one image
    over_plain: float | None = None  # MACs of timm's own model over these: the bound on speed over that
    tokens: tuple[int, ...] | None = None  # patch tokens, from drop to drop
    keep_rate: float | None = None  # that the tokens were made of

    @property
    def shown(self) -> str:
        """Its method, as tables name it; among others of its method its name."""
        return self.name or self.method

    @property
    def label(self) -> str:
        """Engine and precision, as tables name them."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How it is asked."""

    mode: str  # "latency" (one request at a time) or "throughput" (requests in flight)
    batch: int
    streams: int
    threads: int
    copies: bool | None = None  # to and from the device, part of each request; None: there is no other device


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one engine, in one setting. None: does not apply, or is not known."""

    subject: Subject
    setting: Setting
    images_per_s: float  # median over rounds
    images_per_s_quartiles: tuple[float, float]
    latency_ms: dict[str, float]  # p50, p90, p99 of single requests
    speedup: float | None  # over the baseline, same engine and setting; median of per-round ratios
    speedup_low: float | None
    speedup_high: float | None
    speedup_coverage: float | None
    efficiency: float | None  # speedup / mac_ratio
    first_k_share: float | None  # throughput over that of the bound
    peak_memory_mib: float | None
    rounds: int
    device_ms: dict[str, float] | None = None  # p50, p90, p99 of single requests, by the device's clock
    trtexec: dict[str, float] | None = None  # what trtexec makes of the same plan, and our share of it
    base: str | None = None  # the dense model of the first engine, which took turns with this
    over_base: float | None = None  # median of per-round ratios
    over_base_low: float | None = None
    over_base_high: float | None = None
    over_like: float | None = None  # over a method that all are compared with, same engine and setting; likewise
    over_like_low: float | None = None
    over_like_high: float | None = None
    # The base, opened a second time and last of all, over itself: 1 on a machine that treats equals alike.
    twin: float | None = None
    twin_low: float | None = None
    twin_high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, subject and setting beside the numbers."""
        numbers = asdict(self)
        return {**numbers.pop("subject"), **numbers.pop("setting"), **numbers}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A row with the accuracy of its model. Shares are 0…1. None: does not apply."""

    row: Row
    images: int  # that it was evaluated on
    top1: float
    standard_error: float
    average_precision: float | None
    same_top1: float | None  # share of images with the base's answer; None of the base itself
    kept_overlap: float | None  # share of kept tokens in common with the same method on the first engine
    pareto: bool = False  # nothing in its setting is better in img/s or top-1, and as good in the other

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, what tells the row apart beside its accuracy."""
        row = self.row.to_dict()
        return {name: row[name] for name in _OF_A_CHOICE} | {
            name: value for name, value in vars(self).items() if name != "row"
        }


_OF_A_CHOICE = (
    *("model", "method", "name", "engine", "precision", "mode", "streams", "batch", "copies", "images_per_s"),
    *("base", "over_base", "over_base_low", "over_base_high"),
)
# Of a CSV file; facts of several numbers become columns of their own.
_COLUMNS = (
    *("model", "method", "engine", "precision", "mode", "batch", "images_per_s", "speedup", "speedup_low"),
    *("speedup_high", "speedup_coverage", "mac_ratio", "efficiency", "first_k_share", "peak_memory_mib", "rounds"),
    *("streams", "threads", "weights", "note", "copies", "base", "over_base", "over_base_low", "over_base_high"),
)
_NESTED = {
    "images_per_s_q1": ("images_per_s_quartiles", 0),
    "images_per_s_q3": ("images_per_s_quartiles", 1),
    "latency_ms_p50": ("latency_ms", "p50"),
    "latency_ms_p90": ("latency_ms", "p90"),
    "latency_ms_p99": ("latency_ms", "p99"),
    "device_ms_p50": ("device_ms", "p50"),
    "trtexec_images_per_s": ("trtexec", "images_per_s"),
    "trtexec_share": ("trtexec", "share"),
}


@dataclass(frozen=True, kw_only=True)
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
            "rows": [row.to_dict() for row in self.rows],
            "profiles": [asdict(profile) for profile in self.profiles],
            "choices": [choice.to_dict() for choice in self.choices],
            "images": self.images,
            "warnings": list(self.warnings),
        }

    def write_csv(self, path: Path) -> None:
        """Write the rows; nested facts become columns."""
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *_NESTED])
            for row in map(Row.to_dict, self.rows):
                plain = [printable(value) if isinstance(value := row[name], str) else value for name in _COLUMNS]
                writer.writerow([*plain, *(row[name] and row[name][key] for name, key in _NESTED.values())])


def contender_name(label: str, method: str, copies: bool | None) -> str:
    """What a method takes part in a contest as; with and without copies it does twice."""
    return f"{label} {method}, without copies" if copies is False else f"{label} {method}"


def make_rows(
    label: str,
    subjects: Sequence[Subject],
    setting: Setting,
    samples: Samples,
    *,
    base: str | None = None,
    like: str = "",
    memory_mib: Mapping[str, float | None] | None = None,
    unbounded: Collection[str] = (),
) -> list[Row]:
    """The rows of one engine's methods from the samples of a contest.

    Args:
        label: the engine and its precision, as in the names of contenders.
        subjects: its methods.
        setting: in which they took turns.
        samples: of the contest.
        base: the contender that all engines are held against.
        like: the one that the others are held against too, by its name; '': none.
        memory_mib: name → peak memory.
        unbounded: names of those that this bound is none of: it lets other numbers of tokens through.
    """
    baseline, bound = (
        contender_name(label, method.name, setting.copies) for method in (methods.baseline(), methods.bound())
    )
    rows = []
    for subject in subjects:
        name = contender_name(label, subject.shown, setting.copies)
        turns = samples.turns[name]
        device = [milliseconds for turn in turns for milliseconds in turn.device_ms]
        q1, median, q3 = percentiles([turn.images_per_s for turn in turns], (25, 50, 75))
        speedup = samples.ratio(name, baseline) if baseline in samples.turns else None
        bounded = methods.role_of(subject.method) == methods.SLIMMED and subject.shown not in unbounded
        over_base = samples.ratio(name, base) if base else None
        liked = contender_name(label, like, setting.copies) if like else ""
        over_like = samples.ratio(name, liked) if liked in samples.turns and liked != name else None
        rows.append(
            Row(
                subject=subject,
                setting=setting,
                images_per_s=median,
                images_per_s_quartiles=(q1, q3),
                latency_ms=_spread([latency * 1000 for turn in turns for latency in turn.latencies_s]),
                speedup=speedup.median if speedup else None,
                speedup_low=speedup.low if speedup else None,
                speedup_high=speedup.high if speedup else None,
                speedup_coverage=speedup.coverage if speedup else None,
                efficiency=speedup.median / subject.mac_ratio if speedup and subject.mac_ratio else None,
                first_k_share=samples.ratio(name, bound).median if bounded and bound in samples.turns else None,
                peak_memory_mib=(memory_mib or {}).get(subject.shown),
                rounds=samples.count,
                device_ms=_spread(device) if device else None,
                base=base,
                over_base=over_base.median if over_base else None,
                over_base_low=over_base.low if over_base else None,
                over_base_high=over_base.high if over_base else None,
                over_like=over_like.median if over_like else None,
                over_like_low=over_like.low if over_like else None,
                over_like_high=over_like.high if over_like else None,
            )
        )
    return rows


def _spread(milliseconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(("p50", "p90", "p99"), percentiles(milliseconds, (50, 90, 99)), strict=True))
