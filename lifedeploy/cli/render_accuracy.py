"""How accuracies look on a terminal of eighty columns."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.evaluation.accuracy import Accuracy
from lifedeploy.workflows.evaluate import EvaluateReport

MAX_CONFUSION = 20


def evaluated(report: EvaluateReport, *, per_class: bool, confusion: bool) -> RenderableType:
    """All models, then their pairs, then what else was asked for. Models are numbered: their paths are long."""
    parts: list[RenderableType] = [_models(report)]
    names = [f"{number}: {model.label}" for number, model in enumerate(report.models, start=1)]
    parts.append(Text("\n".join(names), style="dim", overflow="fold"))
    if report.pairs:
        parts += [Text(), _pairs(report)]
    for number, model in enumerate(report.models, start=1):
        if per_class:
            parts += [Text(f"\nmodel {number}, every class"), _classes(model.accuracy)]
        if confusion:
            parts += [Text(f"\nmodel {number}, rows: true class, columns: answer"), _confusion(model.accuracy)]
    data = report.data
    skipped = f", {len(report.skipped)} broken ones left out" if report.skipped else ""
    processes = f", {report.processes} processes" if report.processes > 1 else ""
    parts.append(
        Text(
            f"\n{data['evaluated']} of {data['images']} images of {data['source']}{skipped}{processes}; "
            f"{report.machine['cpu']}. img/s is inference alone, not a benchmark: lifedeploy bench measures."
        )
    )
    return Group(*parts)


def _models(report: EvaluateReport) -> Table:
    table = _table("", "method", "engine", "top-1 %", "top-5 %", "loss", "AP %", "img/s")
    for number, model in enumerate(report.models, start=1):
        accuracy = model.accuracy
        top1 = f"{accuracy.top1 * 100:.2f} ±{accuracy.top1_standard_error * 100:.2f}"
        table.add_row(
            str(number),
            model.method,
            f"{model.engine} {model.precision}",
            top1,
            _percent(accuracy.top5),
            f"{accuracy.loss:.4f}",
            _percent(accuracy.average_precision),
            f"{model.images_per_s:.4g}",
        )
    return table


def _pairs(report: EvaluateReport) -> Table:
    numbers = {model.label: str(number) for number, model in enumerate(report.models, start=1)}
    table = _table("pair", "same answer %", "kept tokens in common %")
    for pair in report.pairs:
        name = f"{numbers[pair['first']]} and {numbers[pair['second']]}"
        table.add_row(name, _percent(pair["agreement"]), _percent(pair["overlap"]))
    return table


def _classes(accuracy: Accuracy) -> Table:
    table = _table("class", "images", "recall %", "precision %", "AP %")
    for one in accuracy.classes:
        if one.images:
            shares = (one.recall, one.precision, one.average_precision)
            table.add_row(one.name, str(one.images), *map(_percent, shares))
    return table


def _confusion(accuracy: Accuracy) -> RenderableType:
    if len(accuracy.classes) > MAX_CONFUSION:
        return Text(f"{len(accuracy.classes)} classes are too many to show; the JSON has them all")
    table = _table("", *(one.name for one in accuracy.classes))
    for one, row in zip(accuracy.classes, accuracy.confusion, strict=True):
        table.add_row(one.name, *map(str, row))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        left = heading in ("method", "engine", "class", "pair", "")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.2f}"
