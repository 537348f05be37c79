"""The options of a method: a frozen dataclass of plain fields; the command line, exports' names and specs read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints
from zlib import crc32

import msgspec

from lifedeploy.errors import UsageError
from lifedeploy.text import quoted

Option = bool | int | float | str  # what an option of a method may be
_NAME = re.compile(r"(?!debug$|help$|version$)[a-z][a-z0-9]*(_[a-z0-9]+)*")  # those are lifedeploy's everywhere


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


def option(default: Option, help: str, *, training: bool = False, budget: bool = False) -> Any:
    """A field of a method's options: ``merged: Annotated[int, Meta(ge=1, le=64)] = option(8, "Tokens a layer.")``.

    On the command line it is ``--merged N``; its type, annotated with msgspec's ``Meta``, is its range. ``training``:
    it decides nothing but how the method trains, so that only ``train`` takes it. ``budget``: it says how many tokens
    go on, in the place of a keep rate.
    """
    return field(default=default, metadata={"help": help, "training": training, "budget": budget})


def without_budget(options: type[Any], given: Mapping[str, Option]) -> dict[str, Option]:
    """Of the options ``given`` those that leave the number of tokens to a keep rate."""
    budget = {item.name for item in fields(options) if item.metadata.get("budget")}
    return {name: value for name, value in given.items() if name not in budget}


def settle(options: type[Any], given: Mapping[str, Any], whose: str) -> Any:
    """Options of the method ``whose``: those ``given``, the others at their defaults.

    Raises:
        UsageError: one is unknown, of another type or out of range.
    """
    known = [item.name for item in fields(options)]
    for name in given:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{quoted(name)} is no option of {whose}; {there}")
    try:
        return msgspec.convert(dict(given), options)
    except msgspec.ValidationError as error:
        said, _, place = str(error).replace("`", "").rpartition(" - at $.")
        subject = f"{place} is {quoted(given.get(place))}: " if said else ""
        said = said or place
        kind = get_type_hints(options).get(place)
        if get_origin(kind) is Literal:  # msgspec does not tell what there is
            said = f"expected one of {', '.join(map(str, get_args(kind)))}"
        raise UsageError(f"{subject}{said[0].lower()}{said[1:]}") from error


def option_fields(options: type[Any], *, training: bool) -> dict[str, tuple[Any, Any]]:
    """Name → field and type; of those that decide nothing but training only if ``training``."""
    kinds = get_type_hints(options, include_extras=True)
    chosen = [item for item in fields(options) if training or not item.metadata.get("training")]
    return {item.name: (item, kinds[item.name]) for item in chosen}


def label(items: Mapping[str, tuple[Any, Any]], given: Mapping[str, Any]) -> str:
    """What options add to the name of an export: those that are not at their defaults."""
    words = []
    for name, (item, _) in items.items():
        value = given.get(name, item.default)
        if value != item.default:
            plain = name.replace("_", "-")
            words.append(("" if value else "no-") + plain if isinstance(value, bool) else plain + _word(value))
    return "-".join(words)


def misnamed(options: type[Any]) -> str:
    """The first option that cannot be called so on a command line; '' where all can."""
    names = [item.name for item in fields(options)]
    odd = (name for name in names if not _NAME.fullmatch(name) or name.removeprefix("no_") in {*names} - {name})
    return next(odd, "")


def is_frozen(options: Any) -> bool:
    """Whether it is a frozen dataclass."""
    parameters = getattr(options, "__dataclass_params__", None)
    return is_dataclass(options) and bool(getattr(parameters, "frozen", False))


def has_defaults(options: Any) -> bool:
    """Whether every option has one."""
    return all(item.default is not MISSING for item in fields(options))


def _word(value: Option) -> str:
    """A value as part of a folder's name: as it is, if it is short and plain, else a digest of it."""
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,31}", text) else f"-{crc32(text.encode()):08x}"
