"""Text that leaves us: names and values of others may hold anything, and a terminal obeys some of it.

One rule for messages, tables, pictures and JSON: what does not print is shown as an escape, ``\\x1b``, not passed on.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

LINE = 160  # characters of somebody else's text that a message quotes at most
_MESSAGE = 600  # characters of a message in all

# What our own text uses beyond ASCII, for terminals that have no more than that.
_PLAIN = str.maketrans(
    {
        "→": "->", "←": "<-", "…": "...", "×": "x", "·": "*", "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">=",
        "±": "+-", "÷": "/", "²": "2", "ρ": "rho", "α": "alpha", "°": "deg", "µ": "u", "≈": "~", "“": '"', "”": '"',
        "‘": "'", "’": "'", "✓": "yes", "✗": "no", "•": "*",
    }
)  # fmt: skip
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TERMINAL = "lifedeploy.terminal"  # how a terminal's encoding treats what it lacks: ``stream.reconfigure(errors=…)``


def printable(text: str) -> str:
    """``text`` on one line, with an escape for whatever is no visible character: controls (so no terminal sequences),
    line ends, characters that turn the direction of writing, and bytes of a file's name that are no UTF-8."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def is_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8: the name of a file may be any bytes, which Python carries in its own way."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_colours(text: str) -> str:
    """``text`` as it is where colours are not wanted: libraries put them into messages and logs for terminals."""
    return _COLOUR.sub("", text)


def one_line(text: str) -> str:
    """White space of any kind and length as one space, and the rest :func:`printable`."""
    return printable(" ".join(text.split()))


def shortened(text: str, width: int = LINE) -> str:
    """``text`` on one line of at most ``width`` characters; of a longer one beginning and end."""
    # What is cut off need not be looked at: a megabyte of it would take its time.
    line = one_line(text if len(text) <= 8 * width else f"{text[: 4 * width]} {text[-4 * width :]}")
    if len(line) <= width and len(text) <= 8 * width:
        return line
    end = width // 3
    return f"{line[: width - end - 3]} … {line[-end:]}"


def chained(numbers: Sequence[int], *, most: int = 5) -> str:
    """Counts that follow each other, ``196→137→96→67``; of more than ``most`` the first two and the last."""
    ends = list(map(str, numbers))
    return "→".join(ends if len(ends) <= most else [*ends[:2], "…", ends[-1]])


def message(text: str) -> str:
    """An error's text: one line, none of it to be obeyed, and no page of whatever was found."""
    return shortened(text, _MESSAGE)


def quoted(value: Any) -> str:
    """A value that was found, as Python writes it, at most a line of it."""
    if isinstance(value, str):
        return shortened(repr(value if len(value) <= 8 * LINE else f"{value[: 4 * LINE]}…{value[-4 * LINE :]}"))
    try:
        return shortened(repr(value))
    except (RecursionError, ValueError):  # too deep, or a whole number of more digits than Python writes
        return f"a {type(value).__name__}"


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ascii(letter)[1:-1]


def _for_terminal(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_plain(letter) for letter in missing), error.end


def _plain(letter: str) -> str:
    plain = letter.translate(_PLAIN)
    return plain if plain.isascii() else _escaped(letter)


codecs.register_error(TERMINAL, _for_terminal)
