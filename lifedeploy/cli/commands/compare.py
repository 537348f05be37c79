"""``lifedeploy compare``: its options, and where its tables go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy import typed
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, values
from lifedeploy.errors import UsageError
from lifedeploy.files import write_text

# What says which models are made, where they are not checkpoints.
_OF_METHODS = ("backbone", "methods", "rho", "at", "weights", "img_size", "num_classes")


def compare(
    context: typer.Context,
    backbone: options.BackboneOption = "deit_s",
    methods: Annotated[
        values.Words | None,
        options.option(
            method_options.MethodNames("--methods"),
            metavar="NAME,NAME",
            help="What to compare; `dense` is always among them.  [default: all methods there are]",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        options.option(
            values.EngineName("--engine", precision=True),
            "-e",
            metavar="NAME[:PRECISION]",
            help="Engine to compare on; repeatable, and all take turns with each other.  [default: the fastest here]",
        ),
    ] = None,
    rho: Annotated[float, options.keep_rate("--rho", "Keep rate at each drop, of the first method at least.")] = 0.7,
    at: Annotated[
        str,
        options.option(
            values.OneOf("--at", *typed.COMPARED_AT),
            help="What is the same for all: the keep rate; the GMACs, or the measured speed, of the first method that "
            "drops tokens, to which the others' keep rates are solved.",
        ),
    ] = typed.COMPARED_AT[0],
    weights: options.WeightsOption = "auto",
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    batch: Annotated[values.Numbers, options.batches("--batch", "Batch sizes.")] = values.Numbers((1, 8, 32)),
    mode: options.ModeOption = None,
    streams: options.StreamsOption = 2,
    threads: options.ThreadsOption = None,
    budget: options.BudgetOption = 150.0,
    data: Annotated[
        str | None,
        options.option(
            paths.Source("--data"),
            metavar="DIR",
            help="Labelled images, as for evaluate: accuracy beside speed.",
        ),
    ] = None,
    split: options.SplitOption = None,
    limit: options.LimitOption = None,
    max_pixels: options.MaxPixelsOption = None,
    calibration_data: Annotated[
        str | None,
        options.option(
            paths.Source("--calibration-data"),
            metavar="DIR",
            help="Images to calibrate on for INT8 or FP8, where that has not been done.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what was measured on this machine in these versions.")
    ] = False,
    allow_unfused: Annotated[
        bool, typer.Option("--allow-unfused", help="Keep engines whose attention is not fused, and say so.")
    ] = False,
    skip_refused: Annotated[
        bool,
        typer.Option(
            "--skip-refused",
            help="Go on without a model on an engine where it does not compute what PyTorch does, and say so.",
        ),
    ] = False,
    markdown: Annotated[
        Path | None, options.option(paths.Output("--markdown"), metavar="FILE", help="Also write the tables as a page.")
    ] = None,
    plot: Annotated[
        Path | None,
        options.picture("--plot", help="Also draw speed against GMACs and, with --data, accuracy: .png, .svg or .pdf."),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        options.path(
            "--checkpoints",
            help="Instead of methods: what `train` wrote, each as it was trained, the dense model among them; "
            "DIR/*.safetensors too.",
        ),
    ] = None,
    more: Annotated[
        list[Path] | None, options.argument("[CHECKPOINT]...", "More of them, as the shell makes them of a pattern.")
    ] = None,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Compare methods on compiled engines: speed beside work and, with labelled images, beside accuracy.

    Exports and builds what is missing, then lets all methods take turns in one contest per mode and batch size. "Keep
    0.7" is other work for each method, so they can be brought to the same GMACs or speed. What was measured is kept in
    the workspace: ended in the middle, the same command goes on (accuracy is evaluated anew). Every method has its
    usual drop layers and options. `--checkpoints` compares trained models instead.
    """
    files = tuple(file for given in (*(checkpoints or ()), *(more or ())) for file in paths.matching(given))
    if more and not checkpoints:
        raise UsageError(f"{more[0]} is no option of compare", hint="--checkpoints FILE …, --methods NAME,NAME")
    if files and (other := options.first_given(context, *_OF_METHODS)):
        raise UsageError(f"--checkpoints and {other} exclude each other: each checkpoint is what it was trained to be")
    sources = [data, calibration_data, weights, *files]
    options.require_apart({"--json": json, "--markdown": markdown, "--plot": plot}, sources)
    options.limit_pixels(max_pixels)
    with console.watching() as (say, progress):
        say("importing torch")
        from lifedeploy.bench.measure import Stop
        from lifedeploy.cli.commands import compare_tables
        from lifedeploy.model.weights import ModelRequest
        from lifedeploy.workflows.bench import BenchRequest
        from lifedeploy.workflows.compare import CompareRequest
        from lifedeploy.workflows.compare import compare as run

        request = CompareRequest(
            model=ModelRequest(
                backbone=backbone, keep_rate=rho, weights=weights, image_size=img_size, num_classes=num_classes
            ),
            methods=tuple(methods or ()),
            at=at,
            bench=BenchRequest(
                engines=tuple(engine or ()),
                batches=batch,
                modes=tuple(mode or ("latency",)),
                streams=streams,
                threads=threads,
                stop=Stop(budget_s=budget),
                memory=False,
                command=options.command_line(),
                data=data or "",
                split=split or "",
                limit=limit,
            ),
            calibration_data=calibration_data or "",
            fresh=fresh,
            allow_unfused=allow_unfused,
            skip_refused=skip_refused,
            checkpoints=files,
        )
        report = run(request, Workspace(workspace), say, progress)
    for warning in report.bench.warnings:
        console.warn(warning)
    console.report(json, report.to_dict, lambda: compare_tables.compared(report))
    if markdown is not None:
        write_text(markdown, compare_tables.markdown(report))
        console.wrote(markdown)
    if plot is not None:
        from lifedeploy.viz.comparison import plot_comparison

        plot_comparison(report, plot)
        console.wrote(plot)
