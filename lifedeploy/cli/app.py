"""The commands, and the one place where errors become messages and exit codes.

Everything heavy is imported inside the command that needs it: ``lifedeploy --help`` loads no framework.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lifedeploy import __version__
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console
from lifedeploy.cli.bench import bench
from lifedeploy.cli.build import build_engine
from lifedeploy.cli.calibrate import calibrate
from lifedeploy.cli.evaluate import evaluate
from lifedeploy.cli.options import (
    JsonOption,
    ModelArgument,
    WorkspaceOption,
    image_size,
    numbers,
)
from lifedeploy.cli.train import train
from lifedeploy.cli.visualize import visualize
from lifedeploy.errors import LifedeployError, UsageError
from lifedeploy.spec import GRAPHS

app = typer.Typer(
    name="lifedeploy",
    help="Token-pruned Vision Transformers: from timm to ONNX to engines that are checked and measured.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(*, wanted: bool) -> None:
    if wanted:
        console.out.print(f"lifedeploy {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda value: _version(wanted=value),
            is_eager=True,
            help="Print the version and stop.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere on the line.")] = False,
) -> None:
    """Token-pruned Vision Transformers: from timm to ONNX to engines that are checked and measured."""


@app.command()
def export(
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="deit_t|s|b, vit_t|s|b, or any timm ViT.")
    ] = "deit_s",
    rho: Annotated[
        float | None,
        typer.Option("--rho", help="Keep rate at each drop, in (0, 1].  [default: the weights' own, else 0.7]"),
    ] = None,
    counts: Annotated[
        str | None,
        typer.Option("--counts", metavar="N,N,N", help="Patch tokens to keep after each drop layer, instead of --rho."),
    ] = None,
    drop_layers: Annotated[
        str | None,
        typer.Option(
            "--drop-layers", metavar="T,T,T", help="Layers after which tokens are dropped.  [default: 4,7,10 of 12]"
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="auto|pretrained|random|FILE", help="Where weights come from.")
    ] = "auto",
    img_size: Annotated[
        str | None,
        typer.Option("--img-size", metavar="N|HxW", help="Image size in pixels.  [default: the backbone's own]"),
    ] = None,
    weights_img_size: Annotated[
        str | None,
        typer.Option(
            "--weights-img-size",
            metavar="N|HxW",
            help="Image size that the weights were trained at, where their file does not say.",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option("--num-classes", min=0, help="Classes of the head; 0: none.  [default: the weights' own]"),
    ] = None,
    graph: Annotated[
        str,
        typer.Option(
            "--graph", metavar="order-once|per-stage", help="Order once and slice, or a TopK and Gather per drop."
        ),
    ] = "order-once",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Fix the batch size.  [default: dynamic]")
    ] = None,
    with_life: Annotated[bool, typer.Option("--with-life", help="Second output: the life of every patch.")] = False,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Take uint8 NHWC pixels; normalise in the graph.")
    ] = False,
    parity: Annotated[bool, typer.Option("--parity/--no-parity", help="Check ONNX Runtime against PyTorch.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write.  [default: named after the model]"),
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Make a slimmed ViT and export it to ONNX, with its dense baseline and first-k bound.

    Weights `auto`: the checkpoint trained in this workspace, else timm's pretrained ones, else random ones (with a
    warning: good for measuring speed only).
    """
    if rho is not None and counts is not None:
        raise UsageError("--rho and --counts exclude each other: both set the schedule")
    if graph not in GRAPHS:
        raise UsageError(f"graph {graph!r} is unknown; there are: {', '.join(GRAPHS)}")
    layers = numbers(drop_layers, "--drop-layers") if drop_layers else None
    kept = numbers(counts, "--counts") if counts else None
    size = image_size(img_size) if img_size else None
    trained_at = image_size(weights_img_size) if weights_img_size else None
    with console.working() as say:
        say("importing torch")
        from lifedeploy.cli import render
        from lifedeploy.exporters.onnx import GraphOptions
        from lifedeploy.model.weights import ModelRequest
        from lifedeploy.workflows.export import ExportRequest
        from lifedeploy.workflows.export import export as run

        request = ExportRequest(
            ModelRequest(
                backbone,
                keep_rate=rho,
                counts=kept,
                drop_layers=layers,
                weights=weights,
                image_size=size,
                num_classes=num_classes,
                weights_image_size=trained_at,
            ),
            GraphOptions(graph, batch_size, with_life, with_preprocess),
            output,
            check_parity=parity,
        )
        report = run(request, Workspace(workspace), say)
    if report.warning:
        console.warn(report.warning, title="warning", alarming=True)
    for note in report.notes:
        console.note(note)
    console.report(json, report.to_dict, lambda: render.exported(report))


app.command()(train)
app.command()(evaluate)
app.command()(visualize)
app.command()(calibrate)
app.command("build-engine")(build_engine)
app.command()(bench)


@app.command()
def inspect(model: ModelArgument = None, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = None) -> None:
    """Show tokens and MACs per layer, the graph's TopK, Gather and Slice nodes, precision and provenance."""
    from lifedeploy.cli import render
    from lifedeploy.workflows.inspect import inspect as run

    report = run(model, Workspace(workspace))
    console.report(json, report.to_dict, lambda: render.inspected(report))


@app.command()
def verify(
    first: Annotated[Path, typer.Argument(metavar="A", help="The reference: a checkpoint, ONNX file or engine.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What is held against it.")],
    json: JsonOption = None,
) -> None:
    """Compare any two of checkpoint, ONNX file and engine on the same images."""
    with console.working() as say:
        from lifedeploy.cli import render
        from lifedeploy.workflows.verify import VerifyRequest
        from lifedeploy.workflows.verify import verify as run

        report = run(VerifyRequest(first, second), say)
    console.report(json, report.to_dict, lambda: render.verified(report))
    report.parity.require(report.second, report.first)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="An export or engine.  [default: what was built last]")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show.")] = 5,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = None,
) -> None:
    """Classify images: the best classes by name, and the time each image took."""
    from lifedeploy.cli import render
    from lifedeploy.workflows.predict import PredictRequest
    from lifedeploy.workflows.predict import predict as run

    report = run(PredictRequest(tuple(images), model, top), Workspace(workspace))
    console.report(json, report.to_dict, lambda: render.predicted(report))


@app.command()
def doctor(json: JsonOption = None) -> None:
    """Show what is installed, which engines run here, and what would make the others run."""
    with console.working() as say:
        say("looking around")
        from lifedeploy.cli import render
        from lifedeploy.workflows.doctor import doctor as run

        report = run()
    console.report(json, report.to_dict, lambda: render.examined(report))


def main() -> None:
    """Run a command; the single error boundary."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, prog_name="lifedeploy", standalone_mode=False)
        if code == 130:  # what newer versions of typer make of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except Exception as error:
        if debug:
            raise
        console.fail(*_explain(error))
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        if debug:
            raise
        console.fail("interrupted; nothing half-written was left behind", None)
        sys.exit(1)


def _exit_code(error: Exception) -> int:
    if isinstance(error, typer.Abort):
        return 1
    return int(getattr(error, "exit_code", 1))  # ours and click's both carry one


def _explain(error: Exception) -> tuple[str, str | None]:
    """Message and hint for whatever ended the command."""
    if isinstance(error, LifedeployError):
        return error.message, error.hint
    if isinstance(error, typer.Abort):
        return "interrupted; nothing half-written was left behind", None
    if hasattr(error, "format_message"):  # click's, for a line it cannot parse
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lifedeploy"
        return error.format_message(), f"{command} --help"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", None
    return f"unexpected {type(error).__name__}: {error}", "this is a bug in lifedeploy; --debug shows where"
