"""``lifedeploy evaluate``: its options, and the table of accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, tables, values
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.evaluation.accuracy import Accuracy
    from lifedeploy.workflows.evaluate import EvaluateReport


_NAMED = 10  # broken images named on the screen; all of them are in the JSON


def evaluate(
    data: Annotated[
        str,
        options.option(paths.Source("--data"), metavar="DIR", help="Folder of class folders, wds/DIR or hfds/NAME."),
    ],
    models: Annotated[
        list[Path] | None,
        options.argument(
            "MODEL[:METHOD]",
            "Exports, engines, ONNX files or checkpoints; with :METHOD, the same weights under that method."
            "  [default: what was built last, and its dense baseline]",
        ),
    ] = None,
    split: options.SplitOption = None,
    batch: Annotated[int, options.batch()] = 32,
    on_error: Annotated[
        str,
        options.option(values.OneOf("--on-error", "skip", "fail"), help="What an image does that cannot be read."),
    ] = "fail",
    engine: Annotated[
        str | None,
        options.option(
            values.EngineName("--engine"), "-e", metavar="NAME", help="What runs ONNX files.  [default: onnxruntime]"
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        options.option(
            paths.Url("--url"),
            metavar="URL",
            help="The first model behind a server too, http://HOST:PORT/MODEL or grpc; repeatable.",
        ),
    ] = None,
    limit: options.LimitOption = None,
    max_pixels: options.MaxPixelsOption = None,
    threads: options.ThreadsOption = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show every class.")] = False,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also show the confusion matrix, of up to 20 classes.")
    ] = False,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Measure top-1, top-5, loss and confusion on labelled images, and how far models agree.

    Every image is decoded once and given to all models. Under `accelerate launch` the images are shared out.
    """
    options.require_apart({"--json": json}, [*(models or []), data, split])
    options.limit_pixels(max_pixels)
    from lifedeploy.processes import here

    processes = here()
    with console.watching(shown=processes.first, left=True) as (say, progress):
        say("looking at the models")
        from lifedeploy.workflows.evaluate import EvaluateRequest
        from lifedeploy.workflows.evaluate import evaluate as run

        request = EvaluateRequest(
            models=tuple(models or ()),
            data=data,
            split=split or "",
            batch=batch,
            on_error=on_error,
            engine=engine or "",
            urls=tuple(url or ()),
            limit=limit,
            threads=threads,
            command=options.command_line(),
        )
        report = run(request, Workspace(workspace), say, progress)
    if not processes.first:
        return
    for warning in report.warnings:
        console.warn(warning)
    if report.skipped:
        lines = [broken.message for broken in report.skipped[:_NAMED]]
        left = len(report.skipped) - len(lines)
        lines += [f"and {left} more; --json lists all of them"] if left else []
        plural = "" if len(report.skipped) == 1 else "s"
        console.warn("\n".join(lines), title=f"{len(report.skipped)} image{plural} left out", alarming=True)
    console.report(json, report.to_dict, lambda: evaluated(report, per_class, confusion))


def evaluated(report: EvaluateReport, per_class: bool, confusion: bool) -> RenderableType:
    """Models, then pairs of models, then what was asked for besides."""
    parts: list[RenderableType] = [_models(report)]
    if report.pairs:
        parts += [tables.heading("Agreement"), _pairs(report)]
    for number, row in enumerate(report.rows, start=1):
        if per_class:
            parts += [tables.heading(f"{number}  {printable(row.name)}"), _classes(row.accuracy)]
        if confusion:
            parts += [
                tables.heading(f"{number}  {printable(row.name)}: truth in rows, answers in columns"),
                _confusion(row.accuracy),
            ]
    return Group(*parts, Text(""), Text(printable(_footnote(report)), style="dim"))


def _models(report: EvaluateReport) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
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
            tables.percent(accuracy.top5),
            f"{accuracy.loss:.3f}",
            tables.percent(accuracy.average_precision),
            tables.significant(row.images_per_s),
        )
    return table


def _pairs(report: EvaluateReport) -> Table:
    table = tables.plain_table("models", "same top-1 %", "same kept tokens %")
    for pair in report.pairs:
        table.add_row(f"{pair.first} and {pair.second}", tables.percent(pair.agreement), tables.percent(pair.overlap))
    return table


def _classes(accuracy: Accuracy) -> Table:
    table = tables.plain_table("class", "images", "recall %", "precision %", "AP %", width=40)
    for entry in accuracy.per_class:
        values = (entry.recall, entry.precision, entry.average_precision)
        table.add_row(printable(entry.name), str(entry.images), *map(tables.percent, values))
    return table


def _confusion(accuracy: Accuracy) -> RenderableType:
    """Truth in rows, answers in columns, which carry numbers: names would not fit."""
    from lifedeploy.evaluation.accuracy import AP_CLASSES

    matrix = accuracy.confusion
    if matrix is None or len(matrix) > AP_CLASSES:
        return Text(f"not shown: more than {AP_CLASSES} classes", style="dim")
    names = {entry.index: entry.name for entry in accuracy.per_class}
    table = tables.plain_table("class", *map(str, range(len(matrix))), width=24)
    for index, counts in enumerate(matrix):
        cells = [
            Text(str(count), style="bold") if answer == index else str(count or "·")
            for answer, count in enumerate(counts)
        ]
        table.add_row(f"{index}  {printable(names.get(index, '–'))}", *cells)
    return table


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
