"""``lifedeploy predict``: its options, and the classes found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, options, tables
from lifedeploy.errors import ImageError
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.workflows.predict import PredictReport


def predict(
    images: Annotated[list[Path], options.argument("IMAGE", "Image files.")],
    model: Annotated[
        Path | None,
        options.path("--model", "-m", help="An export or engine.  [default: what was built last]", metavar="MODEL"),
    ] = None,
    top: Annotated[int, options.whole("--top", low=1, high=options.CLASSES, help="Classes to show.")] = 5,
    max_pixels: options.MaxPixelsOption = None,
    workspace: options.WorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Classify images: the best classes by name, and the time each image took.

    One that cannot be read is told among the others, and the command ends with 1. For many images see `score`.
    """
    options.require_apart({"--json": json}, [model, *images])
    options.limit_pixels(max_pixels)
    from lifedeploy.workflows.predict import PredictRequest
    from lifedeploy.workflows.predict import predict as run

    with console.watching() as (_, progress):
        report = run(PredictRequest(tuple(images), model, top), Workspace(workspace), progress)
    console.report(json, report.to_dict, lambda: predicted(report))
    if report.bad:
        count = f"{len(report.bad):,} of {len(report.predictions):,} images have no answer"
        raise ImageError(f"{count}; the first: {report.bad[0].error}")


def predicted(report: PredictReport) -> RenderableType:
    """What ``predict`` says."""
    parts: list[RenderableType] = [Text(printable(f"{report.model} on {report.engine}"), style="dim")]
    for prediction in report.predictions:
        # No title of the table, which rich wraps to its width: the name of an image is longer.
        if prediction.inference_ms is None:
            parts.append(Text(printable(prediction.error), style="bold red", overflow="fold"))
            continue
        headline = f"{printable(prediction.image)}  ({prediction.inference_ms:.1f} ms)"
        parts.append(Text(headline, style="bold", overflow="fold"))
        table = tables.plain_table("class", "probability")
        for guess in prediction.guesses:
            table.add_row(printable(guess.name), f"{guess.probability:.1%}")
        parts.append(table)
    return Group(*parts)
