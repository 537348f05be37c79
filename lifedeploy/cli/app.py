"""The commands, and the one place where errors become messages and exit codes.

Everything heavy is imported inside the command that needs it: ``lifedeploy --help`` loads no framework.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer

from lifedeploy import __version__
from lifedeploy.caches import name_compiler_caches
from lifedeploy.cli import console, encoding, interrupts
from lifedeploy.cli.commands.bench import bench
from lifedeploy.cli.commands.build_engine import build_engine
from lifedeploy.cli.commands.calibrate import calibrate
from lifedeploy.cli.commands.compare import compare
from lifedeploy.cli.commands.doctor import doctor
from lifedeploy.cli.commands.evaluate import evaluate
from lifedeploy.cli.commands.export import export
from lifedeploy.cli.commands.inspect import inspect
from lifedeploy.cli.commands.package import package
from lifedeploy.cli.commands.predict import predict
from lifedeploy.cli.commands.score import score
from lifedeploy.cli.commands.train import train
from lifedeploy.cli.commands.tune import tune
from lifedeploy.cli.commands.verify import verify
from lifedeploy.cli.commands.visualize import visualize
from lifedeploy.cli.method_options import MethodCommand, TrainingCommand
from lifedeploy.errors import LifedeployError
from lifedeploy.optional import of_extra
from lifedeploy.reading import reason

# How the libraries below us say that memory has run out, each in an error of its own.
_NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "out of memory", "cannot allocate memory", "bad allocation")

app = typer.Typer(
    name="lifedeploy",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"lifedeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere on the line.")] = False,
) -> None:
    """Token-pruned Vision Transformers: from timm to ONNX to engines that are checked and measured."""


app.command(cls=MethodCommand)(export)
app.command(cls=TrainingCommand)(train)
app.command()(evaluate)
app.command()(visualize)
app.command()(calibrate)
app.command("build-engine")(build_engine)
app.command()(bench)
app.command()(compare)
app.command()(tune)
app.command()(package)
app.command()(inspect)
app.command()(verify)
app.command()(predict)
app.command()(score)
app.command()(doctor)


def main() -> None:
    """Run a command; the single error boundary."""
    encoding.prepare()
    console.take_over_warnings()
    name_compiler_caches()
    debug = "--debug" in sys.argv
    with interrupts.as_ctrl_c():
        try:
            code = _run([argument for argument in sys.argv[1:] if argument != "--debug"], debug=debug)
            encoding.flush()
        except OSError as error:  # one of our own streams cannot be written to, where messages would go too
            code = _without_stream(error)
        sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """The exit code of a command; whatever ended it is said.

    Raises:
        OSError: standard output or error takes nothing.
    """
    try:
        code = app(arguments, prog_name="lifedeploy", standalone_mode=False)
        if code == 130:  # what newer versions of typer make of a KeyboardInterrupt
            raise KeyboardInterrupt
        return int(code or 0)
    except KeyboardInterrupt:
        if debug:
            raise
        console.fail(interrupts.SAID, None)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and encoding.is_of_a_stream(error):
            raise
        if debug:
            raise
        console.fail(*((interrupts.SAID, None) if interrupts.came() else _explain(error)))
        return int(getattr(error, "exit_code", 1))  # ours and click's both carry one


def _without_stream(error: OSError) -> int:
    """The exit code where standard output (or error) takes nothing; said, unless it is that the reader has gone."""
    encoding.silence(sys.stdout)
    gone = isinstance(error, BrokenPipeError)
    if not gone:
        with suppress(OSError):
            console.fail(f"standard output cannot be written: {reason(error)}", None)
    with suppress(OSError):
        encoding.flush()
        return encoding.PIPE_CLOSED if gone else 1
    encoding.silence(sys.stderr)
    return encoding.PIPE_CLOSED if gone else 1


def _explain(error: Exception) -> tuple[str, str | None]:
    """Message and hint for whatever ended the command."""
    if isinstance(error, LifedeployError):
        return error.message, error.hint
    if isinstance(error, ModuleNotFoundError) and (lacking := of_extra(error)):
        return lacking.message, lacking.hint
    if isinstance(error, typer.Abort):
        return interrupts.SAID, None
    if hasattr(error, "format_message"):  # click's, for a line it cannot parse
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lifedeploy"
        return error.format_message().strip() or "a command is missing", f"{command} --help"
    if isinstance(error, MemoryError) or any(said in str(error).lower() for said in _NO_MEMORY):
        return "there is not enough memory for this", "a smaller batch, image size or number of workers needs less"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{reason(error)}", None
    return f"unexpected {type(error).__name__}: {error}", "this is a bug in lifedeploy; --debug shows where"
