"""Standard output for reports, standard error for everything said on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from lifedeploy.training.loop import Progress as TrainingProgress

from lifedeploy.files import readable_json, write_json

out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True)


def report(json: Path | None, data: Callable[[], dict[str, Any]], show: Callable[[], RenderableType]) -> None:
    """Show a report, and write it as JSON if asked; with ``-``, JSON is all that goes to standard output."""
    if json is not None and str(json) == "-":
        sys.stdout.write(readable_json(data()))
        return
    out.print(show())
    if json is not None:
        write_json(json, data())
        err.print(f"wrote {json}", highlight=False)


def warn(message: str, *, title: str, alarming: bool = False) -> None:
    """A box on standard error, whatever the report goes to."""
    border, style = ("bold red", "bold yellow") if alarming else ("yellow", "")
    # Folded: a path that is longer than the line has to be read whole.
    err.print(Panel(Text(message, overflow="fold"), title=title, border_style=border, style=style), soft_wrap=False)


def note(message: str) -> None:
    """One line on standard error of what should be known, and is nothing to worry about."""
    err.print(f"[bold]note:[/] {escape(message)}", highlight=False)


def fail(message: str, hint: str | None) -> None:
    """One line of what went wrong, and one of what to do."""
    err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False)
    if hint:
        err.print(f"[bold]hint:[/] {escape(hint)}", highlight=False)


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """A spinner with what is being done; silent where nobody watches."""
    with err.status("") as status:
        yield lambda message: status.update(escape(message))


@contextmanager
def building() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """A progress bar for a builder's phases, with a spinner for what is done between them."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)

        def say(message: str) -> None:
            bar.reset(task, description=escape(message), total=None)

        def progress(phase: str, share: float) -> None:
            bar.update(task, description=escape(phase[:60]), total=1.0, completed=share)

        yield say, progress


@contextmanager
def benchmarking() -> Iterator[tuple[Callable[[str], None], Callable[[str, str, float], None]]]:
    """A progress bar for measurements, with a spinner for what is done between them."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[so_far]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None, so_far="")

        def say(message: str) -> None:
            bar.reset(task, description=escape(message), total=None, so_far="")

        def progress(label: str, so_far: str, share: float) -> None:
            bar.update(task, description=escape(label), total=1.0, completed=share, so_far=so_far)

        yield say, progress


@contextmanager
def training(*, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[TrainingProgress], None]]]:
    """A bar for an epoch's steps, with loss, accuracy, speed and the time that is left; nothing if ``quiet``."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=err, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=None, numbers="")

        def say(message: str) -> None:
            bar.reset(task, description=escape(message), total=None, numbers="")

        def watch(now: TrainingProgress) -> None:
            minutes, seconds = divmod(round(now.seconds_left), 60)
            numbers = (
                f"{now.step}/{now.steps} · loss {now.loss:.3f} · acc {now.accuracy * 100:.1f} % · "
                f"{now.images_per_s:.3g} img/s · {minutes}:{seconds:02d} left"
            )
            epoch = f"{now.stage} {now.epoch}/{now.epochs}"
            bar.update(task, description=epoch, total=now.steps, completed=now.step, numbers=numbers)

        yield say, watch


@contextmanager
def counting(unit: str, *, shown: bool = True) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """A progress bar that counts ``unit``, with a spinner for what is done before; not ``shown``: silent."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None, count="")

        def say(message: str) -> None:
            bar.reset(task, description=escape(message), total=None, count="")

        def progress(done: int, total: int) -> None:
            bar.update(task, description="", total=total, completed=done, count=f"{done:,} of {total:,} {unit}")

        yield say, progress
