"""The command ``evaluate``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.options import JsonOption, WorkspaceOption, require_folder

_NAMED = 10  # broken images named on the screen; all of them are in the JSON


def evaluate(
    data: Annotated[
        str,
        typer.Option("--data", metavar="DIR", help="Folder of class folders, wds/DIR or hfds/NAME."),
    ],
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL[:METHOD]",
            help="Exports, engines, ONNX files or checkpoints; with :METHOD, the same weights under that method."
            "  [default: what was built last, and its dense baseline]",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="train|val|all|NAME|FILE", help="Which images.  [default: val if there is one]"
        ),
    ] = "",
    batch: Annotated[int, typer.Option("--batch", help="Images per batch.")] = 32,
    on_error: Annotated[
        str, typer.Option("--on-error", metavar="skip|fail", help="What an image does that cannot be read.")
    ] = "fail",
    engine: Annotated[
        str, typer.Option("--engine", "-e", metavar="NAME", help="What runs ONNX files.  [default: onnxruntime]")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Take N images, evenly over the data.  [default: all]")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.  [default: all]")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show every class.")] = False,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also show the confusion matrix, of up to 20 classes.")
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Measure top-1, top-5, loss and confusion on labelled images, and how far models agree.

    Every image is decoded once and given to all models. Under `accelerate launch` the images are shared out.
    """
    require_folder(json)
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
            split,
            batch,
            on_error,
            engine,
            limit,
            threads,
            command=shlex.join(["lifedeploy", *sys.argv[1:]]),
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
