"""``lifedeploy visualize``: its options, and what was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifedeploy.cli import console, options, paths
from lifedeploy.errors import UsageError
from lifedeploy.text import printable


def visualize(
    model: Annotated[Path, options.argument("MODEL", "A checkpoint, export or engine; or a run, for --curves.")],
    images: Annotated[list[Path] | None, options.argument("IMAGE…", "Image files, a row each.")] = None,
    output: Annotated[Path, options.picture("--output", "-o", help="The picture: .png, .svg or .pdf.")] = Path(
        "lives.png"
    ),
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Lives over --data, against what the schedule grants.")
    ] = False,
    curves: Annotated[bool, typer.Option("--curves", help="Loss, accuracy and rates of a training run.")] = False,
    data: Annotated[
        str | None, options.option(paths.Source("--data"), metavar="DIR", help="Images for --histogram.")
    ] = None,
    split: options.SplitOption = None,
    limit: Annotated[int, options.images("--limit", "This many of them, evenly spread.")] = 256,
    max_pixels: options.MaxPixelsOption = None,
    json: options.JsonOption = None,
) -> None:
    """Draw what becomes of patches: image, what is left after drops, life per patch or groups, as the model tells."""
    if histogram and curves:
        raise UsageError("--histogram and --curves exclude each other: each is a picture of its own")
    if (histogram or curves) and images:
        raise UsageError(
            f"--{'histogram' if histogram else 'curves'} draws no single images, and {images[0]} was given"
        )
    if histogram != (data is not None):
        raise UsageError("--histogram and --data go together: the images to take the lives of")
    if not (images or histogram or curves):
        raise UsageError("no images to draw", hint="lifedeploy visualize MODEL IMAGE… -o FILE")
    options.require_apart({"--output": output, "--json": json}, [model, *(images or []), data, split])
    options.limit_pixels(max_pixels)
    with console.working() as say:
        from lifedeploy.workflows import visualize as workflow

        if curves:
            report = workflow.curves(model, output)
        elif data is not None:
            report = workflow.histogram(model, data, output, split=split or "", limit=limit, say=say)
        else:
            report = workflow.visualize(model, images or [], output, say)
    for line in report.left_out:
        console.warn(line)
    if report.warning:
        console.warn(report.warning, alarming=True)
    lines = [printable(f"wrote {report.file}")]
    if report.mean_life is not None:
        plural = "" if report.images == 1 else "s"
        grants = ""
        if report.granted_mean is not None:
            grants = f"; the schedule grants {report.granted_mean:.2f} and {report.granted_std:.2f}"
        lines.append(
            f"lives of {report.images} image{plural}: mean {report.mean_life:.2f}, deviation {report.std_life:.2f} "
            f"layers{grants}"
        )
    console.report(json, report.to_dict, lambda: "\n".join(lines))
