"""Options of a method, made of its dataclass: the command line that names a method takes that method's own.

Which they are is known once the line is read, so the commands that take ``--method`` look for it before they parse.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import typer
from msgspec import Meta
from typer.core import TyperCommand

from lifedeploy import methods
from lifedeploy.cli import options, values
from lifedeploy.errors import LifedeployError
from lifedeploy.method import Method

FLAG = "--method"
_LARGEST = 10**9  # of a number whose type has no range
_METHOD, _PARAMETERS = "lifedeploy.method", "lifedeploy.method.parameters"  # of click's context
_given: ContextVar[dict[str, Any]] = ContextVar("options of the method")


class MethodName(values.Value):
    """A method of one of some roles."""

    def __init__(self, *roles: str) -> None:
        super().__init__(FLAG)
        self.roles = roles

    def read(self, text: str) -> str:
        return methods.get(text, *self.roles).name


class MethodCommand(TyperCommand):
    """A command that takes ``--method``, and then that method's options."""

    roles: tuple[str, ...] = (methods.SLIMMED,)
    training = False  # whether it takes those that decide nothing but training

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_METHOD] = methods.get(self.named(args), *self.roles)
        _given.set({})
        return super().parse_args(ctx, args)

    def named(self, args: Sequence[str]) -> str:
        """The method that a line names; the usual one where it names none."""
        return _last(args, FLAG) or methods.DEFAULT

    def get_params(self, ctx: Any) -> list[Any]:
        own = super().get_params(ctx)
        method = ctx.meta.get(_METHOD)
        if method is None:  # nobody has read the line: the command is looked at as it is declared
            return own
        if _PARAMETERS not in ctx.meta:  # the same ones every time: click tells them apart by identity
            ctx.meta[_PARAMETERS] = self._made(method, own)
        return [*own[:-1], *ctx.meta[_PARAMETERS], own[-1]]  # --help stays the last

    def _made(self, method: Method, own: Sequence[Any]) -> list[Any]:
        made = _parameters(method, training=self.training)
        taken = {flag for parameter in own for flag in (*parameter.opts, *parameter.secondary_opts)}
        for parameter in made:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag in taken:
                    raise method.broken(f"it has an option {flag}, which lifedeploy {self.name} has itself")
            parameter.expose_value = False
            parameter.callback = _stored
        return made


class TrainingCommand(MethodCommand):
    """One that trains."""

    roles = (methods.SLIMMED, methods.BASELINE)
    training = True

    def named(self, args: Sequence[str]) -> str:
        """The method that a line names, or the settings do that it names: ``--config``."""
        file = _last(args, "--config")
        if _last(args, FLAG) is None and file is not None:
            from lifedeploy.reading import read_toml

            with suppress(LifedeployError):  # what is wrong with the file is said when its settings are read
                found = read_toml(Path(file)).get("method")
                return found if isinstance(found, str) else methods.DEFAULT
        return super().named(args)


def given() -> dict[str, Any]:
    """The method's options that the line has, by the names of their fields."""
    return dict(_given.get({}))


def _stored(ctx: Any, parameter: Any, value: Any) -> Any:
    if value is not None:
        _given.get()[parameter.name] = value
    return value


def _last(args: Sequence[str], name: str) -> str | None:
    """The value of an option on a line, the last one as click has it; None where it is not there."""
    found = None
    for number, argument in enumerate(args):
        if argument == "--":
            break
        flag, has_value, value = argument.partition("=")
        if flag == name and (has_value or number + 1 < len(args)):
            found = value if has_value else args[number + 1]
    return found


def _parameters(method: Method, *, training: bool) -> list[Any]:
    """click's parameters for a method's options, made by typer as those of a command are."""
    fields = method.option_fields(training=training)
    if not fields:
        return []

    def command(**values: Any) -> None: ...

    hints = {name: _hint(method, item, kind) for name, (item, kind) in fields.items()}
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
            for name, hint in hints.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(command)
    made = cast(Any, typer.main.get_command(app)).params
    return [parameter for parameter in made if parameter.name in fields]


def _hint(method: Method, item: Any, kind: Any) -> Any:
    """What typer makes an option of."""
    flag, panel = f"--{item.name.replace('_', '-')}", f"Options of {method.name}"
    plain, limits = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    usual = item.default if not isinstance(item.default, bool) else ("on" if item.default else "off")
    help = f"{item.metadata.get('help', '')}  [default: {usual}]"
    if plain is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help, rich_help_panel=panel)]
    low, high, above, below = _range(limits)
    reader: values.Value
    if get_origin(plain) is Literal and all(isinstance(word, str) for word in get_args(plain)):
        plain, reader = str, values.Choice(flag, *get_args(plain))
    elif plain is int:
        reader = values.Whole(flag, int(low) + above, int(high) - below)
    elif plain is float:
        reader = values.Real(flag, low, high, above=above, below=below)
    elif plain is str:
        reader = values.Name(flag)
    else:
        raise method.broken(f"its option {item.name} has another type than bool, int, float, str or a Literal of words")
    metavar = None if isinstance(reader, values.Choice) else {int: "N", float: "X", str: "TEXT"}[plain]
    return Annotated[plain | None, options.option(reader, help=help, metavar=metavar, panel=panel)]


def _range(limits: Sequence[Any]) -> tuple[float, float, bool, bool]:
    """Lowest and highest number, and whether each is outside of the range."""
    low, high, above, below = -float(_LARGEST), float(_LARGEST), False, False
    for limit in limits:
        if isinstance(limit, Meta):
            low, above = (limit.gt, True) if limit.gt is not None else (low if limit.ge is None else limit.ge, above)
            high, below = (limit.lt, True) if limit.lt is not None else (high if limit.le is None else limit.le, below)
    return low, high, above, below
