"""Standard output for reports, standard error for everything said on the way.

What is said holds names and messages of others. Here, where text leaves us, none of it is markup, and none of it is
for the terminal to obey: :class:`Console` lets visible characters and line ends through and shows the rest as escapes.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from rich.console import ConsoleDimensions, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from lifedeploy import text
from lifedeploy.errors import LifedeployError
from lifedeploy.files import readable_json, write_json
from lifedeploy.progress import Progress, Say, Step

_WIDEST = 1000  # columns, whatever the environment says
_LABEL = 60  # characters beside a bar: TensorRT's phases have long names


class Console(rich.console.Console):
    """Text is text: no markup, no emoji by name, nothing coloured by guessing, nothing that steers the terminal."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)

    @property
    def unicode(self) -> bool:
        """Whether what we write to has every character there is."""
        return self.encoding.startswith("utf")

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines, both within what can be filled."""
        _forget_odd_sizes()  # they may have been set since
        width, height = super().size
        return ConsoleDimensions(min(max(width, 1), _WIDEST), min(max(height, 1), _WIDEST))

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def visible(self, said: str) -> str:
        """What of a text can be seen here: escapes in the place of what cannot; line ends stay."""
        lines = "\n".join(map(text.printable, said.split("\n")))
        if lines.isascii() or self.unicode:
            return lines
        try:
            return lines.encode(self.encoding, text.TERMINAL).decode(self.encoding)
        except LookupError:  # an encoding that Python does not know
            return lines.encode("ascii", text.TERMINAL).decode()

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as rich lays it out: with its escapes, which need their place."""
        return super().render_str(self.visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever is shown, by whatever way it came, goes through here."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(self.visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """The reader has gone: the end of the command, which is no place for rich to leave the program at."""
        del self._buffer[:]
        raise BrokenPipeError


def _forget_odd_sizes() -> None:
    """What the environment calls the terminal's size, where that is no size: rich would end at it, or fill it."""
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[0-9]{1,4}", os.environ.get(name, "0")):
            del os.environ[name]


_forget_odd_sizes()
out = Console()
err = Console(stderr=True, soft_wrap=True)


def report(json: Path | None, data: Callable[[], dict[str, Any]], show: Callable[[], RenderableType]) -> None:
    """Show a report, and write it as JSON if asked; with ``-``, JSON is all that goes to standard output.

    Raises:
        LifedeployError: there is no standard output for it.
    """
    if json is not None and str(json) == "-":
        _write(readable_json(data()))
        return
    out.print(show())
    if json is not None:
        write_json(json, data())
        wrote(json)


def _write(document: str) -> None:
    """A document to standard output as UTF-8, whatever the terminal has: it is for a program to read."""
    if sys.stdout is None:
        raise LifedeployError("standard output is closed, so the report cannot go there")
    sink = getattr(sys.stdout, "buffer", None)
    try:
        sys.stdout.flush()
        if sink is None:  # somebody has put something else in its place
            sys.stdout.write(document)
        else:
            sink.write(document.encode("utf-8"))
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise BrokenPipeError from error  # without its number, by which typer would end the program on the spot


def wrote(path: Path) -> None:
    """One line on standard error of a file that was written."""
    err.print(f"wrote {path}")


def warn(message: str, *, title: str = "warning", alarming: bool = False) -> None:
    """A box on standard error, whatever the report goes to."""
    border, style = ("bold red", "bold yellow") if alarming else ("yellow", "")
    # Folded: a path that is longer than the line has to be read whole.
    body = Text(err.visible(message), overflow="fold")
    err.print(Panel(body, title=Text(err.visible(title)), border_style=border, style=style), soft_wrap=False)


def note(message: str) -> None:
    """One line on standard error of what should be known, and is nothing to worry about."""
    _line("note:", "bold", message)


def fail(message: str, hint: str | None) -> None:
    """One line of what went wrong, and one of what to do."""
    _line("error:", "bold red", text.message(message))
    if hint:
        _line("hint:", "bold", text.message(hint))


def _line(word: str, style: str, message: str) -> None:
    err.print(Text.assemble((word, style), " ", err.visible(text.one_line(message))))


def take_over_warnings() -> None:
    """Have what other libraries warn of, and log without saying where to, said by us: as a line each."""
    warnings.showwarning = _python_warning
    logging.lastResort = _LastResort(logging.WARNING)


def _python_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _line("warning:", "yellow", text.message(f"{category.__name__}: {message}"))


class _LastResort(logging.Handler):
    """What is logged where nobody has set up logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it in a line."""
        try:
            _line(f"{record.levelname.lower()}:", "yellow", text.message(f"{record.name}: {record.getMessage()}"))
        except Exception:  # as every handler does: logging must not end what it is about
            self.handleError(record)


@contextmanager
def working() -> Iterator[Say]:
    """A spinner with what is being done; silent where nobody watches."""
    with err.status("", spinner="dots" if err.unicode else "line") as status:
        yield lambda message: status.update(Text(err.visible(message)))


@contextmanager
def watching(*, shown: bool = True, elapsed: bool = True, left: bool = False) -> Iterator[tuple[Say, Progress]]:
    """A bar for what can be told the end of, and a spinner for what is done in between; not ``shown``: neither.

    Beside the bar stands how far it is in words and, if asked for, the time since it began and an estimate of what is
    ``left`` of it.
    """
    columns: list[rich.progress.ProgressColumn] = [
        rich.progress.SpinnerColumn("dots" if err.unicode else "line"),
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[detail]}", markup=False),
    ]
    columns += [rich.progress.TimeElapsedColumn()] * elapsed + [rich.progress.TimeRemainingColumn()] * left
    with rich.progress.Progress(*columns, console=err, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None, detail="")

        def say(message: str) -> None:
            bar.reset(task, description=err.visible(message), total=None, detail="")

        def show(step: Step) -> None:
            bar.update(
                task, description=err.visible(step.what[:_LABEL]), total=1.0, completed=step.share, detail=step.detail
            )

        yield say, show
