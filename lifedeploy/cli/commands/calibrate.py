"""``lifedeploy calibrate``: its options, the policy and what 8 bits cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.artifact import WORKSPACE, Workspace
from lifedeploy.cli import console, method_options, options, paths, tables, values
from lifedeploy.errors import UsageError
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.calibration.outcome import CalibrateReport
    from lifedeploy.calibration.report import GraphReport, LayerReport


_NO_DATA = "calibration needs images: --data DIR"
_RANGES = ("minmax", "percentile", "entropy")
_SHOWN = 5  # worst layers and images on the screen; all of them are in the report


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
            said="seed {value} is not allowed: it must be {low} to {high}",
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
            values.OneOf("--ranges", *_RANGES, said="ranges as {value} are unknown; there are: {words}"),
            help="How far activations reach.  [default: minmax]",
        ),
    ] = None,
    smoothing: Annotated[
        float,
        options.option(
            values.Real("--smoothing", 0, 1, "smoothing {value} is not allowed: it must be {interval}", below=True),
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
            values.Real("--max-drop", 0, 100, "a drop of {value} points is not allowed: it must be {interval}"),
            metavar="POINTS",
            help="Leave the worst layers in floating point until top-1 drops by at most this; else fail.",
        ),
    ] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight, not one per output channel.")
    ] = False,
    check_images: Annotated[int, options.images("--check-images", "Other images, to see what it costs.")] = 64,
    batch: Annotated[int, options.batch()] = 8,
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
    with console.watching(left=True) as (say, progress):
        say("looking at the model")
        from lifedeploy.calibration.policy import check_parts
        from lifedeploy.calibration.quantize import Recipe
        from lifedeploy.targets.find import export_of, quantized_precision
        from lifedeploy.workflows import calibrate as workflow

        place = Workspace(workspace)
        if method is not None:
            export = export_of(model, place, method=method)
            model = model or export.manifest_path
        asked = asked or quantized_precision(model) or "int8"
        chosen = tuple(part.strip() for part in (parts or "").split(",") if part.strip())
        if parts:
            check_parts(chosen)
        recipe = Recipe(
            precision=asked,
            ranges=ranges or _RANGES[0],
            parts=chosen,
            per_channel=not per_tensor,
            smoothing=smoothing,
            keep=tuple(keep or ()),
        )
        request = workflow.CalibrateRequest(
            model=model,
            data=data or "",
            recipe=recipe,
            split=split or "",
            images=images,
            check_images=check_images,
            seed=seed,
            batch=batch,
            max_drop=max_drop,
            force=force,
        )
        if show_policy:
            rows = workflow.show_policy(request, place)
        else:
            report = workflow.calibrate(request, place, say, progress)
            if plot is not None:
                from lifedeploy.viz.calibration import plot_calibration

                plot_calibration(report.members, plot, precision=asked)
    if show_policy:
        console.report(json, lambda: {"schema": 1, "policy": rows}, lambda: policy(rows, asked))
        return
    for warning in (*report.left_out, *report.warnings):
        console.warn(warning)
    console.report(json, report.to_dict, lambda: calibrated(report))
    if plot is not None:
        console.wrote(plot)


def policy(rows: Sequence[Mapping[str, Any]], precision: str) -> RenderableType:
    """Which products are quantised, and why."""
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    counted = any(row["count"] is not None for row in rows)
    for header in ("part", "precision", *(("products",) if counted else ()), "which, and why"):
        table.add_column(header, justify="right" if header == "products" else "left", overflow="fold")
    for row in rows:
        number = (str(row["count"]),) if counted else ()
        style = "bold" if row["precision"] != "float" else ""
        table.add_row(
            Text(row["part"], style=style),
            Text(row["precision"], style=style),
            *number,
            Text.assemble(row["products"], (f"\n{row['reason']}", "dim")),
        )
    rest = "Everything else (norms, softmax, GELU, residuals, TopK, Gather) stays in floating point."
    return Group(table, Text(""), Text(f"{rest} Parts of {precision}: --parts", style="dim"))


def calibrated(report: CalibrateReport) -> RenderableType:
    """What it cost: graphs, then the worst layers and images of the slimmed model."""
    from lifedeploy.calibration.outcome import PLOT, REPORT

    settings = report.settings
    verb = "reused: nothing changed since it was calibrated" if report.reused else "calibrated"
    channels = "per channel" if settings["per_channel"] else "per tensor"
    smoothed = f", smoothing {settings['smoothing']:g}" if settings["smoothing"] else ""
    headline = Text.assemble(
        (settings["precision"].upper(), "bold"), f" · {settings['method']}, weights {channels}{smoothed} · {verb}"
    )
    parts: list[RenderableType] = [headline, _members(report.members)]
    members = report.members.values()
    slimmed = next((member for member in members if methods.role_of(member.method) == methods.SLIMMED), None)
    if slimmed is not None:
        parts += [tables.heading(f"{slimmed.method}: worst layers"), _layers(slimmed.layers)]
        parts += [tables.heading(f"{slimmed.method}: worst images"), _images(slimmed)]
    data = settings["data"]
    known = " Statistics were known from an earlier run." if report.cached and not report.reused else ""
    apart = "others" if data["check_apart"] else "of the same"
    note = (
        f"{data['images']} of {data['of']} images of {data['source']}, seed {data['seed']}, SHA-256 "
        f"{data['sha256'][:12]}…; checked on {data['check_images']} {apart}.{known} All of it: {REPORT}, {PLOT}."
    )
    return Group(
        *parts, Text(""), Text(printable(note), style="dim"), Text(printable(f"in {report.folder}/"), style="green")
    )


def _members(members: Mapping[str, GraphReport]) -> Table:
    table = tables.plain_table(
        "graph", "same\ntop-1 %", "kept\ntokens %", "top-1 %\nfloat → 8 bit", "logits\ndB", "MiB"
    )
    for member in members.values():
        left = f"  {len(member.restored)} layers in float" if member.restored else ""
        table.add_row(
            Text.assemble(member.method, (left, "dim")),
            tables.percent(member.same_top1),
            tables.percent(member.overlap),
            "–"
            if member.accuracy is None
            else f"{tables.percent(member.accuracy_float)} → {tables.percent(member.accuracy)}",
            f"{member.logits_sqnr_db:.1f}",
            f"{member.size_float_mib:.0f} → {member.size_mib:.0f}",
        )
    return table


def _layers(layers: Sequence[LayerReport]) -> Table:
    table = tables.plain_table("layer", "SQNR\ndB", "activation\ndB", "weight\ndB", "beyond the\nrange %", "scale")
    for layer in [layer for layer in layers if layer.quantized][:_SHOWN]:
        activations = [tensor for tensor in layer.tensors if tensor.kind == "activation"]
        weights = [tensor for tensor in layer.tensors if tensor.kind == "weight"]
        worst = min(activations, key=lambda tensor: tensor.sqnr_db)
        table.add_row(
            printable(layer.name),
            f"{layer.sqnr_db:.1f}",
            f"{worst.sqnr_db:.1f}",
            f"{weights[0].sqnr_db:.1f}" if weights else "–",
            f"{worst.saturated * 100:.2g}",
            f"{worst.scale:.3g}",
        )
    return table


def _images(member: GraphReport) -> Table:
    table = tables.plain_table("image", "top-1\nfloat → 8 bit", "error of\nlogits %", "kept\ntokens %")
    for image in member.per_image[:_SHOWN]:
        changed = Text(f"{image.top1_float} → {image.top1}", style="bold") if image.changed else str(image.top1)
        table.add_row(printable(image.file[-40:]), changed, f"{image.error * 100:.1f}", tables.percent(image.overlap))
    return table
