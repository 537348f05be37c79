"""What ``bench`` measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.bench.choices import by_setting, row_of
from lifedeploy.bench.profile import Profile
from lifedeploy.bench.report import BenchReport, Choice, Row
from lifedeploy.cli import tables
from lifedeploy.text import printable
from lifedeploy.typed import RANDOM_WEIGHTS


def measured(report: BenchReport) -> RenderableType:
    """What ``bench`` measured: one table per engine, mode and batch size; then engines beside each other."""
    contests: dict[tuple[Any, ...], list[Row]] = {}
    for row in report.rows:
        setting = row.setting
        contest = row.subject.model, row.subject.label, setting.mode, setting.streams, setting.copies
        contests.setdefault(contest, []).append(row)
    parts: list[RenderableType] = []
    for (model, engine, mode, streams, copies), rows in contests.items():
        parts += [_contest(rows, f"{model} · {engine} · {_setting(mode, streams, copies)}"), Text("")]
    parts += _side_by_side(report)
    profiled: dict[tuple[Any, ...], list[Profile]] = {}
    for profile in report.profiles:
        profiled.setdefault((profile.model, profile.engine, profile.precision, profile.batch), []).append(profile)
    for (model, engine, precision, batch), profiles in profiled.items():
        parts += [_profiles(profiles, f"{model} · {engine} {precision} · batch {batch}: layers"), Text("")]
    parts += [Text(line, style="dim") for line in _opinions(report.rows)]
    notes = {row.subject.note for row in report.rows if row.subject.note}
    parts += [Text(printable(note), style="yellow") for note in sorted(notes)]
    if any(row.subject.weights == RANDOM_WEIGHTS for row in report.rows):
        parts.append(Text("Random weights: speeds are valid, accuracy there is none.", style="yellow"))
    machine = report.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine["gpu"] else ""
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    families = {row.subject.engine.partition("-")[0] for row in report.rows}  # onnxruntime-gpu runs onnxruntime-cuda
    used = [name for name in machine["versions"] if name.partition("-")[0] in families]
    runtimes = "".join(f", {name} {machine['versions'][name]}" for name in used)
    parts.append(
        Text(
            f"{machine['cpu']}{features}{gpu}, {machine['threads']} threads{runtimes}. Median over rounds in turn; "
            "speed-up over dense with its 95 % interval (lower coverage below 6 rounds: see the JSON)."
            f"{_of_plain(report.rows)}",
            style="dim",
        )
    )
    for when, states in machine.get("gpu_state", {}).items():
        parts += [Text(f"{when}: {_gpu_state(state)}", style="dim") for state in states]
    return Group(*parts)


def _of_plain(rows: Sequence[Row]) -> str:
    """What dense is beside the model as timm computes it, where that does more."""
    dense = (row.subject.over_plain for row in rows if methods.role_of(row.subject.method) == methods.BASELINE)
    more = max((ratio for ratio in dense if ratio is not None), default=1.0)
    if more <= 1:
        return ""
    return f" Dense computes prefix tokens alone in its last block: timm's own model has {more:.2f} times its MACs."


def _setting(mode: str, streams: int, copies: bool | None) -> str:
    flight = f", {streams} requests in flight" if mode == "throughput" else ""
    return mode + flight + ("" if copies is None else " · with copies" if copies else " · without copies")


def _side_by_side(report: BenchReport) -> list[RenderableType]:
    """Everything that took turns, setting by setting, fastest first, with its accuracy where images are labelled."""
    engines = {row.subject.label for row in report.rows}
    entries: Sequence[Row | Choice] = report.choices or (report.rows if len(engines) > 1 else ())
    if not entries:
        return []
    question = "Which one?" if report.choices else "Side by side"
    parts: list[RenderableType] = []
    for comparable in by_setting(entries):
        rows = [row_of(entry) for entry in comparable]
        model, setting = rows[0].subject.model, rows[0].setting
        copies = next((row.setting.copies for row in rows if row.setting.copies is not None), None)
        where = _setting(setting.mode, setting.streams, copies)
        parts += [_compared(comparable, f"{question} · {model} · {where} · batch {setting.batch}"), Text("")]
    bases = " and ".join(dict.fromkeys(base for entry in entries if (base := row_of(entry).base)))
    said = f"Base: {bases}, in the same rounds." if bases else ""
    if report.images is not None:
        data = report.images
        split = f", {data['split']}" if data["split"] else ""
        said += (
            " ●: nothing beside it is better in speed or top-1 and as good in the other. ±: standard error, of "
            f"{report.choices[0].images} images of {len(data['classes'])} classes in {data['source']}{split}. "
            "Same top-1: as the base; kept tokens: as the same method on the first engine."
        )
    return [*parts, Text(printable(said.strip()), style="dim")]


def _compared(entries: Sequence[Row | Choice], title: str) -> Table:
    """Fits eighty columns with the longest name of an engine; what nothing is known of is no column."""
    choices = [entry for entry in entries if isinstance(entry, Choice)]
    facts = {"AP\n%": "average_precision", "same\ntop-1\n%": "same_top1", "kept\ntokens\n%": "kept_overlap"}
    known = {
        header: fact for header, fact in facts.items() if any(getattr(choice, fact) is not None for choice in choices)
    }
    headers = ["", "engine, precision, method", "img/s", "over base\n(95 %)"]
    headers += ["top-1\n%", *known] if choices else []
    table = tables.plain_table(*headers, title=title, text_columns=2, width=24)
    for entry in entries:
        row = row_of(entry)
        right: list[str | Text] = []
        if isinstance(entry, Choice):
            right.append(_with_aside(f"{entry.top1 * 100:.1f}", f"± {entry.standard_error * 100:.1f}"))
            right += [tables.percent(getattr(entry, fact)) for fact in known.values()]
        table.add_row(
            "●" if isinstance(entry, Choice) and entry.pareto else "",
            f"{row.subject.label} {row.subject.method}",
            tables.significant(row.images_per_s),
            _ratio(row.over_base, row.over_base_low, row.over_base_high),
            *right,
        )
    return table


def _with_aside(value: str, aside: str) -> Text:
    return Text.assemble((value, "bold"), " ", (aside, "dim"))


def _ratio(middle: float | None, low: float | None, high: float | None) -> str | Text:
    """A ratio with its interval, in few characters."""
    if middle is None or low is None or high is None:
        return "–"
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return _with_aside(f"{middle:.{digits}f}", f"({low:.{digits}f}–{high:.{digits}f})")


def _opinions(rows: Sequence[Row]) -> list[str]:
    """NVIDIA's own tool on the same plans, one line per row that has it."""
    return [
        f"trtexec, {row.subject.label}, batch {row.setting.batch}, {row.subject.method}: "
        f"{tables.significant(row.trtexec['images_per_s'])} img/s, {tables.significant(row.trtexec['gpu_ms'])} ms; "
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
    table = tables.plain_table(
        "part", *(f"{profile.method}\n{tables.significant(profile.ms)} ms" for profile in profiles), title=title
    )
    groups = {name for profile in profiles for name in profile.shares}
    for name in sorted(groups, key=lambda name: -max(profile.shares.get(name, 0.0) for profile in profiles)):
        table.add_row(name, *(_part(profile, name) for profile in profiles))
    return table


def _part(profile: Profile, name: str) -> Text | str:
    """A group's share of the time, and what that is in milliseconds."""
    share = profile.shares.get(name)
    if share is None:
        return "–"
    # What reducing tokens costs is small, and is what one looks for: two digits more for it.
    percent = f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"
    return Text.assemble(f"{percent} ", (f"{tables.significant(share * profile.ms)} ms", "dim"))


def _contest(rows: list[Row], title: str) -> Table:
    """Fits eighty columns: what does not (quartiles, rounds, coverage) is in the JSON and the CSV."""
    headers = ("batch", "method", "img/s", "p50/p90/p99\nms", "speed-up\n(95 %)", "MAC\nbound", "effi-\nciency")
    table = tables.plain_table(*headers, f"of\n{methods.bound().name}", "MiB", title=title, text_columns=2)
    previous = None
    for row in rows:
        if previous is not None and row.setting.batch != previous:
            table.add_section()
        slimmed = methods.role_of(row.subject.method) != methods.BASELINE
        table.add_row(
            str(row.setting.batch) if row.setting.batch != previous else "",
            row.subject.method,
            tables.significant(row.images_per_s),
            "/".join(tables.significant(row.latency_ms[name]) for name in ("p50", "p90", "p99")),
            _ratio(row.speedup, row.speedup_low, row.speedup_high) if slimmed else "–",
            f"{row.subject.mac_ratio:.2f}" if row.subject.mac_ratio is not None and slimmed else "–",
            f"{row.efficiency:.0%}" if row.efficiency is not None and slimmed else "–",
            "–" if row.first_k_share is None else f"{row.first_k_share:.1%}",
            "–" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}",
        )
        previous = row.setting.batch
    return table
