"""The picture of a comparison: speed against work and, where images are labelled, accuracy against speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from lifedeploy import methods
from lifedeploy.bench.choices import by_setting
from lifedeploy.bench.comparison import CompareReport
from lifedeploy.bench.report import Row, Setting, Subject
from lifedeploy.viz import choices
from lifedeploy.viz.style import as_text, colour, in_lines, new_figure, save, tidy, title

_ACROSS = 3  # panels side by side
_LETTERS_PER_INCH = 14  # of the smallest print
_LINE = 0.135  # inches that a line of a name takes beside its bar


def plot_comparison(report: CompareReport, path: Path) -> None:
    """A panel per engine and setting: img/s of every method, and what its work alone would give; then one per setting
    with top-1 against img/s.

    Raises:
        UsageError: a format that cannot be written.
    """
    speeds = _panels(report.rows)
    settings, engines = by_setting(report.bench.choices), {rows[0].subject.label for rows in speeds}
    columns = min(_ACROSS, max(len(speeds), len(settings)))
    lines = [-(-len(part) // columns) for part in (speeds, settings)]
    bar = max([0.27, *(_LINE * (_name(row.subject).count("\n") + 1.3) for rows in speeds for row in rows)])
    heights = [0.9 + bar * max(map(len, speeds), default=0)] * lines[0] + [3.4] * lines[1]
    width = 0.6 + 4.6 * columns  # inches
    figure = new_figure(path, width, 0.9 + sum(heights))
    grid = figure.add_gridspec(sum(lines), columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[divmod(number, columns)]) for number in range(len(speeds))]
    for axis, rows in zip(axes, speeds, strict=True):
        _draw_speeds(axis, rows)
        engine = f"{rows[0].subject.label}\n" if len(engines) > 1 else ""
        title(axis, f"{engine}batch {rows[0].setting.batch}, {_mode(rows[0].setting)}")
    below = [figure.add_subplot(grid[lines[0] + place // columns, place % columns]) for place in range(len(settings))]
    markers = choices.marked(report.bench.choices)
    for axis, picked in zip(below, settings, strict=True):
        choices.draw(axis, picked, markers)
        tidy(axis)
        title(axis, f"{report.backbone} · {_mode(picked[0].row.setting)}, batch {picked[0].row.setting.batch}")
    machine = report.bench.machine
    gpu = f", {', '.join(machine['gpu'])}" if machine.get("gpu") else ""
    images = f"; one standard error of {report.bench.choices[0].images} images (below)" if settings else ""
    baseline = methods.baseline().name
    said = (
        f"{report.backbone}, {' and '.join(sorted(engines))}, on {machine['cpu']}{gpu}, {machine['threads']} threads · "
        "interleaved rounds",
        f"whiskers: 95 % interval of the ratio to {baseline}{images} · black tick: as much faster than {baseline} as "
        "there is less to compute · G: billion multiply-accumulates an image",
    )
    lines_said = [line for sentence in said for line in wrap(sentence, round(_LETTERS_PER_INCH * width))]
    figure.suptitle("\n".join(lines_said), fontsize=8, color="#555555")
    with as_text(figure):
        figure.draw_without_rendering()  # lays it out
    figure.set_layout_engine("none")
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


def _mode(setting: Setting) -> str:
    moved = "" if setting.copies is None else ", with copies" if setting.copies else ", without copies"
    flight = f", {setting.streams} in flight" if setting.mode == "throughput" else ""
    return f"{setting.mode}{flight}{moved}"


def _draw_speeds(axis: Any, rows: Sequence[Row]) -> None:
    """A bar a model, the fastest on top, and a tick where its work alone would bring it."""
    ordered = sorted(rows, key=lambda row: _speed(row, rows)[0])
    base = next((row for row in rows if methods.role_of(row.subject.method) == methods.BASELINE), None)
    longest = 0.0
    for place, row in enumerate(ordered):
        middle, low, high = _speed(row, rows)
        bound = methods.role_of(row.subject.method) == methods.BOUND
        axis.barh(
            place,
            middle,
            height=0.66,
            color="white" if bound else colour(row.subject.method),
            edgecolor=colour(row.subject.method),
            alpha=0.85,
        )
        whisker = [[max(middle - low, 0)], [max(high - middle, 0)]]
        axis.errorbar(middle, place, xerr=whisker, color="#222222", elinewidth=1, capsize=2, zorder=3)
        allowed = _allowed(row, base)
        if allowed is not None:
            axis.plot([allowed, allowed], [place - 0.42, place + 0.42], color="#222222", linewidth=2, zorder=4)
        longest = max(longest, high, allowed or 0)
    for place, row in enumerate(ordered):
        beside = axis.get_yaxis_transform()  # x in shares of the panel's width, so that the layout keeps room for them
        axis.text(1.01, place, _figures(row), fontsize=7.5, va="center", transform=beside)
    axis.set_yticks(range(len(ordered)), [_name(row.subject) for row in ordered], fontsize=8)
    axis.set_xlim(0, 1.04 * longest)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("images/s", fontsize=8)
    axis.set_axisbelow(True)
    axis.grid(axis="x", color="#e6e6e6")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)


def _allowed(row: Row, base: Row | None) -> float | None:
    """Images per second of a model that is as fast as its work is less than the baseline's; None: nobody knows."""
    if base is None or base is row or not row.subject.gmacs or not base.subject.gmacs:
        return None
    return base.images_per_s * base.subject.gmacs / row.subject.gmacs


def _figures(row: Row) -> str:
    """The speed-up, and the work: ``1.37x · 3.13 G``."""
    baseline = methods.role_of(row.subject.method) == methods.BASELINE
    faster = "" if baseline or row.speedup is None else f"{row.speedup:.2f}×, "
    return f"{faster}{row.subject.gmacs:.3g} G"


def _name(subject: Subject) -> str:
    """What a bar is called: by its title where its method's name alone would promise more than there is."""
    row = methods.known(subject.method)
    if row is None or not row.shown_by_title:
        return in_lines(subject.shown)
    title_of_it = row.title.replace(", ", ",\n")
    return f"{in_lines(subject.name)}\n{title_of_it}" if subject.name else title_of_it
