"""``lifedeploy bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.options import JsonOption, ModelArgument, WorkspaceOption, numbers, require_folder
from lifedeploy.errors import UsageError


def bench(
    model: ModelArgument = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            metavar="NAME[:PRECISION]",
            help="Engine to measure; repeatable, and the first is what the others are held against. Built first if it "
            "is not.  [default: what was built last]",
        ),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes.")] = "1,8,32",
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            metavar="latency|throughput",
            help="One request at a time, or several in flight; repeatable.  [default: latency]",
        ),
    ] = None,
    streams: Annotated[int, typer.Option("--streams", help="Requests in flight in throughput mode.")] = 2,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.  [default: all]")] = None,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            help="Longest time per engine, mode and batch size (three rounds are always made).",
        ),
    ] = 150.0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, in a process of its own.")
    ] = True,
    cuda_binding: Annotated[
        str, typer.Option("--cuda-binding", metavar="NAME", help="cuda-python or pycuda.  [default: what is installed]")
    ] = "",
    trust: Annotated[
        bool, typer.Option("--trust", help="Measure a TensorRT plan without a manifest. A plan is executable code.")
    ] = False,
    copies: Annotated[
        str,
        typer.Option(
            "--copies", metavar="with|without|both", help="On a GPU: with copies to and from it, without, or both."
        ),
    ] = "both",
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where the time goes: attention, MLP, TopK, Gather, Slice …")
    ] = False,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DIR", help="Labelled images, as for evaluate: accuracy beside speed, in one table."
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="train|val|all|NAME|FILE", help="Which of them.  [default: val if there is one]"
        ),
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Take N images, evenly over the data.  [default: all]")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the rows as CSV.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw them: .png, .svg or .pdf.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Measure the slimmed model against its dense baseline and first-k bound, in turn, round by round.

    Stops when the 95 % interval of every speed-up is within ±1 %, or when the budget ends. Several engines take turns
    with each other, so that they can be compared; with labelled images, in accuracy too.
    """
    batches = numbers(batch, "--batch")
    ways = {"with": (True,), "without": (False,), "both": (True, False)}
    if copies not in ways:
        raise UsageError(f"--copies {copies!r} is not allowed: it must be {', '.join(ways)}")
    with console.benchmarking() as (say, progress):
        say("looking for engines")
        from lifedeploy.bench.measure import Stop
        from lifedeploy.cli import render_bench
        from lifedeploy.workflows.bench import BenchRequest
        from lifedeploy.workflows.bench import bench as run

        require_folder(json)
        require_folder(csv)
        require_folder(plot)
        if plot is not None:
            from lifedeploy.viz.plots import check_format

            check_format(plot)
        request = BenchRequest(
            model,
            tuple(engine or ()),
            batches,
            tuple(mode or ("latency",)),
            streams,
            threads,
            Stop(budget_s=budget),
            memory,
            command=shlex.join(["lifedeploy", *sys.argv[1:]]),
            cuda_binding=cuda_binding,
            trust=trust,
            copies=ways[copies],
            profile=profile,
            data=data,
            split=split,
            limit=limit,
        )
        report = run(request, Workspace(workspace), say, progress)
        if csv is not None:
            report.write_csv(csv)
        if plot is not None:
            from lifedeploy.viz.plots import plot_bench

            plot_bench(report, plot)
    for warning in report.warnings:
        console.warn(warning, title="warning")
    console.report(json, report.to_dict, lambda: render_bench.measured(report))
    for path in (csv, plot):
        if path is not None:
            console.err.print(f"wrote {path}", highlight=False)
