"""Text that leaves us: whatever it was, a terminal shows it and does nothing else."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy import text
from lifedeploy.errors import LifedeployError

# Lone surrogates too: how Python carries bytes of file names that are no UTF-8.
anything = st.text(st.characters(exclude_categories=()), max_size=300)


@given(anything)
def test_printable_text_prints_and_is_one_line(given_text):
    shown = text.printable(given_text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert text.printable(shown) == shown


def test_colours_go_and_nothing_else():
    assert text.without_colours("\x1b[1;31mred\x1b[0m, \x1b[mplain \x1b[2Jand [31m") == "red, plain \x1b[2Jand [31m"


@given(anything)
def test_what_prints_stays_as_it_is(given_text):
    plain = "".join(letter for letter in given_text if letter.isprintable())
    assert text.printable(plain) == plain


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("turned\u202eround", "turned\\u202eround"),
        ("caf\udce9", "caf\\xe9"),
        ("line\u2028end", "line\\u2028end"),
        ("\ufeffcat", "\\ufeffcat"),
        ("café → ρ", "café → ρ"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(given_text, shown):
    assert text.printable(given_text) == shown


@given(anything)
def test_one_line_keeps_the_words(given_text):
    line = text.one_line(given_text)
    assert line.isprintable()
    assert "  " not in line.replace("\\", "")
    assert line == text.printable(" ".join(given_text.split()))


@given(anything, st.integers(10, 400))
def test_shortened_text_fits(given_text, width):
    short = text.shortened(given_text, width)
    assert len(short) <= width
    assert short.isprintable()
    line = text.one_line(given_text)
    if len(line) <= width:
        assert short == line


def test_of_a_long_text_beginning_and_end_are_shown_without_reading_the_middle():
    given_text = "begin" + "x" * 10_000_000 + "end"
    short = text.shortened(given_text)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert " … " in short
    assert len(short) <= text.LINE


def test_white_space_of_any_length_is_no_text():
    assert text.shortened(" \n\t" * 10) == ""
    assert text.shortened(" \n\t" * 100_000).strip(" …") == ""


@given(st.recursive(st.none() | st.floats() | st.integers() | anything | st.binary(), st.lists))
def test_a_quoted_value_is_at_most_a_line(value):
    shown = text.quoted(value)
    assert len(shown) <= text.LINE
    assert shown.isprintable()


def test_values_that_python_cannot_write_are_quoted_too():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert text.quoted(nested) == "a list"
    assert text.quoted(10**6000) == "a int"
    assert text.quoted("it's") == '"it\'s"'
    while nested:  # taken apart here: Python's own way is as deep as the list
        nested = nested.pop()  # type: ignore[assignment]


@given(anything.filter(lambda given_text: given_text.strip()))
def test_every_error_is_one_line_that_prints(given_text):
    message = LifedeployError(given_text * 50).message
    assert message.isprintable()
    assert len(message) <= 600


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@given(given_text=anything)
def test_any_terminal_takes_any_text(encoding, given_text):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=text.TERMINAL, newline="")
    terminal.write(text.printable(given_text))
    terminal.flush()


def test_what_a_terminal_lacks_is_said_in_its_own_letters():
    assert "224→98 · ρ ≤ 0.7 … ±1".encode("ascii", text.TERMINAL) == b"224->98 * rho <= 0.7 ... +-1"
    assert "é\udce9".encode("ascii", text.TERMINAL) == b"\\xe9\\xe9"
    with pytest.raises(UnicodeDecodeError):  # only for what is written
        b"\xff".decode("ascii", text.TERMINAL)


def test_help_on_a_terminal_of_ascii():
    done = subprocess.run(
        [sys.executable, "-m", "lifedeploy", "bench", "--help"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert json.dumps(done.stdout.decode("ascii"))
