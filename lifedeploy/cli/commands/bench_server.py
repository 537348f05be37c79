"""``lifedeploy bench --url``: what a server costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy.artifact import Workspace
from lifedeploy.cli import console, options, tables
from lifedeploy.errors import UsageError
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.bench.served import ServedReport, ServedRow


def require_alone(given: Iterable[str]) -> None:
    """Make sure that no option was given that means nothing for a server.

    Raises:
        UsageError: one was.
    """
    flag = next(iter(given), "")
    if flag:
        raise UsageError(f"{flag} is for engines that are opened here, and --url measures one behind a server")


def bench(
    url: str,
    model: Path | None,
    batch: Sequence[int],
    concurrency: Sequence[int],
    streams: int,
    threads: int | None,
    budget: float,
    workspace: Workspace,
    json: Path | None,
) -> None:
    """Measure, and show."""
    if len(batch) != 1:
        raise UsageError(f"--batch {','.join(map(str, batch))}: with --url it is one number, images in each request")
    with console.watching() as (say, progress):
        from lifedeploy.bench.measure import Stop
        from lifedeploy.workflows.bench import ServedBenchRequest, bench_served

        request = ServedBenchRequest(
            url=url,
            model=model,
            concurrency=tuple(concurrency),
            batch=batch[0],
            streams=streams,
            threads=threads,
            stop=Stop(budget_s=budget),
            command=options.command_line(),
        )
        report = bench_served(request, workspace, say, progress)
    console.report(json, report.to_dict, lambda: measured(report))


def measured(report: ServedReport) -> RenderableType:
    """What ``bench --url`` measured."""
    headers = ("clients", "img/s", "p50 ms", "p90 ms", "p99 ms", "batches formed", "bare img/s", "of the engine (95 %)")
    table = tables.plain_table(*headers, text_columns=0)
    for row in report.rows:
        table.add_row(
            str(row.concurrency),
            tables.significant(row.images_per_s),
            *(f"{row.latency_ms[point]:.1f}" for point in ("p50", "p90", "p99")),
            _formed(row),
            tables.significant(row.bare_images_per_s),
            Text.assemble((f"{row.share:.0%}", "bold"), f" ({row.share_low:.0%}–{row.share_high:.0%})"),
        )
    machine = report.machine
    in_flight = ", ".join(f"{row.bare_streams} x {row.bare_batch}" for row in report.rows)
    unknown = "" if report.same_engine else "Which engine the server has it does not say. "
    note = (
        f"{report.method} on {report.engine}, {report.server}. {unknown}The engine without a server takes turns with "
        f"it, with as many images in flight ({in_flight}). "
        f"{machine['cpu']}, {machine['threads']} threads."
    )
    return Group(Text(printable(report.url), style="bold"), table, Text(printable(note), style="dim"))


def _formed(row: ServedRow) -> str:
    """The mean batch, and the most frequent ones."""
    mean = row.mean_formed
    if mean is None:
        return "–"
    most = sorted(row.formed, key=lambda size: row.formed[size] * size, reverse=True)[:3]
    return f"{mean:.1f} ({', '.join(map(str, most))})"
