"""The log of a run: a CSV file that a resumed run continues, and TensorBoard if wanted."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lifedeploy.errors import TrainingError
from lifedeploy.optional import require
from lifedeploy.reading import foreign, read_text
from lifedeploy.typed import Count, Share
from lifedeploy.writing import atomic_file, saving

FILE = "log.csv"


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One line: means since the last line of ``train``, or a validation (``val``) at the end of an epoch."""

    kind: Literal["train", "val"]
    stage: Annotated[str, Meta(max_length=100)]
    epoch: Annotated[int, Meta(ge=1, le=2**53)]  # over the whole run, from 1
    step: Count  # over the whole run
    lr: Annotated[float, Meta(ge=0, le=1e6)]  # the largest of all parameter groups
    loss: float  # NaN and infinity are what it can come to
    accuracy: Share  # of right answers
    images_per_s: Annotated[float, Meta(ge=0, le=1e12)]


class Log:
    """Rows in memory and on disk."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, keep: int = 0) -> None:
        """Start a log, or continue one after its first ``keep`` rows.

        Raises:
            TrainingError: the log to continue cannot be read, or has fewer rows.
        """
        self.path = folder / FILE
        self.rows = read_log(self.path)[:keep] if keep else []
        if len(self.rows) < keep:
            raise TrainingError(
                f"{self.path} has {len(self.rows)} rows, and the run to resume had written {keep}",
                hint="--overwrite starts the run again",
            )
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
        with saving(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(astuple(row))
            file.flush()
            os.fsync(file.fileno())  # before a state that counts this row
        if self._board is not None:
            for name in ("loss", "accuracy", "lr", "images_per_s"):
                self._board.add_scalar(f"{row.kind}/{name}", getattr(row, name), row.step)

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[LogRow]:
    """All rows of a log. What is behind the last line end is left out: a process that was killed was writing it.

    Raises:
        TrainingError: it cannot be read, or is no log.
    """
    text = read_text(path, TrainingError)
    names = [field.name for field in fields(LogRow)]
    rows: list[LogRow] = []
    with foreign(f"{path} is no log of a training run: it", TrainingError):
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and lines[0] != names:
            raise TrainingError(f"{path} is no log of a training run: its columns are not {', '.join(names)}")
        for number, line in enumerate(lines[1:], start=2):
            row = _row(line, names, f"line {number} of {path}")
            if rows and row.step < rows[-1].step:
                raise TrainingError(f"line {number} of {path} is damaged: step {row.step} after step {rows[-1].step}")
            rows.append(row)
    return rows


def _row(line: list[str], names: list[str], what: str) -> LogRow:
    if len(line) != len(names):
        raise TrainingError(f"{what} is damaged: it has {len(line)} columns, expected {len(names)}")
    with foreign(what, TrainingError):
        return msgspec.convert(dict(zip(names, line, strict=True)), LogRow, strict=False)
