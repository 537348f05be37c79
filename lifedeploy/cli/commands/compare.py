"""``lifedeploy compare``: its options, and where its tables go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lifedeploy import limits, typed
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, values
from lifedeploy.files import write_text

if TYPE_CHECKING:
    from lifedeploy.bench.comparison import At

_AT = ("keep-rate", "macs", "speed")


def compare(
    backbone: Annotated[
        str,
        options.option(values.Name("--backbone"), "-b", metavar="NAME", help="deit_t|s|b, vit_t|s|b, or any timm ViT."),
    ] = "deit_s",
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
            values.OneOf("--at", *_AT),
            help="What is the same for all: the keep rate; the GMACs, or the measured speed, of the first method that "
            "drops tokens, to which the others' keep rates are solved.",
        ),
    ] = _AT[0],
    weights: Annotated[
        str,
        options.option(
            paths.Source("--weights"), metavar="auto|pretrained|random|FILE", help="Where weights come from."
        ),
    ] = "auto",
    img_size: Annotated[
        values.Size | None,
        options.image_size("--img-size", "Image size in pixels.  [default: the backbone's own]"),
    ] = None,
    num_classes: Annotated[
        int | None,
        options.whole(
            "--num-classes",
            low=0,
            high=options.CLASSES,
            help="Classes of the head; 0: none.  [default: the weights' own]",
        ),
    ] = None,
    batch: Annotated[values.Numbers, options.batches("--batch", "Batch sizes.")] = values.Numbers((1, 8, 32)),
    mode: Annotated[
        list[str] | None,
        options.option(
            values.OneOf("--mode", *typed.MODES, said="mode {value} is unknown; there are: {words}"),
            help="One request at a time, or several in flight; repeatable.  [default: latency]",
        ),
    ] = None,
    streams: Annotated[
        int, options.whole("--streams", low=1, high=limits.MOST_STREAMS, help="Requests in flight in throughput mode.")
    ] = 2,
    threads: options.ThreadsOption = None,
    budget: Annotated[
        float,
        options.option(
            values.Real("--budget", 0, limits.LONGEST_BUDGET_S, above=True),
            metavar="SECONDS",
            help="Longest time per engine, mode and batch size (three rounds are always made).",
        ),
    ] = 150.0,
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
    markdown: Annotated[
        Path | None, options.option(paths.Output("--markdown"), metavar="FILE", help="Also write the tables as a page.")
    ] = None,
    plot: Annotated[
        Path | None,
        options.picture("--plot", help="Also draw speed against GMACs and, with --data, accuracy: .png, .svg or .pdf."),
    ] = None,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Compare methods on compiled engines: speed beside work and, with labelled images, beside accuracy.

    Exports and builds what is missing, then lets all methods take turns in one contest per mode and batch size. "Keep
    0.7" is other work for each method, so they can be brought to the same GMACs or speed. What was measured is kept in
    the workspace: ended in the middle, the same command goes on (accuracy is evaluated anew). Every method has its
    usual drop layers and options.
    """
    options.require_apart({"--json": json, "--markdown": markdown, "--plot": plot}, [data, calibration_data, weights])
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
            at=cast("At", at),
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
