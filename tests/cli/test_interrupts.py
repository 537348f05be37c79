"""Signals that ask for an end, each at its moment: one line, exit code 1, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lifedeploy.cli import interrupts

SAID = "error: interrupted; nothing half-written was left behind"
EXPORT = ("export", "-b", "test_vit", "--weights", "random", "--img-size", "64", "-w", "w")
# Writes into a folder that is not finished, and says that it is there.
WRITER = """
import sys, time
from lifedeploy.cli import app, interrupts
from lifedeploy.workflows import inspect
from lifedeploy.writing import atomic_folder
from pathlib import Path

def write(*_):
    with atomic_folder(Path("made")) as folder:
        (folder / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)

inspect.inspect = write
sys.argv = ["lifedeploy", "inspect"]
app.main()
"""

# A library that catches everything, and goes on.
DEAF = """
import sys, time
from lifedeploy.cli import app
from lifedeploy.workflows import inspect

def deaf(*_):
    print("deaf", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass
    time.sleep(60)

inspect.inspect = deaf
sys.argv = ["lifedeploy", "inspect"]
app.main()
"""


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """A process that ignores no signal, whatever started the tests (``nohup``, a shell in the background) ignores."""

    def usual() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=usual
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_while_writing_leaves_nothing(name, times, tmp_path):
    child = started([sys.executable, "-c", WRITER], tmp_path)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    assert list(tmp_path.iterdir()) != []
    for _ in range(times):
        child.send_signal(getattr(signal, name))
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert said.splitlines() == [SAID]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_at_the_very_end_changes_nothing(tmp_path):
    child = started([sys.executable, "-c", WRITER], tmp_path)
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() == f"{SAID}\n"  # and Python takes a moment to end
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (1, "")


def test_a_signal_that_a_library_drops_comes_again(tmp_path):
    child = started([sys.executable, "-c", DEAF], tmp_path)
    assert child.stdout is not None and child.stdout.readline() == "deaf\n"
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (1, f"{SAID}\n")


@pytest.mark.parametrize(("name", "after_s"), [("SIGTERM", 0.4), ("SIGHUP", 1.5)])
def test_an_export_that_is_ended_leaves_nothing(name, after_s, tmp_path):
    child = started([sys.executable, "-P", "-m", "lifedeploy", *EXPORT], tmp_path)
    time.sleep(after_s)
    child.send_signal(getattr(signal, name))
    _, said = child.communicate(timeout=120)
    # Before Python has come to us, the system ends it.
    assert (child.returncode, said) in ((1, f"{SAID}\n"), (-getattr(signal, name), ""))
    assert [path for path in tmp_path.rglob("*") if path.is_file() or "tmp" in path.name] == []


def test_what_the_parent_ignores_is_ignored(tmp_path):
    script = WRITER.replace("time.sleep(60)", "time.sleep(1)")
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGHUP)
    _, said = child.communicate(timeout=60)
    assert SAID not in said
    assert (tmp_path / "made" / "half").exists()


def test_forked_workers_have_the_usual_handlers():
    with interrupts.as_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) is interrupts._interrupt
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            usual = signal.getsignal(signal.SIGTERM) is not interrupts._interrupt
            os.write(writing, b"usual" if usual else b"ours")
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            assert answer.read() == b"usual"
        assert signal.getsignal(signal.SIGTERM) is interrupts._interrupt
    assert signal.getsignal(signal.SIGTERM) is not interrupts._interrupt


def test_handlers_are_left_as_they_were_found():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interrupts.as_ctrl_c(), interrupts.as_ctrl_c():
        assert not interrupts.came()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_the_program_and_the_module_are_one():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"lifedeploy": "lifedeploy.__main__:main"}
