"""``lifedeploy tune``: its options, and where its tables go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy import limits, typed
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, paths, values

_GOAL = "The goal: one of these; else no more loss than now"


def tune(
    model: options.ModelArgument = None,
    engine: Annotated[
        str | None,
        options.option(
            values.EngineName("--engine", precision=True),
            "-e",
            metavar="NAME[:PRECISION]",
            help="Engine to tune for.  [default: MODEL's own, if it is an engine; else the fastest here]",
        ),
    ] = None,
    batch: Annotated[int, options.batch()] = 1,
    mode: Annotated[
        str,
        options.option(
            values.OneOf("--mode", *typed.MODES, said="mode {value} is unknown; there are: {words}"),
            help="One request at a time, or several in flight.",
        ),
    ] = typed.MODES[0],
    streams: options.StreamsOption = 2,
    threads: options.ThreadsOption = None,
    speedup: Annotated[
        float | None,
        options.option(
            values.Real("--speedup", 0, 1000, above=True),
            metavar="X",
            help="As fast as this over dense, with the least loss.",
            panel=_GOAL,
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        options.option(
            values.Real("--latency-ms", 0, 1e6, above=True),
            metavar="MS",
            help="A request within this, with the least loss.",
            panel=_GOAL,
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        options.option(
            values.Real("--max-kl", 0, 1000, above=True),
            metavar="NATS",
            help="As fast as can be with the classes' KL divergence from dense within this; takes --data.",
            panel=_GOAL,
        ),
    ] = None,
    base_layer: Annotated[
        int | None,
        options.whole(
            "--base-layer",
            low=1,
            high=options.LAYERS,
            help="Layer that lives are predicted after.  [default: where the predictor was trained; untrained, any]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        options.option(
            paths.Source("--data"),
            metavar="DIR",
            help="Images to ask the model about; labels are not needed.  [default: the packaged photographs, a guess]",
        ),
    ] = None,
    split: Annotated[
        str | None,
        options.option(
            paths.Source("--split"),
            metavar="train|val|all|NAME|FILE",
            help="Which of the images.  [default: train if there is one]",
        ),
    ] = None,
    images: Annotated[
        int,
        options.whole(
            "--images", low=1, high=limits.MOST_TUNED_IMAGES, help="Take at most N images, evenly over the data."
        ),
    ] = 256,
    max_pixels: options.MaxPixelsOption = None,
    budget: Annotated[
        float,
        options.option(
            values.Real("--budget", 0, limits.LONGEST_BUDGET_S, above=True),
            metavar="SECONDS",
            help="Longest time for measuring the staircase; what else there is takes a few minutes at most.",
        ),
    ] = 150.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what was measured on this machine in these versions.")
    ] = False,
    output: Annotated[
        Path | None,
        options.option(
            paths.Output("--output"), "-o", metavar="FILE", help="Write the schedule, for `export --schedule FILE`."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        options.picture("--plot", help="Also draw the staircase, and latency against loss: .png, .svg or .pdf."),
    ] = None,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Find the token schedule that suits an engine and a machine: its counts, and the layers that tokens leave after.

    Measures how latency depends on the number of tokens, looks at every schedule of up to four drops, and verifies the
    best three. What was measured is kept in the workspace: ended in the middle, the same command goes on.
    """
    options.require_apart({"--json": json, "--output": output, "--plot": plot}, [data, str(model) if model else None])
    options.limit_pixels(max_pixels)
    with console.watching() as (say, progress):
        say("importing torch")
        from lifedeploy.cli.commands import tune_tables
        from lifedeploy.tuning.choosing import Goal
        from lifedeploy.workflows.tune import TuneRequest
        from lifedeploy.workflows.tune import tune as run

        request = TuneRequest(
            model=model,
            engine=engine or "",
            mode=mode,
            batch=batch,
            streams=streams,
            threads=threads,
            goal=Goal(speedup=speedup, latency_ms=latency_ms, max_kl=max_kl),
            base_layer=base_layer,
            data=data or "",
            split=split or "",
            images=images,
            budget_s=budget,
            fresh=fresh,
            command=options.command_line(),
        )
        report = run(request, Workspace(workspace), say, progress)
    for warning in report.warnings:
        console.warn(warning)
    for note in report.notes:
        console.note(note)
    console.report(json, report.to_dict, lambda: tune_tables.tuned(report))
    if output is not None:
        report.tuned.write(output)
        console.wrote(output)
    if plot is not None:
        from lifedeploy.viz.tuning import plot_tuning

        plot_tuning(report, plot)
        console.wrote(plot)
