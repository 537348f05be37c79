"""``lifedeploy export``: its options, and the table of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lifedeploy import limits, methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, tables, values
from lifedeploy.errors import UsageError
from lifedeploy.spec import ORDERINGS
from lifedeploy.text import printable
from lifedeploy.typed import LAST_BLOCKS

if TYPE_CHECKING:
    from lifedeploy.workflows.export import ExportReport


def export(
    backbone: options.BackboneOption = "deit_s",
    method: Annotated[
        str,
        options.option(
            method_options.MethodName(methods.SLIMMED),
            metavar="NAME",
            help="How tokens are dropped; its own options come with it.",
        ),
    ] = methods.DEFAULT,
    rho: Annotated[
        float | None,
        options.keep_rate("--rho", "Keep rate at each drop.  [default: the weights' own, else 0.7]"),
    ] = None,
    counts: Annotated[
        values.Numbers | None,
        options.counts("--counts", "Patch tokens to keep after each drop layer, instead of --rho."),
    ] = None,
    drop_layers: Annotated[
        values.Numbers | None,
        options.drop_layers(
            "--drop-layers", "Layers after which tokens are dropped.  [default: the method's own, else 4,7,10 of 12]"
        ),
    ] = None,
    schedule: Annotated[
        Path | None,
        options.path("--schedule", help="Counts and drop layers out of a file that `tune` wrote."),
    ] = None,
    weights: options.WeightsOption = "auto",
    img_size: options.ImageSizeOption = None,
    weights_img_size: Annotated[
        values.Size | None,
        options.image_size(
            "--weights-img-size", "Image size that the weights were trained at, where their file does not say."
        ),
    ] = None,
    num_classes: options.ClassesOption = None,
    graph: Annotated[
        str | None,
        options.option(
            values.OneOf("--graph", *ORDERINGS, said="graph {value} is unknown; there are: {words}"),
            help="Order once and slice, or a TopK and Gather per drop.  [default: the method's usual one]",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        options.whole("--batch-size", low=1, high=limits.MOST_IN_BATCH, help="Fix the batch size.  [default: dynamic]"),
    ] = None,
    last_block: Annotated[
        str | None,
        options.option(
            values.OneOf("--last-block", *LAST_BLOCKS, said="last block {value} is unknown; there are: {words}"),
            help="Compute prefix tokens alone in the last block, the same answers for less, or all tokens.  "
            "[default: prefix, where the head and the method read no others]",
        ),
    ] = None,
    with_life: Annotated[bool, typer.Option("--with-life", help="Second output: the life of every patch.")] = False,
    with_preprocess: Annotated[
        bool, typer.Option("--with-preprocess", help="Take uint8 NHWC pixels; normalise in the graph.")
    ] = False,
    parity: Annotated[bool, typer.Option("--parity/--no-parity", help="Check ONNX Runtime against PyTorch.")] = True,
    output: Annotated[
        Path | None,
        options.option(
            paths.Folder("--output", written=True),
            "-o",
            metavar="DIR",
            help="Folder to write.  [default: named after the model]",
        ),
    ] = None,
    workspace: options.WrittenWorkspaceOption = WORKSPACE,
    json: options.JsonOption = None,
) -> None:
    """Make a slimmed ViT and export it to ONNX, with its baseline, `dense`, and its bound, `first-k`.

    Weights `auto`: the checkpoint trained in this workspace, else timm's pretrained ones, else random ones (with a
    warning: good for measuring speed only).
    """
    if rho is not None and counts is not None:
        raise UsageError("--rho and --counts exclude each other: both set the schedule")
    tuned = options.tuned_schedule(schedule, {"--rho": rho, "--counts": counts, "--drop-layers": drop_layers})
    options.require_apart({"--json": json}, [weights, schedule])
    with console.working() as say:
        say("importing torch")
        from lifedeploy.exporters.onnx import GraphOptions
        from lifedeploy.model.weights import ModelRequest
        from lifedeploy.workflows.export import ExportRequest
        from lifedeploy.workflows.export import export as run

        request = ExportRequest(
            ModelRequest(
                backbone=backbone,
                keep_rate=rho,
                counts=tuned.counts if tuned else counts,
                drop_layers=tuned.drop_layers if tuned else drop_layers,
                tuned=tuned,
                method=method,
                options=method_options.given(),
                weights=weights,
                image_size=img_size,
                num_classes=num_classes,
                weights_image_size=weights_img_size,
            ),
            GraphOptions(
                ordering=graph or "",
                batch_size=batch_size,
                with_life=with_life,
                with_preprocess=with_preprocess,
                last_block=last_block or "",
            ),
            output,
            check_parity=parity,
        )
        report = run(request, Workspace(workspace), say)
    if report.warning:
        console.warn(report.warning, alarming=True)
    if report.unlike_tuned:
        console.warn(report.unlike_tuned)
    for note in report.notes:
        console.note(note)
    console.report(json, report.to_dict, lambda: exported(report))


def exported(report: ExportReport) -> RenderableType:
    """What ``export`` made."""
    headers = ("file", "tokens", "GMACs", "MAC\nbound", "over\ntimm's", "max rel.\nerror", "top-1", "kept\ntokens")
    table = tables.plain_table(*headers)
    for method, manifest in report.manifests.items():
        spec, macs = manifest.spec, manifest.macs
        role = methods.role_of(method)
        tokens = spec.schedule.patches if role == methods.BASELINE else tables.stages(spec)
        table.add_row(
            Text.assemble(f"{manifest.file}  ", (role, "dim")),
            str(tokens),
            tables.gmacs(macs.total / 1e9),
            f"{macs.speedup_bound:.2f}×",
            f"{macs.over_plain:.2f}×" if macs.over_plain else "–",
            *tables.evidence(manifest.parity),
        )
    return Group(table, Text(printable(f"wrote {report.folder}/"), style="green"))
