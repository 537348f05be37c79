"""The log of a run: a CSV file that a resumed run continues, and TensorBoard if wanted."""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from lifedeploy.files import atomic_file
from lifedeploy.optional import require

FILE = "log.csv"


@dataclass(frozen=True)
class LogRow:
    """One line: means since the last line of ``train``, or a validation (``val``) at the end of an epoch."""

    kind: str
    stage: str
    epoch: int  # over the whole run, from 1
    step: int  # over the whole run
    lr: float  # the largest of all parameter groups
    loss: float
    accuracy: float  # share of right answers
    images_per_s: float


class Log:
    """Rows in memory and on disk."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, keep: int = 0) -> None:
        """Start a log, or continue one after its first ``keep`` rows."""
        self.path = folder / FILE
        self.rows = read_log(self.path)[:keep] if keep else []
        with atomic_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(field.name for field in fields(LogRow))
            rows.writerows(map(astuple, self.rows))
        self._board: Any = None
        if tensorboard:
            require("tensorboard", extra="tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run takes back what it is about to write again.
            purge = self.rows[-1].step + 1 if self.rows else 0
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def add(self, row: LogRow) -> None:
        """Append one row; it is on disk when this returns."""
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(astuple(row))
        if self._board is not None:
            for name in ("loss", "accuracy", "lr", "images_per_s"):
                self._board.add_scalar(f"{row.kind}/{name}", getattr(row, name), row.step)

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[LogRow]:
    """All rows of a log; a last line that was cut off is left out."""
    kinds = (str, str, int, int, float, float, float, float)
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in list(csv.reader(file))[1:]:
            if len(line) == len(kinds):
                rows.append(LogRow(*(kind(value) for kind, value in zip(kinds, line, strict=True))))
    return rows
