"""What ``compare`` measured, as tables: on the screen, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy import methods
from lifedeploy.bench.comparison import AS_TRAINED, CompareReport
from lifedeploy.bench.report import Choice, Row, Subject, contender_name
from lifedeploy.cli import tables
from lifedeploy.text import chained, printable
from lifedeploy.typed import RANDOM_WEIGHTS

_LIKE = {
    "keep-rate": "Each at its own keep rate as asked for, which is other work for every method",
    "macs": "All at the GMACs of {like}, as near as their keep rates come",
    AS_TRAINED: "Each as its checkpoint was trained, which is other work for each",
    "speed": "All at the speed of {like} on {where}, as near as their keep rates come",
}


_WIDEST = 12  # letters of a name in a line on the screen; all methods' fit
_SURE = 6  # rounds from which on an interval of the median can cover 95 %
_SHORT = 7  # letters of a name that fits a header
_OF_FIRST = "of the first"
_NARROW = {"efficiency": "effi-\nciency", _OF_FIRST: "of the\nfirst"}  # on the screen


@dataclass(frozen=True)
class _Contest:
    """One table."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def compared(report: CompareReport) -> RenderableType:
    """One table per engine and setting, the fastest method first; then what the numbers are of."""
    parts: list[RenderableType] = []
    for contest in _contests(report):
        headers = [_NARROW.get(header, header.replace(" ", "\n", 1)) for header in contest.headers]
        table = tables.plain_table(*headers, title=printable(contest.title), width=_WIDEST)
        for row in contest.rows:
            table.add_row(*map(Text, row))  # as they are: names of files are no markup
        parts += [table, Text("")]
    parts += [Text(printable(note), style="yellow") for note in _notes(report)]
    parts += [Text(printable(line), style="dim") for line in _explained(report)]
    return Group(*parts)


def markdown(report: CompareReport) -> str:
    """The same as a page."""
    lines = [f"# {_prose(report.backbone)}: methods compared", "", f"    {report.bench.command}", ""]
    for contest in _contests(report):
        lines += [f"## {_prose(contest.title)}", "", _line(contest.headers)]
        lines.append(_line([":--", *["--:"] * (len(contest.headers) - 1)]))
        lines += [*map(_line, contest.rows), ""]
    for line in (*_notes(report), *_explained(report)):
        lines += [_prose(line), ""]
    lines += [f"- {_prose(warning)}" for warning in report.bench.warnings]
    return "\n".join(map(printable, lines)).rstrip() + "\n"


def _prose(said: str) -> str:
    """Text of others on a page: none of it is a link, a picture or markup."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", said)


def _notes(report: CompareReport) -> list[str]:
    """What engines say of themselves, as another precision than was asked for."""
    return sorted({row.subject.note for row in report.rows if row.subject.note})


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_prose(cell) for cell in cells)} |"


def _contests(report: CompareReport) -> Iterator[_Contest]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in report.rows:
        setting = row.setting
        key = row.subject.label, setting.mode, setting.streams, setting.batch, setting.copies
        groups.setdefault(key, []).append(row)
    choices, base = {_key(choice.row): choice for choice in report.bench.choices}, _base(report.rows)
    for (label, mode, streams, batch, copies), rows in groups.items():
        flight = f", {streams} requests in flight" if mode == "throughput" else ""
        moved = "" if copies is None else ", with copies" if copies else ", without copies"
        rows.sort(key=lambda row: -row.images_per_s)
        cells = [_cells(row, choices.get(_key(row)), report.like, base) for row in rows]
        told = [header for header in cells[0] if any(row[header] != "–" for row in cells)]
        yield _Contest(
            f"{report.backbone} · {label} · {mode}{flight}{moved} · batch {batch}",
            tuple(told),
            tuple(tuple(row[header] for header in told) for row in cells),
        )


def _key(row: Row) -> tuple[Any, ...]:
    setting = row.setting
    return row.subject.label, row.subject.shown, setting.mode, setting.streams, setting.batch, setting.copies


def _cells(row: Row, choice: Choice | None, like: str, base: str) -> dict[str, str]:
    """Header → cell; one line each, so that they fit a page too."""
    subject = row.subject
    drops = methods.role_of(subject.method) != methods.BASELINE
    interval = "–"
    if drops and row.speedup is not None and row.speedup_low is not None and row.speedup_high is not None:
        interval = f"{row.speedup:.2f} ({row.speedup_low:.2f}–{row.speedup_high:.2f})"
    return {
        "method": subject.shown,
        "keep rate": _keep_rate(subject),
        "tokens": "–" if subject.tokens is None else chained(subject.tokens[1:] or subject.tokens, most=4),
        "GMACs": "–"
        if subject.gmacs is None
        else f"{subject.gmacs:.2f}"
        if subject.gmacs >= 0.1
        else f"{subject.gmacs:.2g}",
        "img/s": tables.significant(row.images_per_s),
        "speed-up (95 %)": interval,
        f"over {base}": "–" if not base or row.over_base is None or row.over_base == 1 else _ratio(row),
        "efficiency": f"{row.efficiency:.0%}" if row.efficiency is not None and drops else "–",
        f"of {methods.bound().name}": "–" if row.first_k_share is None else f"{row.first_k_share:.1%}",
        _over_like(like): "–" if row.over_like is None else f"{row.over_like:.3f}",
        "top-1 %": "–" if choice is None else f"{choice.top1 * 100:.1f} ± {choice.standard_error * 100:.1f}",
    }


def _over_like(like: str) -> str:
    """The header of the column that holds all against one of them."""
    return f"of {like}" if len(like) <= _SHORT else _OF_FIRST


def _ratio(row: Row) -> str:
    return f"{row.over_base:.2f} ({row.over_base_low:.2f}–{row.over_base_high:.2f})"


def _base(rows: Sequence[Row]) -> str:
    """The method that all were held against, where that is not the baseline: the model as timm computes it.

    Dense, whose last block is of prefix tokens alone, is faster.
    """
    names = {contender_name(row.subject.label, row.subject.shown, row.setting.copies): row.subject for row in rows}
    based = [names[row.base] for row in rows if row.base in names]
    return next((subject.method for subject in based if methods.role_of(subject.method) != methods.BASELINE), "")


def _keep_rate(subject: Subject) -> str:
    if subject.keep_rate is not None:
        return f"{subject.keep_rate:g}"
    return "own" if methods.role_of(subject.method) == methods.SLIMMED else "–"


def _explained(report: CompareReport) -> Iterator[str]:
    """What is compared with what, and where."""
    first = report.rows[0]
    where = f"{first.subject.label}, {first.setting.mode}, batch {first.setting.batch}"
    same = _LIKE[report.at].format(like=report.like, where=where)
    yield (
        f"{same}. Speed-up over {methods.baseline().name} in the same rounds, "
        "median and 95 % interval; efficiency: speed-up over that of the GMACs; "
        f"{_over_like(report.like)}: speed over that of {report.like}, in the same rounds."
    )
    if base := _base(report.rows):
        yield (
            f"{methods.baseline().name} computes prefix tokens alone in its last block, which is the same for less; "
            f"over {base}: speed over the model as timm computes it."
        )
    shown = [model for model in report.models if model.title.lower() != model.name]
    yield f"Methods: {'; '.join(f'{model.name}: {model.title}' for model in shown)}."
    if (rounds := min(row.rounds for row in report.rows)) < _SURE:
        yield f"As few as {rounds} rounds: such intervals cover less than 95 % (speedup_coverage in the JSON)."
    again = [row.twin for row in report.rows if row.twin is not None]
    if again:
        yield (
            "The first engine, opened a second time, took turns with itself: "
            f"{min(again):.2f} to {max(again):.2f} of its own speed."
        )
    for trial in report.trials:
        yield (
            f"On the way to equal speed: {trial.method} at keep rate {trial.keep_rate:g} "
            f"({tables.gmacs(trial.gmacs)} GMACs) has {trial.speed:.3f} of the speed of {report.like}."
        )
    kept = [contest for contest in report.contests if contest.kept]
    if kept:
        settings = ", ".join(f"{contest.mode} batch {contest.batch} ({contest.created})" for contest in kept)
        yield f"Measured before, on this machine in these versions, and not again: {settings}. --fresh measures anew."
    if any(row.subject.weights == RANDOM_WEIGHTS for row in report.rows):
        yield "Random weights: speeds are valid, accuracy there is none."
    machine = report.bench.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine["gpu"] else ""
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    families = {row.subject.engine.partition("-")[0] for row in report.rows}
    used = [name for name in machine["versions"] if name.partition("-")[0] in (*families, "lifedeploy")]
    runtimes = "".join(f", {name} {machine['versions'][name]}" for name in used)
    yield f"{machine['cpu']}{features}{gpu}, {machine['threads']} threads{runtimes}."
