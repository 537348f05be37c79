"""The picture of a comparison: speed against work and, where images are labelled, accuracy against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy import methods
from lifedeploy.bench.choices import by_setting
from lifedeploy.bench.comparison import CompareReport
from lifedeploy.bench.report import Row, Setting
from lifedeploy.viz import choices
from lifedeploy.viz.labels import Named, place
from lifedeploy.viz.style import as_text, colour, new_figure, save, tidy, title

_ACROSS = 3  # panels side by side


def plot_comparison(report: CompareReport, path: Path) -> None:
    """A panel per engine and setting: img/s against GMACs, with the line on which all are as efficient as dense; then
    one per setting with top-1 against img/s.

    Raises:
        UsageError: a format that cannot be written.
    """
    speeds = _panels(report.rows)
    settings = by_setting(report.bench.choices)
    columns = min(_ACROSS, max(len(speeds), len(settings)))
    lines = [-(-len(part) // columns) for part in (speeds, settings)]
    figure = new_figure(path, 1.2 + 3.6 * columns, 0.9 + 3.4 * sum(lines))
    grid = figure.add_gridspec(sum(lines), columns)
    axes = [figure.add_subplot(grid[divmod(number, columns)]) for number in range(len(speeds))]
    for axis, rows in zip(axes, speeds, strict=True):
        _draw_speeds(axis, rows)
        title(axis, f"{rows[0].subject.label} · {_setting(rows[0].setting)}")
    below = [figure.add_subplot(grid[lines[0] + place // columns, place % columns]) for place in range(len(settings))]
    markers = choices.marked(report.bench.choices)
    for axis, picked in zip(below, settings, strict=True):
        choices.draw(axis, picked, markers)
        tidy(axis)
        title(axis, f"{report.backbone} · {_setting(picked[0].row.setting)}")
    machine = report.bench.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine.get("gpu") else ""
    images = f"; one standard error of {report.bench.choices[0].images} images (below)" if settings else ""
    baseline = methods.baseline().name
    figure.suptitle(
        f"{report.backbone} on {machine['cpu']}{gpu}, {machine['threads']} threads · interleaved rounds\n"
        f"whiskers: 95 % interval of the ratio to {baseline}{images} · dashed: as efficient as {baseline}",
        fontsize=8,
        color="#555555",
    )
    with as_text(figure):
        figure.draw_without_rendering()  # lays it out
    figure.set_layout_engine("none")
    for axis, rows in zip(axes, speeds, strict=True):
        place(axis, [_named(row, rows) for row in rows], _equal_efficiency(axis, rows))
    several = len({choice.row.subject.label for choice in report.bench.choices}) > 1
    for axis, picked in zip(below, settings, strict=True):
        choices.label(axis, picked, engines=several)
    save(figure, path)


def _speed(row: Row, rows: Sequence[Row]) -> tuple[float, float, float]:
    """Images per second with the ends of its whisker: the baseline's times the ratio to it, which was measured round by
    round; where there is no baseline, its own with quartiles."""
    base = next((other for other in rows if methods.role_of(other.subject.method) == methods.BASELINE), None)
    if base is None or row.speedup is None or row.speedup_low is None or row.speedup_high is None:
        return row.images_per_s, *row.images_per_s_quartiles
    of_base = base.images_per_s
    return of_base * row.speedup, of_base * row.speedup_low, of_base * row.speedup_high


def _panels(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each engine in each setting of which the work is known."""
    panels: dict[tuple[str, Setting], list[Row]] = {}
    for row in rows:
        if row.subject.gmacs is not None:
            panels.setdefault((row.subject.label, row.setting), []).append(row)
    return list(panels.values())


def _setting(setting: Setting) -> str:
    moved = "" if setting.copies is None else ", with copies" if setting.copies else ", without copies"
    flight = f", {setting.streams} in flight" if setting.mode == "throughput" else ""
    return f"{setting.mode}{flight}{moved} · batch {setting.batch}"


def _draw_speeds(axis: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        middle, low, high = _speed(row, rows)
        bound = methods.role_of(row.subject.method) == methods.BOUND
        axis.errorbar(
            row.subject.gmacs,
            middle,
            yerr=[[max(middle - low, 0)], [max(high - middle, 0)]],
            fmt="D" if bound else "o",
            markersize=5,
            capsize=3,
            elinewidth=1,
            color=colour(row.subject.method),
            markerfacecolor="white" if bound else None,
            zorder=3,
        )
    axis.margins(x=0.15, y=0.15)  # room for names
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("GMACs an image", fontsize=9)
    axis.set_ylabel("images/s")
    line = _equal_efficiency(axis, rows)
    if line:
        limits = axis.get_xlim(), axis.get_ylim()
        axis.plot(*zip(*line, strict=True), color="#333333", linewidth=1, linestyle="--", zorder=2)
        axis.set_xlim(limits[0])
        axis.set_ylim(limits[1])
    tidy(axis)
    axis.grid(axis="x", color="#f0f0f0")


def _equal_efficiency(axis: Any, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Speeds as far above the baseline's as the work is below it; none where it took no part."""
    for row in rows:
        if methods.role_of(row.subject.method) == methods.BASELINE and row.subject.gmacs:
            product = row.images_per_s * row.subject.gmacs
            low, high = axis.get_xlim()
            return [(x, product / x) for x in np.linspace(max(low, high / 100), high, 60)]
    return []


def _named(row: Row, rows: Sequence[Row]) -> Named:
    middle, low, high = _speed(row, rows)
    assert row.subject.gmacs is not None
    return Named(
        x=row.subject.gmacs,
        y=middle,
        low=low,
        high=high,
        text=_name(row.subject.method),
        colour=colour(row.subject.method),
    )


def _name(method: str) -> str:
    """What a point is called: by its title where the name alone would promise more than there is."""
    title = methods.title_of(method)
    return title if "," in title else method
