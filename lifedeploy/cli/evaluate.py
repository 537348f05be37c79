"""The ``evaluate`` command."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.options import JsonOption, WorkspaceOption


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL…",
            help="Checkpoints, exports, ONNX files or engines; PATH:dense for the same weights under another method. "
            "Default: the engine built last and its dense baseline.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="Folder of class folders, wds/FOLDER or hfds/NAME.")
    ] = ...,  # type: ignore[assignment]
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="train|val|all|FILE",
            help="Which images; FILE is a split.csv of training.  [default: val where there is one, else all]",
        ),
    ] = "",
    batch: Annotated[int, typer.Option("--batch", help="Images asked about at once.")] = 32,
    limit: Annotated[int | None, typer.Option("--limit", help="This many images, evenly spread.")] = None,
    on_error: Annotated[
        str, typer.Option("--on-error", metavar="fail|skip", help="What to do about an image that is broken.")
    ] = "fail",
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show every class.")] = False,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also show who is taken for whom.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.  [default: all]")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Measure accuracy: top-1, top-5, loss, average precision; agreement and kept tokens between models.

    Several models in one pass over the images. Also under `accelerate launch -m lifedeploy`.
    """
    main_process = os.environ.get("RANK", "0") == "0"
    with console.counting(quiet=not main_process) as (say, watch):
        say("importing")
        from lifedeploy.cli import render_accuracy
        from lifedeploy.workflows.evaluate import EvaluateRequest
        from lifedeploy.workflows.evaluate import evaluate as run

        command = shlex.join(["lifedeploy", *sys.argv[1:]])
        request = EvaluateRequest(tuple(models or ()), data, split, batch, on_error, limit, threads, command)
        report = run(request, Workspace(workspace), say, watch)
    if report is None:
        return
    if report.warning:
        console.warn(report.warning, title="warning", alarming=True)
    if report.skipped:
        shown = "\n".join(broken.reason for broken in report.skipped)
        console.warn(shown, title=f"skipped {len(report.skipped)} broken images")
    console.report(
        json, report.to_dict, lambda: render_accuracy.evaluated(report, per_class=per_class, confusion=confusion)
    )
