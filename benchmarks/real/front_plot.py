"""The picture of ``FRONT.md``: average precision in the engine against measured speed, a panel for each engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from lifedeploy import methods
from lifedeploy.viz import labels
from lifedeploy.viz.style import colour, new_figure, save, tidy, title

_SHOWN = 2.0  # points below dense; what is further down is named below the panel
_LINE = 80  # characters there

_Points = list[tuple[float, float]]  # images/s and %


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the contest of ``record``; a line goes through the keep rates of a method, rings and dashes are the front.

    Args:
        record: speeds (engine → model → images/s), precisions (engine → model → %), front (engine → models), methods
            (model → method).
        path: a picture.
    """
    engines = sorted(record["speeds"])
    figure = new_figure(path, 5.2 * len(engines), 5.4)
    figure.suptitle(
        f"DINOv2 ViT-S/14 at {record['image_size']} pixels, solar cells, {record['machine']['cpu']}, "
        f"batch {record['batch']}",
        fontsize=8,
        color="#555555",
    )
    axes = figure.subplots(1, len(engines), squeeze=False, sharey=True)[0]
    drawn = [_draw(axis, engine, record) for axis, engine in zip(axes, engines, strict=True)]
    figure.draw_without_rendering()  # names are placed where the layout is known
    for axis, (named, lines) in zip(axes, drawn, strict=True):
        labels.place(axis, named, lines)
    save(figure, path)


def _draw(axis: Any, engine: str, record: Mapping[str, Any]) -> tuple[list[labels.Named], list[_Points]]:
    """A panel, without names; what is to be named in it, and its lines: of each method, and the front."""
    speeds, precisions, of = record["speeds"][engine], record["precisions"][engine], record["methods"]
    base = precisions[methods.baseline().name]
    shown = {name: (speeds[name], precisions[name]) for name in precisions if precisions[name] >= base - _SHOWN}
    lines: list[_Points] = []
    for method in dict.fromkeys(of[name] for name in shown):
        points = sorted(point for name, point in shown.items() if of[name] == method)
        lines.append(points)
        axis.plot(*zip(*points, strict=True), "o-", color=colour(method), markersize=5, linewidth=1.2, zorder=3)
    front = sorted(shown[name] for name in record["front"][engine] if name in shown)
    axis.plot(*zip(*front, strict=True), "--", color="#222222", linewidth=0.8, zorder=2)
    axis.plot(*zip(*front, strict=True), "o", markersize=9, markerfacecolor="none", color="#222222", zorder=4)
    axis.axhline(base, color="#8c8c8c", linewidth=0.8, linestyle=":", zorder=1)
    tidy(axis)
    title(axis, engine)
    axis.margins(x=0.14)
    axis.set_ylabel("mean average precision, %", fontsize=8)
    below = [f"{name} {precisions[name]:.1f} at {speeds[name]:.0f}" for name in sorted(precisions.keys() - shown)]
    note = fill(f"further down: {', '.join(below)}", _LINE) if below else ""
    axis.set_xlabel(f"images/s\n{note}".rstrip(), fontsize=8)
    named = [
        labels.Named(x=speed, y=precision, low=precision, high=precision, text=name, colour=colour(of[name]))
        for name, (speed, precision) in shown.items()
    ]
    return named, [*lines, front]
