"""Where text leaves us: nothing of others is obeyed by a terminal, and no terminal or pipe ends a command badly."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lifedeploy.cli import console, encoding
from lifedeploy.progress import Step

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[bold red]x[/bold red][/]:smile:\udcff\r\b"
# rich drops some of it (BEL, BS, CR) where it is in a Text; what it would pass on is shown.
SHOWN = (r"\x1b]0;owned", r"\x1b[2J\x9b31m\u202e[bold red]x[/bold red][/]:smile:\xff")
PROGRAM = (sys.executable, "-P", "-m", "lifedeploy")


class Sink(io.StringIO):
    """A stream of some encoding, which shows what is sent to it."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        return self._encoding


@pytest.fixture
def shown(monkeypatch):
    """What a console writes of something, in an encoding."""

    def show(renderable: object, encoding: str = "utf-8", width: int = 200) -> str:
        sink = Sink(encoding)
        monkeypatch.setattr(sys, "stdout", sink)
        monkeypatch.setenv("COLUMNS", str(width))
        console.Console().print(renderable)
        return sink.getvalue()

    return show


@pytest.mark.parametrize("way", ["print", "text", "panel", "title", "cell", "header", "group", "assembled"])
def test_nothing_of_others_is_obeyed(way, shown):
    table = Table(EVIL if way == "header" else "column " * 20, title=EVIL if way == "title" else None)
    table.add_row(EVIL if way == "cell" else "value")
    renderable = {
        "print": EVIL,
        "text": Text(EVIL),
        "panel": Panel(Text(EVIL), title=Text(EVIL)),
        "group": Group(EVIL, Text(EVIL)),
        "assembled": Text.assemble(("bold", "bold"), EVIL),
    }.get(way, table)
    said = shown(renderable)
    assert all(part in said for part in SHOWN)
    assert all(character.isprintable() for character in said.replace("\n", ""))


def test_progress_and_status_show_text_as_it_is(monkeypatch):
    sink = Sink()
    terminal = console.Console(stderr=True)
    terminal._force_terminal = terminal.is_interactive = True
    monkeypatch.setattr(console, "err", terminal)
    monkeypatch.setattr(sys, "stderr", sink)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    seen = 0.3  # seconds, in which a frame is drawn
    with console.working() as say:
        say(EVIL)
        time.sleep(seen)
    with console.watching(left=True) as (say, progress):
        say(EVIL)
        time.sleep(seen)
        progress(Step("[/]" + EVIL[:20], 0.5, "1 of 2 [/]"))
        time.sleep(seen)
        progress(Step(EVIL, 0.5, EVIL))
        time.sleep(seen)
    said = sink.getvalue()
    assert [said.count(part) >= 4 for part in SHOWN] == [True, True], said
    assert "]0;owned\x07" not in said and "\x9b" not in said and "\u202e" not in said
    assert "1 of 2 [/]" in said


def test_messages_are_one_line_of_bounded_length(capsys):
    console.fail("first\nsecond\x1b[2J" + "x" * 1_000_000, "do\nthis")
    console.note("one\ntwo\x1b[2J")
    lines = capsys.readouterr().err.splitlines()
    assert [line[:20] for line in lines] == ["error: first second\\", "hint: do this", "note: one two\\x1b[2J"]
    assert len(lines[0]) < 700


def test_a_width_that_nobody_has_is_not_filled(monkeypatch, shown):
    assert len(shown(Panel("x"), width=10**9).splitlines()[0]) == 1000


@pytest.mark.parametrize("columns", ["²", "-5", "0", "99999999999", "wide"])
def test_an_odd_size_of_the_terminal_ends_nothing(columns):
    for arguments in (("--version",), ("inspect", "--help")):
        done = ended(*arguments, more={"COLUMNS": columns})
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(done.stdout) < 20_000


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "no-such-encoding"])
def test_other_encodings_get_what_they_have(encoding, shown):
    said = shown(Panel(Text("16 → 11 ± 1 %, 中 ρ ≤ 1×")), encoding)
    said.encode("cp1252" if encoding == "cp1252" else "latin-1" if encoding == "latin-1" else "ascii")
    assert "16 -> 11" in said and r"\u4e2d" in said and "rho" in said and "<=" in said
    assert said.startswith("+-")
    assert ("±" in said) == (encoding in ("cp1252", "latin-1"))


def test_what_libraries_warn_of_and_log_is_said_by_us(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    console.take_over_warnings()
    console._python_warning(UserWarning("odd\x1b[2J\nfile"), UserWarning, "x.py", 1)
    logging.lastResort.handle(logging.LogRecord("lib", logging.WARNING, "x.py", 1, "bad %s", ("\x9b31m",), None))
    assert capsys.readouterr().err.splitlines() == [
        r"warning: UserWarning: odd\x1b[2J file",
        r"warning: lib: bad \x9b31m",
    ]


def ended(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "check": False, "timeout": 120, **options}
    environment = {**os.environ, "COLUMNS": "200", **options.pop("more", {})}
    return subprocess.run([*PROGRAM, *arguments], env=environment, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_command_ends_well_on_other_terminals(encoding, workspace):
    more = {"LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = ended("inspect", more=more)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "16->11->8->5" in done.stdout.decode(encoding)
    document = ended("inspect", "--json", "-", more=more)
    assert json.loads(document.stdout.decode("utf-8"))["spec"]["backbone"] == "test_vit"
    refused = ended("inspect", "→\udcff", more=more)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.startswith(rb"error: ->\xff does not exist")


@pytest.mark.parametrize("arguments", [("--version",), ("inspect",), ("inspect", "--json", "-"), ("--help",)])
def test_a_reader_that_leaves_ends_it_quietly(arguments, workspace):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = ended(*arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.returncode in (1, 141)
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("--version",), ("inspect",), ("inspect", "--json", "-")])
def test_a_full_standard_output_is_one_line(arguments, workspace):
    with Path("/dev/full").open("wb") as full:
        done = ended(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: standard output cannot be written: No space left on device"]


def test_closed_streams_are_no_bug(workspace):
    program = " ".join(PROGRAM)
    for line, code in (
        (f"{program} inspect >&-", 0),
        (f"{program} inspect --json - >&-", 1),
        (f"{program} inspect nowhere 2>&-", 1),
        (f"{program} inspect >&- 2>&- <&-", 0),
    ):
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=120)
        assert done.returncode == code, line
        assert b"Traceback" not in done.stderr
    encoding.silence(None)  # standard output that was closed, when standard error is full


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_device_stays_a_device(option, workspace, lifedeploy):
    before = Path("/dev/null").stat().st_rdev
    short = ("--batch", "1", "--budget", "0.1", "--no-memory")
    done = lifedeploy("bench", "--engine", "fake", *short, option, "/dev/null")
    assert done.code == 0, done.err
    assert Path("/dev/null").stat().st_rdev == before != 0
    if option == "--json":
        full = lifedeploy("inspect", "--json", "/dev/full")
        assert full.code == 1
        assert full.lines == ["error: /dev/full: No space left on device"]


def test_a_report_through_a_pipe_by_its_name(workspace):
    done = ended("inspect", "--json", "/dev/stderr")
    assert done.returncode == 0
    document, _, line = done.stderr.decode().rstrip("\n").rpartition("\n")
    assert line == "wrote /dev/stderr"
    assert json.loads(document)["spec"]["backbone"] == "test_vit"


def test_names_that_are_no_utf8_are_shown(workspace, lifedeploy, tmp_path):
    photo = tmp_path / "caf\udce9.png"
    from lifedeploy.data.samples import photo_folder

    photo.write_bytes((photo_folder() / "chelsea.jpg").read_bytes())
    done = ended("predict", os.fsencode(photo))
    assert done.returncode == 0, done.stderr
    assert r"caf\xe9.png" in done.stdout.decode()


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (MemoryError(), "there is not enough memory for this", "a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "there is not enough memory", ""),
        (OSError("no number\x1b[2J"), r"no number\x1b[2J", None),
        (OSError(28, "No space left on device", "a\nb"), "a b: No space left on device", None),
    ],
    ids=["memory", "torch", "plain", "named"],
)
def test_errors_of_the_machine_are_no_bug(error, said, hint, lifedeploy, monkeypatch, workspace):
    from lifedeploy.workflows import inspect

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "inspect", broken)
    done = lifedeploy("inspect")
    assert done.code == 1
    assert said in done.lines[0]
    assert len(done.lines) == (1 if hint is None else 2)
    assert "this is a bug" not in done.err
