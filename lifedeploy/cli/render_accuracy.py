"""What ``evaluate`` found, as tables that fit eighty columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.evaluation.accuracy import AP_CLASSES, Accuracy
from lifedeploy.text import printable
from lifedeploy.workflows.evaluate import EvaluateReport


def evaluated(report: EvaluateReport, per_class: bool, confusion: bool) -> RenderableType:
    """Models, then pairs of models, then what was asked for besides."""
    parts: list[RenderableType] = [_models(report)]
    if report.pairs:
        parts += [_title("Agreement"), _pairs(report)]
    for number, row in enumerate(report.rows, start=1):
        if per_class:
            parts += [_title(f"{number}  {printable(row.name)}"), _classes(row.accuracy)]
        if confusion:
            parts += [
                _title(f"{number}  {printable(row.name)}: truth in rows, answers in columns"),
                _confusion(row.accuracy),
            ]
    return Group(*parts, Text(""), Text(printable(_footnote(report)), style="dim"))


def _table() -> Table:
    """Without a title: rich wraps a title to the width of its table, and some of these are narrow."""
    return Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)


def _models(report: EvaluateReport) -> Table:
    table = _table()
    table.add_column("#", justify="right")
    table.add_column("model", overflow="fold", max_width=26)
    table.add_column("precision", no_wrap=True)
    for header in ("images", "top-1 %", "top-5 %", "loss", "AP %", "img/s"):
        table.add_column(header, justify="right", no_wrap=True)
    for number, row in enumerate(report.rows, start=1):
        accuracy = row.accuracy
        table.add_row(
            str(number),
            Text.assemble(printable(row.name), (f"\n{row.method} · {row.engine}", "dim")),
            row.precision,
            str(accuracy.images),
            Text.assemble((f"{accuracy.top1 * 100:.1f}", "bold"), (f" ± {accuracy.standard_error * 100:.1f}", "dim")),
            percent(accuracy.top5),
            f"{accuracy.loss:.3f}",
            percent(accuracy.average_precision),
            f"{row.images_per_s:.0f}" if row.images_per_s >= 100 else f"{row.images_per_s:.3g}",
        )
    return table


def _pairs(report: EvaluateReport) -> Table:
    table = _table()
    table.add_column("models")
    table.add_column("same top-1 %", justify="right")
    table.add_column("same kept tokens %", justify="right")
    for pair in report.pairs:
        table.add_row(f"{pair.first} and {pair.second}", percent(pair.agreement), percent(pair.overlap))
    return table


def _classes(accuracy: Accuracy) -> Table:
    table = _table()
    table.add_column("class", overflow="fold", max_width=40)
    for header in ("images", "recall %", "precision %", "AP %"):
        table.add_column(header, justify="right", no_wrap=True)
    for entry in accuracy.per_class:
        values = (entry.recall, entry.precision, entry.average_precision)
        table.add_row(printable(entry.name), str(entry.images), *map(percent, values))
    return table


def _confusion(accuracy: Accuracy) -> RenderableType:
    """Truth in rows, answers in columns, which carry numbers: names would not fit."""
    matrix = accuracy.confusion
    if matrix is None or len(matrix) > AP_CLASSES:
        return Text(f"not shown: more than {AP_CLASSES} classes", style="dim")
    names = {entry.index: entry.name for entry in accuracy.per_class}
    table = _table()
    table.add_column("class", overflow="fold", max_width=24)
    for index in range(len(matrix)):
        table.add_column(str(index), justify="right", no_wrap=True)
    for index, counts in enumerate(matrix):
        cells = [
            Text(str(count), style="bold") if answer == index else str(count or "·")
            for answer, count in enumerate(counts)
        ]
        table.add_row(f"{index}  {printable(names.get(index, '–'))}", *cells)
    return table


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def percent(share: float | None) -> str:
    """A share as a number of percent."""
    return "–" if share is None else f"{share * 100:.1f}"


def _footnote(report: EvaluateReport) -> str:
    data, machine = report.data, report.machine
    split = f", {data['split']}" if data["split"] else ""
    by = {row.classes_by for row in report.rows}
    shared = f", {report.processes} processes" if report.processes > 1 else ""
    return (
        f"{data['source']}{split}: {data['images']} images of {len(data['classes'])} classes, matched by "
        f"{' and '.join(sorted(by))}. ±: standard error. {machine['cpu']}, {machine['threads']} threads{shared}; "
        "img/s while images are decoded beside it: no benchmark."
    )
