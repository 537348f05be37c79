"""What 8 bits cost, drawn: layers along the depth of the network, and images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.calibration.report import GraphReport, LayerReport
from lifedeploy.viz.style import new_figure, save, tidy, title

_COLOURS = ("#1b6ca8", "#c2571a", "#4f9d69", "#8c6bb1", "#8c8c8c", "#d4a017")
_SAME, _CHANGED = "#1b6ca8", "#c2571a"


def plot_calibration(members: Mapping[str, GraphReport], path: Path, *, precision: str) -> None:
    """A row per graph: SQNR of its layers by depth, and error and kept-token overlap of the images.

    Raises:
        UsageError: a format that cannot be written.
    """
    drawn = [member for method, member in members.items() if methods.role_of(method) != methods.BOUND]
    figure = new_figure(path, 10.5, 3.2 * len(drawn) + 0.6)
    axes: Any = figure.subplots(len(drawn), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), member in zip(axes, drawn, strict=True):
        _layers(left, member.layers)
        title(left, f"{member.method} · {precision}: layers")
        _images(right, member)
        title(right, "images")
    figure.suptitle(
        "SQNR: signal over quantisation noise of a layer's factors; hollow: left in floating point",
        fontsize=8,
        color="#555555",
    )
    save(figure, path)


def _layers(axis: Any, layers: Sequence[LayerReport]) -> None:
    kinds: dict[str, list[tuple[int, LayerReport]]] = {}
    for layer in layers:
        depth, kind = _place(layer)
        kinds.setdefault(kind, []).append((depth, layer))
    head = 1 + max((depth for placed in kinds.values() for depth, _ in placed), default=0)
    if "head" in kinds:
        kinds["head"] = [(head, layer) for _, layer in kinds["head"]]
    floor = min((layer.sqnr_db for layer in layers if layer.sqnr_db is not None), default=0.0)
    for colour, (kind, placed) in zip(_COLOURS * len(kinds), sorted(kinds.items()), strict=False):
        placed.sort(key=lambda item: item[0])
        quantized = [(depth, layer.sqnr_db) for depth, layer in placed if layer.sqnr_db is not None]
        depths, ratios = zip(*quantized, strict=True) if quantized else ((), ())
        axis.plot(depths, ratios, "o-", markersize=4, linewidth=1, color=colour, label=kind)
        left = [depth for depth, layer in placed if layer.sqnr_db is None]
        axis.plot(left, [floor] * len(left), "o", markersize=6, markerfacecolor="none", color=colour)
    axis.set_xlabel("layer")
    axis.set_ylabel("SQNR, dB")
    axis.legend(fontsize=7, frameon=False, ncols=3)
    tidy(axis)


def _place(layer: LayerReport) -> tuple[int, str]:
    """Layer (from 1) and kind of a product, by its name: blocks.3.mlp.fc1/MatMul → 4, fc1. Others: 0, their part."""
    match = re.match(r"blocks\.(\d+)\.(.+)/", layer.name)
    if match is None:
        return 0, layer.part
    kind = match[2].rpartition(".")[2]
    kinds = {"attn": "P·V" if layer.name.endswith("_1") else "Q·Kᵀ"}
    return int(match[1]) + 1, kinds.get(kind, kind)


def _images(axis: Any, member: GraphReport) -> None:
    errors = [image.error * 100 for image in member.per_image]
    colours = [_CHANGED if image.changed else _SAME for image in member.per_image]
    if member.overlap is None:
        order = sorted(range(len(errors)), key=lambda index: errors[index])
        axis.scatter(range(len(errors)), [errors[i] for i in order], s=12, c=[colours[i] for i in order])
        axis.set_xlabel("image, best first")
        axis.set_ylabel("error of the logits, %")
    else:
        axis.scatter(errors, [(image.overlap or 0) * 100 for image in member.per_image], s=12, c=colours, alpha=0.7)
        axis.set_xlabel("error of the logits, % of the largest")
        axis.set_ylabel("same kept tokens, %")
    changed = sum(image.changed for image in member.per_image)
    axis.annotate(
        f"{changed} of {len(errors)} answers changed",
        (0.98, 0.03),
        xycoords="axes fraction",
        ha="right",
        fontsize=8,
        color=_CHANGED if changed else _SAME,
    )
    tidy(axis)
