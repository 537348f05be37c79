"""What ``tune`` shows: the front, the schedule that the model has on it, and what was verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.cli import tables
from lifedeploy.text import chained, printable

if TYPE_CHECKING:
    from lifedeploy.bench.stats import Interval
    from lifedeploy.tuning.report import Point, TuneReport


def tuned(report: TuneReport) -> RenderableType:
    """All of it."""
    setting = report.tuned.tuned_for
    headline = Text.assemble((printable(report.model), "bold"), printable(f" · {setting.label} · {report.goal}"))
    measured = Text(
        f"{len(report.probes)} token counts measured ({report.new_probes} now), largest stair {report.jump:.1%}; "
        f"{report.schedules:,} schedules looked at; dense {tables.significant(report.dense_ms)} ms a request; "
        f"{report.seconds:.0f} s",
        style="dim",
    )
    parts: list[RenderableType] = [headline, measured]
    shown, there = len(report.shown), len(report.front)
    which = f"{shown} of {there} schedules, --json has all" if shown < there else f"{there} schedules"
    parts += [tables.heading(f"The front, expected: {which}"), Text(f"loss: {report.loss_is}", style="dim")]
    parts.append(_front(report))
    parts += [tables.heading("Verified, in one contest with dense"), _verified(report)]
    if report.correlations:
        ranks = "; ".join(f"{value:.2f} of {proxy}" for proxy, value in report.correlations.items())
        text = f"Rank correlation with the true KL of {len(report.asked)} schedules, {report.images} images: {ranks}"
        parts.append(Text(text, style="dim"))
    return Group(*parts, Text(""), _outcome(report))


def _front(report: TuneReport) -> Table:
    table = tables.plain_table("tokens", "after layers", "ms", "over\ndense", "loss", text_columns=2)
    rows = [(point, "") for point in report.shown]
    rows.append((report.before, "  now"))
    if report.improves:
        rows.append((report.chosen, "  chosen"))
    for point, mark in sorted(rows, key=lambda row: row[0].time):
        table.add_row(
            Text.assemble(chained(point.counts), (mark, "bold")),
            ", ".join(map(str, point.drop_layers)),
            tables.significant(point.time * report.dense_ms),
            f"{1 / point.time:.2f}×",
            f"{point.loss:.3g}",
        )
    return table


def _verified(report: TuneReport) -> Table:
    asked = report.before.true is not None or any(point.true for point in report.verified)
    more = ("true\nKL", "same\ntop-1 %") if asked else ()
    headers = ("tokens", "after layers", "over\ndense", "expected", "over now", *more)
    table = tables.plain_table(*headers, text_columns=2)
    for point in (report.before, *report.verified):
        mark = "  now" if point is report.before else ""
        table.add_row(
            Text.assemble(chained(point.counts), (mark, "bold")),
            ", ".join(map(str, point.drop_layers)),
            f"{1 / point.measured_time:.2f}×",
            f"{1 / point.time:.2f}×",
            "" if point is report.before else _ratio(point.over_before),
            *(_true(point) if asked else ()),
        )
    return table


def _true(point: Point) -> tuple[str, str]:
    return ("–", "–") if point.true is None else (f"{point.true.kl:.3g}", tables.percent(point.true.agreement))


def _ratio(ratio: Interval | None) -> str:
    return "–" if ratio is None else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _outcome(report: TuneReport) -> Text:
    """The schedule, and how to use it."""
    tuned = report.tuned
    counts, layers = (",".join(map(str, numbers)) for numbers in (tuned.counts, tuned.drop_layers))
    text = Text.assemble((f"--counts {counts} --drop-layers {layers}", "bold green"))
    text.append(f"  {tuned.speedup:.2f}× over dense")
    return text.append(
        f", {tuned.over_before:.2f}× over now" if report.improves else ": the schedule that the model has"
    )
