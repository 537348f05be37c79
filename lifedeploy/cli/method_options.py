"""Options of a method, made of its dataclass: the command line that names a method takes that method's own.

Which they are is known once the line is read, so the commands that take ``--method`` look for it before they parse.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperCommand

from lifedeploy import methods
from lifedeploy.cli import field_options, values
from lifedeploy.errors import LifedeployError, UsageError
from lifedeploy.method import Method

FLAG = "--method"
_METHOD, _PARAMETERS = "lifedeploy.method", "lifedeploy.method.parameters"  # of click's context
_given: ContextVar[dict[str, Any]] = ContextVar("options of the method")


class MethodName(values.Value):
    """A method of one of some roles."""

    def __init__(self, *roles: str) -> None:
        super().__init__(FLAG)
        self.roles = roles

    def read(self, text: str) -> str:
        return methods.get(text, *self.roles).name


class MethodNames(values.Value):
    """Methods of any role, with commas between them."""

    most = 64

    def read(self, text: str) -> values.Words:
        words = text.split(",")
        if len(words) > self.most:
            raise UsageError(f"{self.flag} has {len(words):,} names; at most {self.most} are allowed")
        return values.Words(methods.get(word).name for word in words)


class MethodCommand(TyperCommand):
    """A command that takes ``--method``, and then that method's options."""

    roles: tuple[str, ...] = (methods.SLIMMED,)
    training = False  # whether it takes those that decide nothing but training

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_METHOD] = methods.get(self.named(args), *self.roles)
        _given.set({})
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "possibilities"):  # click's, for an option that there is not
                self._refuse_of_others(str(getattr(error, "option_name", "")), ctx.meta[_METHOD])
            raise

    def _refuse_of_others(self, flag: str, method: Method) -> None:
        """Say of an option that is one of other methods which these are.

        Raises:
            UsageError: it is.
        """
        owners = [name for name in methods.names(*self.roles) if flag in self._flags(name)]
        if owners:
            raise UsageError(
                f"{method.name} has no option {flag}; it is one of {', '.join(owners)}",
                hint=f"lifedeploy {self.name} {FLAG} {owners[0]} --help",
            )

    def _flags(self, name: str) -> set[str]:
        """Options of a method, as they are on the line; none of one that cannot be used."""
        with suppress(LifedeployError):
            parameters = _parameters(methods.get(name), training=self.training)
            return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
        return set()

    def named(self, args: Sequence[str]) -> str:
        """The method that a line names; the usual one where it names none."""
        return _last(args, FLAG) or methods.DEFAULT

    def get_params(self, ctx: Any) -> list[Any]:
        declared = super().get_params(ctx)
        method = ctx.meta.get(_METHOD)
        if method is None:  # nobody has read the line: the command is looked at as it is declared
            return declared
        if _PARAMETERS not in ctx.meta:  # the same ones every time: click tells them apart by identity
            ctx.meta[_PARAMETERS] = self._further(method, declared)
        return [*declared[:-1], *ctx.meta[_PARAMETERS], declared[-1]]  # --help stays the last

    def _further(self, method: Method, declared: Sequence[Any]) -> list[Any]:
        further = _parameters(method, training=self.training)
        taken = {flag for parameter in declared for flag in (*parameter.opts, *parameter.secondary_opts)}
        for parameter in further:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag in taken:
                    raise method.broken(f"it has an option {flag}, which lifedeploy {self.name} has itself")
            parameter.expose_value = False
            parameter.callback = _stored
        return further


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
                name = read_toml(Path(file)).get("method")
                return name if isinstance(name, str) else methods.DEFAULT
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
    last = None
    for number, argument in enumerate(args):
        if argument == "--":
            break
        flag, has_value, value = argument.partition("=")
        if flag == name and (has_value or number + 1 < len(args)):
            last = value if has_value else args[number + 1]
    return last


def _parameters(method: Method, *, training: bool) -> list[Any]:
    """click's parameters for a method's options, made by typer as those of a command are."""
    items = method.option_fields(training=training)
    if not items:
        return []

    def command(**values: Any) -> None: ...

    field_options.declare(command, {name: _annotation(method, item, kind) for name, (item, kind) in items.items()})
    app = typer.Typer(add_completion=False)
    app.command()(command)
    parameters = cast(Any, typer.main.get_command(app)).params
    return [parameter for parameter in parameters if parameter.name in items]


def _annotation(method: Method, item: Any, kind: Any) -> Any:
    problem = f"its option {item.name} has another type than bool, int, float, str or a Literal of words"
    if isinstance(item.default, tuple):
        raise method.broken(problem)
    try:
        return field_options.annotation(item, kind, f"Options of {method.name}", negated=True)
    except TypeError as error:
        raise method.broken(problem) from error
