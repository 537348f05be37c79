"""Protocol buffers in their text format, as Triton reads its ``config.pbtxt``.

https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Word(str):
    """A word of an enumeration, which stands without quotes."""


def message(fields: Mapping[str, Any], comment: str = "") -> str:
    """A message: of a list a field for each item, of a mapping a message; numbers and words in a list stay together."""
    lines = [f"# {line}" for line in comment.splitlines()]
    return "\n".join([*lines, *_fields(fields, "")]) + "\n"


def entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A map field: its entries, by key."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _fields(fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in fields.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, (list, tuple)) and not any(isinstance(item, Mapping) for item in items):
            yield f"{indent}{name}: [{', '.join(map(_scalar, items))}]"
            continue
        for item in items:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _fields(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(letter) or _plain(letter) for letter in value) + '"'
    return repr(value)


def _plain(letter: str) -> str:
    """A letter, or the octal numbers of the bytes of one that ends a line or shows nothing."""
    return letter if letter.isprintable() else "".join(f"\\{byte:03o}" for byte in letter.encode())
