"""What ``bench`` measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.bench.profile import Profile
from lifedeploy.bench.report import BenchReport, Row
from lifedeploy.cli.render import plain_table


def measured(report: BenchReport) -> RenderableType:
    """What ``bench`` measured: one table per engine, mode and batch size."""
    contests: dict[tuple[Any, ...], list[Row]] = {}
    for row in report.rows:
        contests.setdefault((row.model, row.engine, row.precision, row.mode, row.streams, row.copies), []).append(row)
    parts: list[RenderableType] = []
    for (model, engine, precision, mode, streams, copies), rows in contests.items():
        flight = f", {streams} requests in flight" if mode == "throughput" else ""
        moved = "" if copies is None else " · with copies" if copies else " · without copies"
        parts += [_contest(rows, f"{model} · {engine} {precision} · {mode}{flight}{moved}"), Text("")]
    profiled: dict[tuple[Any, ...], list[Profile]] = {}
    for profile in report.profiles:
        profiled.setdefault((profile.model, profile.engine, profile.precision, profile.batch), []).append(profile)
    for (model, engine, precision, batch), profiles in profiled.items():
        parts += [
            _profiles(profiles, f"{model} · {engine} {precision} · batch {batch}: layers"),
            Text(""),
        ]
    parts += [Text(line, style="dim") for line in _opinions(report.rows)]
    notes = {row.note for row in report.rows if row.note}
    parts += [Text(note, style="yellow") for note in sorted(notes)]
    if any(row.weights == "random" for row in report.rows):
        parts.append(Text("Random weights: speeds are valid, accuracy there is none.", style="yellow"))
    machine = report.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine["gpu"] else ""
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    used = sorted({row.engine.partition("-")[0] for row in report.rows} & set(machine["versions"]))
    runtimes = "".join(f", {name} {machine['versions'][name]}" for name in used)
    parts.append(
        Text(
            f"{machine['cpu']}{features}{gpu}, {machine['threads']} threads{runtimes}. Median over rounds in turn; "
            "speed-up over dense with its 95 % interval (lower coverage below 6 rounds: see the JSON).",
            style="dim",
        )
    )
    for when, states in machine.get("gpu_state", {}).items():
        parts += [Text(f"{when}: {_gpu_state(state)}", style="dim") for state in states]
    return Group(*parts)


def _opinions(rows: Sequence[Row]) -> list[str]:
    """NVIDIA's own tool on the same plans, one line per row that has it."""
    return [
        f"trtexec, {row.engine} {row.precision}, batch {row.batch}, {row.method}: "
        f"{_significant(row.trtexec['images_per_s'])} img/s, {_significant(row.trtexec['gpu_ms'])} ms; "
        f"ours is {row.trtexec['share']:.1%} of it"
        for row in rows
        if row.trtexec
    ]


def _gpu_state(state: dict[str, str]) -> str:
    return (
        f"{state['name']}, driver {state['driver_version']}, {state['clocks.sm']} and {state['clocks.mem']} MHz, "
        f"{state['power.draw']} W, {state['temperature.gpu']} °C"
    )


def _profiles(profiles: list[Profile], title: str) -> Table:
    """One column per method: the share of each group, and what that is in milliseconds."""
    table = plain_table(
        "part", *(f"{profile.method}\n{_significant(profile.ms)} ms" for profile in profiles), title=title
    )
    groups = sorted({name for profile in profiles for name in profile.shares}, key=lambda name: -_most(profiles, name))
    for name in groups:
        table.add_row(
            name,
            *(
                f"{_share(profile.shares[name])} [dim]{_significant(profile.shares[name] * profile.ms)} ms[/]"
                if name in profile.shares
                else "–"
                for profile in profiles
            ),
        )
    return table


def _share(value: float) -> str:
    """What reducing tokens costs is small, and is what one looks for: two digits more for it."""
    return f"{value:.1%}" if value >= 0.01 else f"{value:.2%}"


def _most(profiles: list[Profile], name: str) -> float:
    return max(profile.shares.get(name, 0.0) for profile in profiles)


def _contest(rows: list[Row], title: str) -> Table:
    """Fits eighty columns: what does not (quartiles, rounds, coverage) is in the JSON and the CSV."""
    headers = ("batch", "method", "img/s", "p50/p90/p99\nms", "speed-up\n(95 %)", "MAC\nbound", "effi-\nciency")
    table = plain_table(*headers, "of\nfirst-k", "MiB", title=title, text_columns=2)
    previous = None
    for row in rows:
        if previous is not None and row.batch != previous:
            table.add_section()
        slimmed = row.method != "dense"
        speedup = "–"
        if row.speedup is not None and slimmed:
            speedup = f"[bold]{row.speedup:.2f}[/] [dim]({row.speedup_low:.2f}–{row.speedup_high:.2f})[/]"
        table.add_row(
            str(row.batch) if row.batch != previous else "",
            row.method,
            _significant(row.images_per_s),
            "/".join(_significant(row.latency_ms[name]) for name in ("p50", "p90", "p99")),
            speedup,
            f"{row.mac_ratio:.2f}" if row.mac_ratio is not None and slimmed else "–",
            f"{row.efficiency:.0%}" if row.efficiency is not None and slimmed else "–",
            "–" if row.first_k_share is None else f"{row.first_k_share:.1%}",
            "–" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
        )
        previous = row.batch
    return table


def _significant(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
