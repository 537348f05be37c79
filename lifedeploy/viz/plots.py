"""Plots of benchmark reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.bench.choices import by_setting
from lifedeploy.bench.report import BenchReport, Row
from lifedeploy.viz.choices import draw, label, marked
from lifedeploy.viz.style import as_text, colour, new_figure, save, tidy, title


def plot_bench(report: BenchReport, path: Path) -> None:
    """Throughput and speed-up by batch size, one row of axes per engine and mode; accuracy against speed below them.

    Raises:
        UsageError: a format that cannot be written.
    """
    contests: dict[tuple[str, str, str, bool | None], list[Row]] = {}
    for row in report.rows:
        key = row.subject.model, row.subject.label, row.setting.mode, row.setting.copies
        contests.setdefault(key, []).append(row)
    settings = by_setting(report.choices)
    heights = [3.1] * len(contests) + [4.2] * len(settings)
    figure = new_figure(path, 10.5, sum(heights) + 1.0)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    axes = [[figure.add_subplot(grid[row, column]) for column in (0, 1)] for row in range(len(contests))]
    for (left, right), ((model, engine, mode, copies), rows) in zip(axes, contests.items(), strict=True):
        _throughput(left, rows)
        _speedup(right, rows)
        title(left, f"{model} · {engine} · {mode}{_moved(copies)}")
    panels = [figure.add_subplot(grid[len(contests) + row, :]) for row in range(len(settings))]
    markers = marked(report.choices)
    for panel, choices in zip(panels, settings, strict=True):
        row = choices[0].row
        copies = next((choice.row.setting.copies for choice in choices if choice.row.setting.copies is not None), None)
        draw(panel, choices, markers)
        tidy(panel)
        title(panel, f"{row.subject.model} · {row.setting.mode} · batch {row.setting.batch}{_moved(copies)}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=8, frameon=False)
    machine = report.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine.get("gpu") else ""
    figure.suptitle(
        f"{machine['cpu']}{gpu}, {machine['threads']} threads · interleaved rounds · whiskers: quartiles (left), "
        "95 % interval of the median ratio (right)" + (_below(report) if settings else ""),
        fontsize=8,
        color="#555555",
    )
    if settings:
        with as_text(figure):
            figure.draw_without_rendering()  # lays it out
        figure.set_layout_engine("none")
        for panel, choices in zip(panels, settings, strict=True):
            label(panel, choices)
    save(figure, path)


def _moved(copies: bool | None) -> str:
    return "" if copies is None else " · with copies" if copies else " · without copies"


def _below(report: BenchReport) -> str:
    images = f"{report.choices[0].images} images of {report.images['source']}" if report.images else "labelled images"
    return f",\none standard error of {images} (below); dashed: nothing is both faster and as accurate"


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.subject.method for row in rows))


def _throughput(axis: Any, rows: Sequence[Row]) -> None:
    """Bars: images per second."""
    batches = list(dict.fromkeys(row.setting.batch for row in rows))
    methods = _methods(rows)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        of_method = {row.setting.batch: row for row in rows if row.subject.method == method}
        places = [batches.index(batch) + (index - (len(methods) - 1) / 2) * width for batch in of_method]
        heights = [row.images_per_s for row in of_method.values()]
        spread = [
            [row.images_per_s - row.images_per_s_quartiles[0] for row in of_method.values()],
            [row.images_per_s_quartiles[1] - row.images_per_s for row in of_method.values()],
        ]
        bars = axis.bar(
            places, heights, width * 0.92, yerr=spread, label=method, color=colour(method), ecolor="#333333"
        )
        axis.bar_label(bars, fmt=lambda rate: f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}", fontsize=7, padding=2)
    axis.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axis.set_ylabel("images/s")
    axis.margins(y=0.15)
    tidy(axis)


def _speedup(axis: Any, rows: Sequence[Row]) -> None:
    """Points with their interval, against the bound that the MACs set."""
    batches = list(dict.fromkeys(row.setting.batch for row in rows))
    slimmed = [method for method in _methods(rows) if methods.role_of(method) != methods.BASELINE]
    shift = 0.1
    for index, method in enumerate(slimmed):
        of_method = [row for row in rows if row.subject.method == method and row.speedup is not None]
        if not of_method:
            continue
        places = [batches.index(row.setting.batch) + (index - (len(slimmed) - 1) / 2) * shift for row in of_method]
        middle = [row.speedup or 0 for row in of_method]
        below = [(row.speedup or 0) - (row.speedup_low or 0) for row in of_method]
        above = [(row.speedup_high or 0) - (row.speedup or 0) for row in of_method]
        axis.errorbar(places, middle, yerr=[below, above], fmt="o", capsize=4, color=colour(method), label=method)
        # Labels on the outer sides, so that neighbours do not cover each other.
        offset, align = (-9, "right") if index == 0 and len(slimmed) > 1 else (9, "left")
        for x, y in zip(places, middle, strict=True):
            axis.annotate(
                f"{y:.2f}×",
                (x, y),
                textcoords="offset points",
                xytext=(offset, -3),
                ha=align,
                fontsize=8,
                color=colour(method),
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
    slim = (row.subject for row in rows if methods.role_of(row.subject.method) == methods.SLIMMED)
    bounds = {subject.mac_ratio for subject in slim if subject.mac_ratio}
    for bound in bounds:
        axis.axhline(bound, linestyle="--", linewidth=1, color="#333333")
        axis.annotate(
            f"MAC bound\n{bound:.2f}×",
            (1, bound),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            ha="left",
            va="center",
            xytext=(4, 0),
            textcoords="offset points",
        )
    axis.axhline(1, linewidth=1, color=colour(methods.baseline().name))
    top = max([*bounds, *(row.speedup_high or 0 for row in rows), 1.0])
    axis.set_ylim(0.9, top * 1.08)
    axis.set_xlim(-0.5, len(batches) - 0.5)
    axis.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axis.set_ylabel("speed-up over dense")
    tidy(axis)
