"""Values that nobody meant: texts, numbers, and changes to bytes and to JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What a terminal would obey, or draw where it does not belong. Each is looked for in what commands say.
ESCAPES = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x9b31mred",
    "\x85next\x9dline",
    "bell\x07back\x08\x08\x08",
    "turned\u202eround",
    "isolated\u2066text",
    "line\u2028end",
    "\r\x1b[Koverwritten",
)
MARKUP = ("[bold]markup[/bold]", "[/]", "[/nope]", "[link=file:///etc]x[/link]", "$x$", "$\\frac{1}{", "{0.x}", "%s%n")
ODD_TEXTS = (
    *ESCAPES,
    *MARKUP,
    "two\nlines",
    "tab\there",
    "caf\udce9",  # a byte that is no UTF-8, as Python carries it
    "é→ρ≤²",
    "\ufeffcat",
    "a" * 300,  # longer than a file's name may be
    "long " * 20_000,
    "../up",
    "/proc/self/mem",
    "missing/inside",
    ":life",
    "~",
    "-",
    "--",
    " ",
    "",
)
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "-0", "1e26", "1e400", "1e-320", "18446744073709551616", "9" * 5000, "²", "٣", "½",
    "", " ", "abc", "0x10", "1_000", "1.5", "--", "+", "1,2", ",", "1e", "None", "true", "\x1b[31m7", "7\n8", "७",
)  # fmt: skip
LISTS = (
    "1,",
    ",",
    "1,,2",
    "nan,1",
    "inf",
    "0",
    "-1",
    "1e26",
    "²,³",
    "2,1",
    "1" + ",1" * 5000,
    "9" * 5000,
    "a,b",
    "1 2",
)
SIZES = (
    "²",
    "0",
    "-32",
    "32x",
    "x32",
    "32x32x32",
    "1e3",
    "nan",
    "٣٢",
    "32×32",
    "9" * 5000,
    "99999999",
    "3",
    "1x1",
    " ",
)


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str, bool]:
    """Some bytes of a file changed; what was done, and whether nothing can be read any more."""
    way = rng.choice(("flips", "flips", "flips", "cut", "empty", "noise", "zeros", "text", "doubled", "hole"))
    if way == "flips":
        flipped, count = bytearray(data), rng.choice((1, 8, 64))
        reach = rng.choice((64, 1024, len(data)))  # headers are where it matters
        for _ in range(count):
            flipped[rng.randrange(min(reach, len(data)))] = rng.randrange(256)
        return bytes(flipped), f"{count} bytes of the first {reach} flipped", False
    if way == "cut":
        length = rng.randrange(max(len(data) - 1, 1))
        return data[:length], f"cut after {length} bytes", False
    if way == "hole":
        at = rng.randrange(len(data))
        return data[:at] + data[at + rng.randrange(1, 5000) :], "a piece taken out", False
    if way == "doubled":
        return data + data, "twice", False
    bad = {
        "empty": b"",
        "noise": rng.randbytes(rng.choice((1, 100, 10_000))),
        "zeros": bytes(5000),
        "text": b"not what it says it is\n" * 40,
    }
    return bad[way], way, True


@dataclass(frozen=True)
class Change:
    """JSON text that was changed."""

    text: bytes
    about: str
    path: tuple[Any, ...]  # where; () for the text as a whole
    broken: bool  # no JSON any more: nobody may take it
    retyped: bool  # a value of another type than all readers expect there


def change_json(data: Any, rng: random.Random) -> Change:
    """One thing in ``data`` changed, or its text as a whole."""
    return _whole(data, rng) if rng.random() < 0.2 else _inside(data, rng)


def _whole(data: Any, rng: random.Random) -> Change:
    text = json.dumps(data).encode()
    ways = {
        "a list at the root": (json.dumps([data]).encode(), False, True),
        "a number at the root": (b"7", False, True),
        "null": (b"null", False, True),
        "an empty object": (b"{}", False, True),
        "empty": (b"", True, False),
        "a byte order mark before it": (b"\xef\xbb\xbf" + text, False, False),
        "UTF-16": (json.dumps(data).encode("utf-16"), True, False),
        "no UTF-8": (text.replace(b'"', b'"\xe9', 1), True, False),
        "cut": (text[: rng.randrange(len(text))], True, False),
        "followed by more": (text + b" {}", True, False),
        "nested 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, False, True),
        "open 100,000 deep": (b'{"a":' * 100_000, True, False),
        "a null byte in it": (text[:20] + b"\0" + text[20:], True, False),
    }
    about = rng.choice(sorted(ways))
    changed, broken, retyped = ways[about]
    return Change(changed, about, (), broken, retyped)


def _inside(data: Any, rng: random.Random) -> Change:
    data = json.loads(json.dumps(data))
    path = rng.choice(list(_paths(data)))
    *above, last = path
    parent = data
    for step in above:
        parent = parent[step]
    old = parent[last]
    way = rng.choice(("type", "type", "type", "value", "value", "gone", "deep", "nan"))
    if way == "gone":
        del parent[last]
        return Change(json.dumps(data).encode(), f"{path} is missing", path, False, False)
    if way in ("deep", "nan"):  # no values of Python's: put into the text
        parent[last] = "PUT HERE"
        new = b"[" * 100_000 + b"]" * 100_000 if way == "deep" else rng.choice((b"NaN", b"Infinity", b"-Infinity"))
        about = "nested 100,000 deep" if way == "deep" else new.decode()
        text = json.dumps(data).encode().replace(b'"PUT HERE"', new, 1)
        return Change(text, f"{path} is {about}", path, way == "nan", way == "deep")
    parent[last] = new = _of_another_type(old, rng) if way == "type" else _value_like(old, rng)
    shown = ascii(new)[:60]
    # Whole numbers that are no integers, and null for an empty thing, are a matter of taste.
    return Change(json.dumps(data).encode(), f"{path} is {shown}", path, False, way == "type" and old is not None)


def _of_another_type(old: Any, rng: random.Random) -> Any:
    choices: list[Any] = [{"a": 1}, [[1]], [{}], "text", 7, 7.5, True]
    fits = {str: 1, bool: 1, dict: 1, list: 2}  # of the choices, how many are of this type
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        return rng.choice([{"a": 1}, [[1]], "text"])
    kept = [choice for choice in choices if type(choice) is not type(old)]
    assert len(kept) == len(choices) - fits.get(type(old), 0)
    return rng.choice(kept)


def _value_like(old: Any, rng: random.Random) -> Any:
    if isinstance(old, bool) or old is None:
        return rng.choice((None, 0, not old))
    if isinstance(old, (int, float)):
        return rng.choice((0, -1, 10**9, 2**63, 2**64, 10**400, 1e308, 1e-300, -old, old + 1, 0.5, None))
    if isinstance(old, str):
        return rng.choice((*ODD_TEXTS, "\ud800", "nul\0byte", "x" * 1_000_000, old + "\n"))
    if isinstance(old, list):
        return rng.choice(([], old * 2, old[:-1], [None], old * 1000, None))
    return rng.choice(({}, None, {"\x1b[31m": 1}, dict.fromkeys(map(str, range(10_000)), 1)))


def _paths(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _paths(value, (*above, key))
