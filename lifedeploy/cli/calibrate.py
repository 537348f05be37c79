"""``lifedeploy calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, values
from lifedeploy.errors import UsageError

_NO_DATA = "calibration needs images: --data DIR"
_RANGES = ("minmax", "percentile", "entropy")


class _MethodOrRange(method_options.MethodName):
    """A method; or, as ``--ranges`` was called before there were several, how far activations reach."""

    def read(self, text: str) -> str:
        if text in _RANGES:
            return text
        try:
            return super().read(text)
        except UsageError as error:
            hint = f"how far activations reach is --ranges {'|'.join(_RANGES)}"
            raise UsageError(error.message, hint="; ".join(filter(None, (error.hint, hint)))) from error


def calibrate(
    model: options.ModelArgument = None,
    data: Annotated[
        str | None,
        options.option(
            paths.Source("--data", empty=_NO_DATA),
            metavar="DIR",
            help="Images: a folder of them or of class folders, wds/DIR, hfds/NAME.",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit integers.  [default, or what MODEL is calibrated for]")
    ] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="8-bit floating point, E4M3: Hopper, Ada, Blackwell.")] = False,
    images: Annotated[int, options.images("--images", "How many to calibrate on.")] = 512,
    split: Annotated[
        str | None,
        options.option(
            paths.Source("--split"),
            metavar="train|val|all|NAME|FILE",
            help="Which.  [default: train if there is one]",
        ),
    ] = None,
    seed: Annotated[
        int,
        options.whole(
            "--seed",
            low=0,
            high=options.SEED,
            said="seed {found} is not allowed: it must be {low} to {high}",
            help="Of their choice.",
        ),
    ] = 0,
    method: Annotated[
        str | None,
        options.option(
            _MethodOrRange(methods.SLIMMED), metavar="NAME", help="Take the newest export of this method as MODEL."
        ),
    ] = None,
    ranges: Annotated[
        str | None,
        options.option(
            values.Choice("--ranges", *_RANGES, said="ranges as {found} are unknown; there are: {words}"),
            help="How far activations reach.  [default: minmax]",
        ),
    ] = None,
    smoothing: Annotated[
        float,
        options.option(
            values.Real("--smoothing", 0, 1, "smoothing {found} is not allowed: it must be {interval}", below=True),
            metavar="ALPHA",
            help="How much of it is moved into the weights (SmoothQuant); 0: none.",
        ),
    ] = 0.6,
    parts: Annotated[
        str | None,
        options.option(
            values.Name("--parts"), metavar="PART,PART", help="Parts to quantise.  [default: see --show-policy]"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        options.option(
            values.Name("--keep"),
            metavar="NAME",
            help="Product left in floating point, as blocks.0.*; repeatable.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        options.option(
            values.Real("--max-drop", 0, 100, "a drop of {found} points is not allowed: it must be {interval}"),
            metavar="POINTS",
            help="Leave the worst layers in floating point until top-1 drops by at most this; else fail.",
        ),
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight, not one per output channel.")
    ] = False,
    check_images: Annotated[int, options.images("--check-images", "Other images, to see what it costs.")] = 64,
    batch: Annotated[
        int, options.whole("--batch", low=1, high=options.BATCH, said=options.PER_BATCH, help="Images per batch.")
    ] = 8,
    max_pixels: options.MaxPixelsOption = None,
    show_policy: Annotated[
        bool, typer.Option("--show-policy", help="Show what is quantised and why, and stop.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Calibrate again even if nothing changed.")] = False,
    plot: Annotated[Path | None, options.picture("--plot", help="Also draw the report here.")] = None,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Quantise an exported model and its baselines with images, and show what it costs.

    The graphs carry explicit Q/DQ nodes, so every engine computes the same 8 bits: `build-engine --int8` takes them.
    """
    asked = options.precision(int8=int8, fp8=fp8)
    if method in _RANGES:
        if ranges not in (None, method):
            raise UsageError(f"--method {method} and --ranges {ranges} exclude each other: both say how far they reach")
        method, ranges = None, method
    options.require_apart({"--json": json, "--plot": plot}, [model, data, split])
    if not show_policy and not data:
        raise UsageError(_NO_DATA)
    options.limit_pixels(max_pixels)
    with console.counting("images") as (say, progress):
        say("looking at the model")
        from lifedeploy.calibration.policy import check_parts
        from lifedeploy.calibration.quantize import Recipe
        from lifedeploy.cli import render_calibration
        from lifedeploy.workflows import calibrate as workflow
        from lifedeploy.workflows.find import newest_export, quantized_precision

        place = Workspace(workspace)
        if method is not None:
            export = newest_export(model, place, method=method)
            model = model or export.manifest_path
        asked = asked or quantized_precision(model) or "int8"
        chosen = tuple(part.strip() for part in (parts or "").split(",") if part.strip())
        if parts:
            check_parts(chosen)
        recipe = Recipe(
            asked, ranges or _RANGES[0], chosen, per_channel=not per_tensor, smoothing=smoothing, keep=tuple(keep or ())
        )
        request = workflow.CalibrateRequest(
            model,
            data or "",
            recipe,
            split or "",
            images,
            check_images,
            seed,
            batch,
            max_drop,
            force,
        )
        if show_policy:
            rows = workflow.show_policy(request, place)
        else:
            report = workflow.calibrate(request, place, say, progress)
            if plot is not None:
                from lifedeploy.viz.calibration import plot_calibration

                plot_calibration(report.members, plot, precision=asked)
    if show_policy:
        console.report(json, lambda: {"schema": 1, "policy": rows}, lambda: render_calibration.policy(rows, asked))
        return
    for warning in (*report.left_out, *report.warnings):
        console.warn(warning, title="warning")
    console.report(json, report.to_dict, lambda: render_calibration.calibrated(report))
    if plot is not None:
        console.wrote(plot)
