"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, values

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
    batch: Annotated[
        int, options.whole("--batch", low=1, high=options.BATCH, said=options.PER_BATCH, help="Images per batch.")
    ] = 32,
    on_error: Annotated[
        str,
        options.option(values.Choice("--on-error", "skip", "fail"), help="What an image does that cannot be read."),
    ] = "fail",
    engine: Annotated[
        str | None,
        options.option(
            values.EngineName("--engine"), "-e", metavar="NAME", help="What runs ONNX files.  [default: onnxruntime]"
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
    from lifedeploy.workflows.processes import here

    processes = here()
    with console.counting("images", shown=processes.first) as (say, progress):
        say("looking at the models")
        from lifedeploy.cli import render_accuracy
        from lifedeploy.workflows.evaluate import EvaluateRequest
        from lifedeploy.workflows.evaluate import evaluate as run

        request = EvaluateRequest(
            tuple(models or ()),
            data,
            split or "",
            batch,
            on_error,
            engine or "",
            limit,
            threads,
            command=options.command_line(),
        )
        report = run(request, Workspace(workspace), say, progress)
    if not processes.first:
        return
    for warning in report.warnings:
        console.warn(warning, title="warning")
    if report.skipped:
        lines = [broken.message for broken in report.skipped[:_NAMED]]
        left = len(report.skipped) - len(lines)
        lines += [f"and {left} more; --json lists all of them"] if left else []
        plural = "" if len(report.skipped) == 1 else "s"
        console.warn("\n".join(lines), title=f"{len(report.skipped)} image{plural} left out", alarming=True)
    console.report(json, report.to_dict, lambda: render_accuracy.evaluated(report, per_class, confusion))
