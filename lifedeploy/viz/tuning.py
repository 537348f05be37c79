"""Plots of tuning: the staircase of an engine, and every schedule's latency against what it is expected to lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.tuning.report import Point, TuneReport
from lifedeploy.viz.style import colour, new_figure, save, tidy, title

_CHOSEN = "#c2571a"


def plot_tuning(report: TuneReport, path: Path) -> None:
    """The staircase on the left, the front on the right.

    Raises:
        UsageError: a format that cannot be written.
    """
    figure = new_figure(path, 12.0, 4.6)
    stairs, front = figure.subplots(1, 2)
    _stairs(stairs, report)
    _front(front, report)
    setting, machine = report.tuned.tuned_for, report.machine
    figure.suptitle(
        f"{setting.processor}, {machine['threads']} threads · {setting.label} · {report.created[:10]}",
        fontsize=8,
        color="#555555",
    )
    save(figure, path)


def _stairs(axis: Any, report: TuneReport) -> None:
    """Time over tokens: what was measured with its intervals, the fit, and the counts that schedules are made of."""
    usual = colour(methods.DEFAULT)
    counts = list(report.fitted)
    axis.plot(counts, [100 * report.fitted[count] for count in counts], color=usual, linewidth=1.2, zorder=2)
    tokens = list(report.probes)
    probes = list(report.probes.values())
    spread = [[100 * (it.time - it.low) for it in probes], [100 * (it.high - it.time) for it in probes]]
    middle = [100 * it.time for it in probes]
    axis.errorbar(tokens, middle, yerr=spread, fmt=".", color="#555555", elinewidth=0.8, zorder=1, label="measured")
    edges = [100 * report.fitted[count] for count in report.edges]
    axis.plot(report.edges, edges, "o", markersize=5, color=_CHOSEN, zorder=3, label="schedules choose among these")
    low, high = min(counts), max(counts)
    line = [100 * report.fitted[low], 100 * report.fitted[high]]
    axis.plot([low, high], line, "--", linewidth=0.8, color="#999999", label="evenly")
    axis.set_xlabel("patch tokens in every layer", fontsize=8)
    axis.set_ylabel("% of the dense model's time", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    tidy(axis)
    setting = report.tuned.tuned_for
    title(axis, f"{report.model}\n{setting.engine} {setting.precision}, {setting.mode}, batch {setting.batch}")


def _front(axis: Any, report: TuneReport) -> None:
    """Latency against loss: the front as a line, what was verified as points with their intervals."""
    usual = colour(methods.DEFAULT)
    times = [point.time * report.dense_ms for point in report.front]
    losses = [point.loss for point in report.front]
    axis.step(times, losses, where="post", color=usual, linewidth=1.2, label="the front, expected")
    for point in report.verified:
        _measured(axis, point, report, usual, "o", "verified" if point is report.verified[0] else "")
    _measured(axis, report.before, report, "#333333", "s", "the model's schedule now")
    if report.improves:
        _measured(axis, report.chosen, report, _CHOSEN, "*", "chosen")
    axis.axvline(report.dense_ms, color=colour(methods.baseline().name), linewidth=1)
    axis.annotate(
        methods.baseline().name,
        (report.dense_ms, 1),
        xycoords=("data", "axes fraction"),
        fontsize=7,
        ha="right",
        va="top",
    )
    axis.set_xlabel("ms of a request", fontsize=8)
    axis.set_ylabel(report.loss_is, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)
    tidy(axis)
    title(axis, f"{report.schedules:,} schedules\n{report.goal}")


def _measured(axis: Any, point: Point, report: TuneReport, shade: str, mark: str, label: str) -> None:
    ratio = point.measured
    if ratio is None:
        return
    middle = report.dense_ms / ratio.median
    spread = [[max(middle - report.dense_ms / ratio.high, 0)], [max(report.dense_ms / ratio.low - middle, 0)]]
    size = 11 if mark == "*" else 5
    axis.errorbar(
        middle,
        point.loss,
        xerr=spread,
        fmt=mark,
        markersize=size,
        color=shade,
        elinewidth=1,
        capsize=2,
        label=label or None,
    )
