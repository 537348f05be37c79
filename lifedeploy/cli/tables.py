"""What tables of several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lifedeploy.text import chained, printable

if TYPE_CHECKING:
    from lifedeploy.records import ParityRecord
    from lifedeploy.spec import ModelSpec


def plain_table(*headers: str, title: str | None = None, text_columns: int = 1, width: int | None = None) -> Table:
    """A table of numbers; its first ``text_columns`` columns are text. Made to fit eighty columns.

    With ``width``, the last column of text takes that at most, and longer names go on in the next line.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index < text_columns else "right", no_wrap=True)
    if width is not None:
        names = table.columns[text_columns - 1]
        names.no_wrap, names.overflow, names.max_width = False, "fold", width
    return table


def facts(pairs: dict[str, str], title: str | None = None) -> Table:
    """A table of names and what they are."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in pairs.items():
        table.add_row(name, printable(value))
    return table


def stages(spec: ModelSpec) -> str:
    """Patch tokens from drop to drop: ``196→137→96→67``."""
    return chained(spec.stages)


def evidence(parity: ParityRecord | None) -> tuple[str, str, str]:
    """Largest relative error, share of the same top-1, share of the same kept tokens."""
    if parity is None:
        return "not checked", "", ""
    overlap = parity.overlap
    return f"{parity.max_rel:.1e}", f"{parity.top1:.0%}", "–" if overlap is None else f"{overlap:.1%}"


def heading(text: str) -> Text:
    """A line over a table, which rich would wrap to the width of its table as a title."""
    return Text(f"\n{text}", style="bold")


def gmacs(value: float) -> str:
    """Billions of multiply-accumulates, of a tiny model too."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """A share as a number of percent."""
    return "–" if share is None else f"{share * 100:.1f}"


def significant(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
