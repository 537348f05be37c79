"""``lifedeploy verify``: two models, and how far apart they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifedeploy.cli import console, options, paths, tables
from lifedeploy.text import printable

if TYPE_CHECKING:
    from lifedeploy.records import ParityRecord
    from lifedeploy.workflows.verify import VerifyReport


def verify(
    first: Annotated[Path, options.argument("A", "The reference: a checkpoint, ONNX file or engine.")],
    second: Annotated[
        str,
        options.argument(
            "B", "What is held against it: another one, or a served model: http://HOST:PORT/MODEL.", paths.Place
        ),
    ],
    json: options.JsonOption = None,
) -> None:
    """Compare any two of checkpoint, ONNX file, engine and served model on the same images.

    Of an ensemble that takes image files its preprocessing is held against ours too.
    """
    options.require_apart({"--json": json}, [first, second])
    with console.working() as say:
        from lifedeploy.workflows.verify import VerifyRequest
        from lifedeploy.workflows.verify import verify as run

        report = run(VerifyRequest(first, second), say)
    console.report(json, report.to_dict, lambda: verified(report))
    report.parity.require(report.second, report.first)


def verified(report: VerifyReport) -> RenderableType:
    """What ``verify`` compared."""
    return Group(
        Text.assemble("reference ", (printable(report.first), "bold")),
        Text.assemble("against   ", (printable(report.second), "bold")),
        _cases(report.parity),
        Text(f"within the tolerance of {(report.parity.precision or '').upper()}:", style="dim"),
        Text("same" if report.parity.passed else "not the same", style="green" if report.parity.passed else "bold red"),
    )


def _cases(parity: ParityRecord) -> Table:
    table = tables.plain_table("input", "batch", "max abs", "max rel", "top-1", "kept tokens")
    for case in parity.cases:
        overlap = "–" if case.overlap is None else f"{case.overlap:.1%}"
        table.add_row(
            case.kind, str(case.batch), f"{case.max_abs:.1e}", f"{case.max_rel:.1e}", f"{case.top1:.0%}", overlap
        )
    return table
