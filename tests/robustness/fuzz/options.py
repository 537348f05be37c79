"""Values of every option and argument, taken from the tree of commands: a new option is covered once it is there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from tests.robustness.fuzz.case import Case, Place, kind
from tests.robustness.fuzz.values import ESCAPES, LISTS, MARKUP, NUMBERS, ODD_TEXTS, SIZES
from tests.robustness.inputs import EXPORT, TINY, TRAIN, devices

# A line of each command that does its work: positional arguments, and options by their longest name.
LINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "export": ((), (*TINY, "--weights=weights.safetensors", "--output=out")),
    "train": ((), (*TRAIN[1:], "--weights=weights.safetensors", "--name=new")),
    "evaluate": ((), ("--data=data",)),
    "visualize": ((EXPORT, "image.png"), ("--output=lives.png",)),
    "calibrate": ((EXPORT,), ("--data=data", "--images=8", "--check-images=4")),
    "build-engine": ((EXPORT,), ("--engine=fake",)),
    "bench": ((EXPORT,), ("--engine=fake", "--batch=1", "--budget=0.1", "--no-memory")),
    "compare": (
        (),
        (*TINY, "--weights=weights.safetensors", "--methods=life", "--engine=fake", "--batch=1", "--budget=0.1"),
    ),
    "tune": ((EXPORT,), ("--engine=fake", "--budget=10", "--output=tune.json")),
    "package": ((EXPORT,), ("--for=triton", "--out=repo")),
    "inspect": ((EXPORT,), ()),
    "verify": ((f"{EXPORT}/model.onnx", f"{EXPORT}/fake-fp32"), ()),
    "predict": (("image.png",), ()),
    "score": ((f"{EXPORT}/fake-fp32", "data"), ("--out=rows", "--part=4", "--batch=4")),
}
_SHARES = {"train": 3, "export": 2, "doctor": 0.3, "bench": 1.5, "tune": 0.5}  # of others: 1
_NUMBER_LIST = re.compile(r"[A-Z]+(,[A-Z]+)+")
_CHOICE = re.compile(r"[a-z0-9-]+(\|[a-z0-9-]+)+")
_PLACES = ("folder", "pipe", "null", "zero", "loop", "text.txt", "dangling")


@dataclass(frozen=True)
class Parameter:
    """An option or argument, as far as all versions of typer tell it."""

    name: str  # of an option the longest one; of an argument what the function calls it
    names: tuple[str, ...]  # of an option, with those that turn a switch off
    position: int  # of an argument; -1: an option
    switch: bool
    metavar: str
    kinds: tuple[Any, ...]  # types of its values


@cache
def commands() -> dict[str, list[Parameter]]:
    """Command → its parameters, as the command line has them."""
    from lifedeploy.cli.app import app

    functions = {info.name or info.callback.__name__: info.callback for info in app.registered_commands}
    return {name: list(_parameters(name, function)) for name, function in functions.items()}


def _parameters(command: str, function: Any) -> Iterator[Parameter]:
    from lifedeploy.cli.app import app

    hints = get_type_hints(function)
    position = 0
    for found in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        if found.name not in hints:  # --help
            continue
        argument = found.param_type_name == "argument"
        names = () if argument else (*found.opts, *found.secondary_opts)
        yield Parameter(
            found.name if argument else max(found.opts, key=len),
            names,
            position if argument else -1,
            bool(getattr(found, "is_flag", False)),
            found.metavar or "",
            tuple(_plain(hints[found.name])),
        )
        position += argument


def _plain(hint: Any) -> Iterator[Any]:
    """The types in ``list[Path] | None``."""
    inner = get_args(hint)
    if not inner:
        yield hint
    for kind_of in inner:
        yield from _plain(kind_of)


@kind("options", share=100)
def options(place: Place) -> Case:
    """One or two values that nobody meant."""
    names = sorted(commands())
    command = place.rng.choices(names, [_SHARES.get(name, 1) for name in names])[0]
    _furnish(place)
    drawn = commands()[command]
    count = 1 if place.rng.random() < 0.75 else 2
    chosen = place.rng.sample(drawn, min(count, len(drawn)))
    given = [(parameter, _value(parameter, place)) for parameter in chosen]
    argv = _line(command, given)
    bad = any(_refused(parameter, value, place, alone=count == 1) for parameter, value in given)
    about = ", ".join(f"{parameter.name} {ascii(value)[:60]}" for parameter, value in given)
    return Case(
        f"{command}: {about}",
        argv,
        bad=bad,
        writes=("artifacts/checkpoints",) if command == "train" else (),
        terminal=place.rng.random() < 0.1,
        encoding=place.rng.choices(("utf-8", "ascii", "cp1252"), (8, 1, 1))[0],
    )


def _furnish(place: Place) -> None:
    place.take("data", "shards", "weights.safetensors", "graph.onnx", "image.png", "artifacts")
    (place.folder / "folder").mkdir()
    (place.folder / "loop").symlink_to("loop")
    (place.folder / "dangling").symlink_to("nowhere/at/all")
    place.write("text.txt", b"just text\n")
    devices(place.folder)


def _line(command: str, given: list[tuple[Parameter, str]]) -> tuple[str, ...]:
    """The command's usual line, with these values in the place of what stands there."""
    positional, usual = map(list, LINES.get(command, ((), ())))
    behind: list[str] = []
    for parameter, value in given:
        if parameter.position >= 0:
            at = parameter.position
            positional = [*positional[:at], value, *positional[at + 1 :]]
            continue
        usual = [word for word in usual if word.split("=")[0] not in parameter.names]
        behind.append(value if parameter.switch else f"{parameter.name}={value}")
    return (command, *usual, *behind, *(("--", *positional) if positional else ()))


def _value(parameter: Parameter, place: Place) -> str:
    if parameter.switch:
        return place.rng.choice(parameter.names)
    sort = _sort(parameter)
    if sort in ("integer", "float"):
        return place.rng.choice(NUMBERS)
    if sort == "list":
        return place.rng.choice((*LISTS, *ESCAPES[:2]))
    if sort == "size":
        return place.rng.choice((*SIZES, *ESCAPES[:2]))
    if sort == "path":
        return place.rng.choice((*ODD_TEXTS, *_PLACES * 3))
    if sort == "choice":
        return place.rng.choice((*ESCAPES, *MARKUP, "nothing-of-this-name", "long " * 20_000, "caf\udce9", " "))
    return place.rng.choice((*ODD_TEXTS, *NUMBERS, *_PLACES))


def _sort(parameter: Parameter) -> str:
    """What a parameter takes: by its type, and by what its help says that it takes."""
    metavar, kinds = parameter.metavar, parameter.kinds
    if int in kinds or float in kinds:
        return "integer" if int in kinds else "float"
    if metavar == "N|HxW":
        return "size"
    if _NUMBER_LIST.fullmatch(metavar) and "PART" not in metavar:
        return "list"
    if _CHOICE.fullmatch(metavar):
        return "choice"
    return "path" if Path in kinds or metavar in ("DIR", "FILE") else "text"


def _refused(parameter: Parameter, value: str, place: Place, *, alone: bool) -> bool:
    """Whether nobody could mean this value; in a line with another change (not ``alone``), whatever that is."""
    sort = _sort(parameter)
    if parameter.switch:
        return False
    if sort in ("integer", "float"):
        return not _is_number(value, int if sort == "integer" else float)
    if not alone:
        return False
    if sort == "list":
        return not all(_is_number(part, float) for part in value.split(","))
    if sort == "size":
        return re.fullmatch(r"\s*\d+(x\d+)?\s*", value) is None  # Python's digits are those of all alphabets
    if sort == "choice":
        return value.strip() != ""
    if sort == "path" and parameter.metavar == "FILE":
        return value in ("folder", "missing/inside", "loop", "a" * 300)
    if sort == "path" and parameter.name == "--data":
        return value != "" and not (place.folder / value).is_dir() if len(value) < 300 else True
    return False


def _is_number(text: str, read: Callable[[str], Any]) -> bool:
    try:
        return math.isfinite(read(text))
    except (ValueError, OverflowError):
        return False
