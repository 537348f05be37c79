"""Options made of the fields of a dataclass: type, range and default are the field's, words are in its metadata.

The metadata may have ``help``; ``flag`` where that is not the field's name; ``metavar``; ``usual``, the default in
words; ``said``, the sentence that refuses a value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from msgspec import Meta

from lifedeploy.cli import options, values

_LARGEST = 10**9  # of a number whose type has no range
_METAVARS = {"Whole": "N", "Real": "X", "Name": "TEXT", "RealList": "LOW,HIGH"}


def flag(item: Field[Any]) -> str:
    """What the option is called."""
    return str(item.metadata.get("flag") or f"--{item.name.replace('_', '-')}")


def help(item: Field[Any]) -> str:
    """What is said of the option, and its default, unless that is empty."""
    usual = item.metadata.get("usual") or _written(item.default)
    return f"{item.metadata.get('help', '')}{f'  [default: {usual}]' if usual else ''}"


def annotation(
    item: Field[Any], kind: Any, panel: str | None, reader: values.Value | None = None, *, negated: bool = False
) -> Any:
    """What typer makes an option of; None is its default, which tells what was given from what was not.

    Args:
        item: the field.
        kind: its type, with its ``Meta``.
        panel: where ``--help`` shows it; None: among the common options.
        reader: what reads its value, where more is asked of it than its type says.
        negated: a switch has a ``--no-`` beside it, and so its default is shown.

    Raises:
        TypeError: a type that no option has.
    """
    name = flag(item)
    if kind is bool:
        names = f"{name}/--no-{name[2:]}" if negated else name
        default = f"  [default: {'on' if item.default else 'off'}]" if negated else ""
        said = f"{item.metadata['help']}{default}"
        return Annotated[bool | None, typer.Option(names, help=said, rich_help_panel=panel)]
    reader = reader or _reader(name, kind, item.metadata.get("said", ""))
    metavar = item.metadata.get("metavar") or _METAVARS.get(type(reader).__name__)
    return Annotated[str | None, options.option(reader, help=help(item), metavar=metavar, panel=panel)]


def declare(command: Callable[..., Any], annotations: Mapping[str, Any]) -> None:
    """Give ``command`` further options, in front of its own: keywords that are None where the line has none of them."""
    signature = inspect.signature(command, eval_str=True)
    further = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, kind in annotations.items()
    ]
    declared = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*further, *declared])  # type: ignore[attr-defined]
    command.__annotations__ = {**annotations, **command.__annotations__}


def _reader(name: str, kind: Any, said: str) -> values.Value:
    """What reads a value of a type.

    Raises:
        TypeError: there is nothing.
    """
    plain, limits = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    low, high, above, below = _range(limits)
    arguments = get_args(plain)
    if get_origin(plain) is Literal and all(isinstance(word, str) for word in arguments):
        return values.OneOf(name, *arguments, **({"said": said} if said else {}))
    if plain is int:
        return values.Whole(name, int(low) + above, int(high) - below, said)
    if plain is float:
        return values.Real(name, low, high, said, above=above, below=below)
    if plain is str:
        return values.Name(name)
    if get_origin(plain) is tuple and len(set(arguments)) == 1 and get_args(arguments[0])[:1] == (float,):
        low, high, above, _ = _range(get_args(arguments[0])[1:])
        return values.RealList(name, low, high, len(arguments), above=above)
    raise TypeError(f"{name} has a type that no option has")


def _range(limits: Sequence[Any]) -> tuple[float, float, bool, bool]:
    """Lowest and highest number, and whether each is outside of the range."""
    low, high, above, below = -float(_LARGEST), float(_LARGEST), False, False
    for limit in limits:
        if isinstance(limit, Meta):
            low, above = (limit.gt, True) if limit.gt is not None else (low if limit.ge is None else limit.ge, above)
            high, below = (limit.lt, True) if limit.lt is not None else (high if limit.le is None else limit.le, below)
    return low, high, above, below


def _written(default: Any) -> str:
    """A default as one would type it: ``0.05``, ``1e-3``, ``0.6,1``."""
    if isinstance(default, tuple):
        return ",".join(map(_written, default))
    if isinstance(default, float):
        return f"{default:.3g}" if not 0 < abs(default) < 0.01 else f"{Decimal(str(default)).normalize():e}"
    return str(default)
