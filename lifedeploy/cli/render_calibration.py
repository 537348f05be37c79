"""What ``calibrate`` made, as tables that fit eighty columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy import methods
from lifedeploy.calibration.report import LayerReport, MemberReport
from lifedeploy.cli.render import plain_table
from lifedeploy.text import printable
from lifedeploy.workflows.calibrate import PLOT, REPORT, CalibrateReport

_SHOWN = 5  # worst layers and images on the screen; all of them are in the report


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
        parts += [_title(f"{slimmed.method}: worst layers"), _layers(slimmed.layers)]
        parts += [_title(f"{slimmed.method}: worst images"), _images(slimmed)]
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


def _members(members: Mapping[str, MemberReport]) -> Table:
    table = plain_table("graph", "same\ntop-1 %", "kept\ntokens %", "top-1 %\nfloat → 8 bit", "logits\ndB", "MiB")
    for member in members.values():
        left = f"  {len(member.restored)} layers in float" if member.restored else ""
        table.add_row(
            Text.assemble(member.method, (left, "dim")),
            _percent(member.same_top1),
            _percent(member.overlap),
            "–" if member.accuracy is None else f"{_percent(member.accuracy_float)} → {_percent(member.accuracy)}",
            f"{member.logits_sqnr_db:.1f}",
            f"{member.size_float_mib:.0f} → {member.size_mib:.0f}",
        )
    return table


def _layers(layers: Sequence[LayerReport]) -> Table:
    table = plain_table("layer", "SQNR\ndB", "activation\ndB", "weight\ndB", "beyond the\nrange %", "scale")
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


def _images(member: MemberReport) -> Table:
    table = plain_table("image", "top-1\nfloat → 8 bit", "error of\nlogits %", "kept\ntokens %")
    for image in member.images[:_SHOWN]:
        changed = Text(f"{image.top1_float} → {image.top1}", style="bold") if image.changed else str(image.top1)
        table.add_row(printable(image.file[-40:]), changed, f"{image.error * 100:.1f}", _percent(image.overlap))
    return table


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f}"
