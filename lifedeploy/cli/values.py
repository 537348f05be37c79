"""What an option may be: every value of the command line is read here, before anything is loaded or begun.

Typer's own types take ``nan``, ``1_000``, ``٣`` and numbers of any size, a path that ends in the middle, and text of
any length. Each class below reads one kind of value and says in one line what was found and what was expected.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

from lifedeploy.errors import UsageError
from lifedeploy.text import quoted

LONGEST_PATH = 4096  # bytes, as Linux has it
_NAME = 256  # characters of a name
_WHOLE = re.compile(r"-?[0-9]+")
_DIGITS = 24  # of a number that may be in a range: Python takes its time over a million of them
_REAL = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")


class Numbers(tuple[int, ...]):
    """Whole numbers, as ``127,95,63``."""


class Words(tuple[str, ...]):
    """Names, as ``sm89,sm120``."""


class Size(tuple[int, int]):
    """Height and width of an image in pixels, as ``224`` or ``192x256``."""


class Value:
    """Reads the text of one option; ``flag`` is what messages call it."""

    def __init__(self, flag: str) -> None:
        self.flag = flag
        self.__name__ = type(self).__name__.lower()  # typer asks for it

    def __call__(self, given: Any) -> Any:
        """The value; a default, which is no text, is one already.

        Raises:
            UsageError: it is not allowed.
        """
        return self.read(given) if isinstance(given, str) else given

    def read(self, text: str) -> Any:
        raise NotImplementedError


class WholeRange(Value):
    """Whole numbers from ``low`` to ``high``, in the digits 0 to 9.

    ``said`` is the sentence that refuses another one, with places for ``value``, ``low`` and ``high``.
    """

    usual = "Invalid value for '{flag}': {value} is not allowed; it must be a whole number from {low} to {high}"

    def __init__(self, flag: str, low: int, high: int, said: str = "") -> None:
        super().__init__(flag)
        self.low, self.high, self.said = low, high, said or self.usual

    def number(self, text: str) -> int | None:
        """The number, if it is one in the range."""
        if len(text) > _DIGITS or not _WHOLE.fullmatch(text):
            return None
        return int(text) if self.low <= int(text) <= self.high else None

    def refused(self, text: str) -> UsageError:
        """What is said of another one."""
        low, high = f"{self.low:,}", f"{self.high:,}"
        return UsageError(self.said.format(flag=self.flag, value=_shown(text), low=low, high=high))


class Whole(WholeRange):
    """One whole number."""

    def read(self, text: str) -> int:
        number = self.number(text)
        if number is None:
            raise self.refused(text)
        return number


class RealRange(Value):
    """Finite numbers from ``low`` to ``high``, decimal; without these two themselves where it is open.

    ``said`` is the sentence that refuses another one, with places for ``value`` and ``interval``.
    """

    usual = "Invalid value for '{flag}': {value} is not allowed; it must be {interval}"

    def __init__(
        self, flag: str, low: float, high: float, said: str = "", *, above: bool = False, below: bool = False
    ) -> None:
        super().__init__(flag)
        self.low, self.high, self.above, self.below = low, high, above, below
        self.said = said or self.usual

    def number(self, text: str) -> float | None:
        """The number, if it is one in the range."""
        value = float(text) if _REAL.fullmatch(text) else math.nan
        inside = self.low <= value <= self.high
        inside = inside and not (self.above and value == self.low) and not (self.below and value == self.high)
        return value if inside else None

    def refused(self, text: str) -> UsageError:
        """What is said of another one."""
        return UsageError(self.said.format(flag=self.flag, value=_shown(text), interval=self.interval))

    @property
    def interval(self) -> str:
        """As it is written: ``in (0, 1]``."""
        low, high = (f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}" for bound in (self.low, self.high))
        return f"in {'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"


class Real(RealRange):
    """A number in an interval."""

    def read(self, text: str) -> float:
        number = self.number(text)
        if number is None:
            raise self.refused(text)
        return number


class WholeList(WholeRange):
    """Whole numbers with commas between them, at most ``most`` of them."""

    usual = "{flag} {value} is not allowed: each must be from {low} to {high}"

    def __init__(self, flag: str, low: int, high: int, most: int, said: str = "") -> None:
        super().__init__(flag, low, high, said)
        self.most = most

    def read(self, text: str) -> Numbers:
        return Numbers(_numbers(self, text, _WHOLE, "whole numbers; expected for example 4,7,10"))


class RealList(RealRange):
    """Finite numbers with commas between them, ``length`` of them."""

    usual = "{flag} {value} is not allowed: each must be {interval}"

    def __init__(self, flag: str, low: float, high: float, length: int, *, above: bool = False) -> None:
        super().__init__(flag, low, high, above=above)
        self.length = self.most = length

    def read(self, text: str) -> tuple[float, ...]:
        numbers = _numbers(self, text, _REAL, "numbers; expected for example 0.6,1")
        if len(numbers) < self.length:
            raise UsageError(
                f"{self.flag} {text} has {len(numbers)} of its {self.length} numbers; expected as in 0.6,1"
            )
        return tuple(numbers)


class Pixels(WholeRange):
    """An image's size: one number for a square, or height x width."""

    usual = "image size {value} is not allowed; expected {low} to {high} pixels each way"

    def read(self, text: str) -> Size:
        parts = text.lower().split("x") if len(text) <= _NAME else []
        if not 1 <= len(parts) <= 2 or not all(_WHOLE.fullmatch(part) for part in parts):
            raise UsageError(
                f"image size {quoted(text)} is not allowed; expected for example 224, or 192x256 (height x width)"
            )
        height, width = self.number(parts[0]), self.number(parts[-1])
        if height is None or width is None:
            raise self.refused(text)
        return Size((height, width))


class OneOf(Value):
    """A word of a closed list."""

    def __init__(self, flag: str, *words: str, said: str = "{flag} {value} is unknown; there are: {words}") -> None:
        super().__init__(flag)
        self.words, self.said = words, said

    def read(self, text: str) -> str:
        if text in self.words:
            return text
        places = {"flag": self.flag, "value": quoted(text), "bare": _shown(text), "words": ", ".join(self.words)}
        raise UsageError(self.said.format(**places))


class Name(Value):
    """A name that prints, on one line, of at most ``most`` characters."""

    def __init__(self, flag: str, most: int = _NAME) -> None:
        super().__init__(flag)
        self.most = most

    def read(self, text: str) -> str:
        if not text or len(text) > self.most or not text.isprintable():
            raise UsageError(
                f"Invalid value for '{self.flag}': {quoted(text)} is not allowed; "
                f"it must be 1 to {self.most:,} characters on one line"
            )
        return text


class Targets(Value):
    """GPUs by their architecture, with commas between them."""

    def read(self, text: str) -> Words:
        parts = text.lower().split(",") if len(text) <= _NAME else [""]
        if not all(re.fullmatch(r"sm_?[0-9]{2,3}[a-z]?", part) for part in parts):
            raise UsageError(f"{self.flag} {quoted(text)} is no list of GPUs; expected for example sm89,sm120")
        return Words(parts)


class FolderName(Name):
    """A name for a folder of ours, which does not lead out of the folder that it is to be in."""

    def __init__(self, flag: str) -> None:
        super().__init__(flag, most=200)

    def read(self, text: str) -> str:
        name = super().read(text)
        if name.startswith(".") or {"/", os.sep} & set(name) or length_in_bytes(name) > self.most:
            raise UsageError(
                f"Invalid value for '{self.flag}': {quoted(text)} is no name of a folder; "
                "it must have no / in it, and no dot to begin with"
            )
        return name


class EngineName(Name):
    """An engine; with ``precision``, it may be named after it, ``NAME:PRECISION``."""

    def __init__(self, flag: str, *, precision: bool = False) -> None:
        super().__init__(flag, most=64)
        self.precision = precision

    def read(self, text: str) -> str:
        name = super().read(text)
        from lifedeploy.engines import registry

        bare = name.partition(":")[0] if self.precision else name
        if bare != registry.AUTO:
            registry.get(bare)  # raises
        return name


def _numbers(value: WholeList | RealList, text: str, form: re.Pattern[str], expected: str) -> list[Any]:
    """What is between the commas, each of it in the range.

    Raises:
        UsageError: there are too many, one is no number of this form, or beyond the range.
    """
    if text.count(",") >= value.most:
        raise UsageError(f"{value.flag} has {text.count(',') + 1:,} numbers; at most {value.most:,} are allowed")
    parts = text.split(",")
    if not all(form.fullmatch(part) for part in parts):
        raise UsageError(f"{value.flag} {quoted(text)} is no list of {expected}")
    numbers = [value.number(part) for part in parts]
    if None in numbers:
        raise value.refused(text)
    return numbers


def length_in_bytes(text: str) -> int:
    """Its length as a name in the file system; 0 if it cannot be one."""
    try:
        return len(os.fsencode(text)) if len(text) <= LONGEST_PATH else len(text)
    except UnicodeEncodeError:  # half of a surrogate pair, which no system gives us
        return 0


def _shown(text: str) -> str:
    """A number as it was typed; what is none, in quotation marks."""
    return text if len(text) <= 40 and re.fullmatch(r"[\w.,+-]+", text, re.ASCII) else quoted(text)
