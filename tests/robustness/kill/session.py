"""Kills, several at a time; and what is found after each."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tests.robustness import forked, inputs
from tests.robustness.forked import Command, Ended, Running
from tests.robustness.kill import commands
from tests.robustness.kill.commands import Writer
from tests.robustness.kill.results import Expected, Results

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_ENDING_S = 30.0  # within which a command ends that was asked to
_LISTENING_S = 0.5  # by then a command has told the system what to do with signals
_TRIES = 8  # to hit a command before it has ended by itself
_EXPORTS = 0.25  # share of kills after which an export into the same workspace is tried
_AT_WORK = 0.5  # share of kills of a command with parts that are counted from the first of these on

# A kill in progress waits for a child, or for a moment; it is told how the child has ended, if it has.
Steps = Generator[tuple[Running, float], "Ended | None", "Kill"]


@dataclass(frozen=True)
class Kill:
    """One kill, and what was found after it that should not be."""

    number: int
    writer: str
    how: str
    faults: tuple[str, ...]


@dataclass
class _Known:
    """What is known of a writer that nobody disturbs."""

    seconds: float
    working: float  # of these, from when the first of its parts is there
    expected: Expected


@dataclass
class Session:
    """Kills of one seed below ``root``, a folder that is its own."""

    root: Path
    seed: int
    inputs_at: Path
    writers: tuple[Writer, ...] = commands.WRITERS
    known: dict[str, _Known] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the inputs, and learn how every writer ends when nobody disturbs it.

        Raises:
            RuntimeError: one failed.
        """
        forked.preload(self.root)
        # Ray's own files: all clusters have them in one place, whose name has to be a short one, and none is at home.
        os.environ.update(RAY_TMPDIR=str(self.root / "ray"), RAY_AUTH_TOKEN="0" * 32)
        self._inputs = inputs.make(self.inputs_at)
        for writer in self.writers:
            (first, one), (second, other) = (self._undisturbed(writer) for _ in range(2))
            whole, working = map(min, first, second)
            self.known[writer.name] = _Known(whole, working, Expected(one, other))

    def run(self, kills: int, jobs: int) -> Iterator[Kill]:
        """Kill that many times, ``jobs`` at a time."""
        waiting = iter(range(kills))
        going: list[tuple[Steps, Running, float]] = []
        try:
            while True:
                for number in islice(waiting, jobs - len(going)):
                    steps = self._kill(number, random.Random(f"{self.seed}/{number}"))
                    going.append((steps, *next(steps)))
                if not going:
                    break
                for one in list(going):
                    steps, running, until = one
                    ended = running.poll()
                    if ended is None and time.monotonic() < until:
                        continue
                    going.remove(one)
                    try:
                        going.append((steps, *steps.send(ended)))
                    except StopIteration as done:
                        yield done.value
                time.sleep(0.002)
        finally:  # of whoever is interrupted
            for _, running, _ in going:
                running.end(signal.SIGKILL)

    def _undisturbed(self, writer: Writer) -> tuple[tuple[float, float], Results]:
        """How long a writer takes, and from when it has made the first of its parts; and what it leaves."""
        folder = self._furnished(self.root / "undisturbed", writer)
        began = first = time.monotonic()
        running = self._start(writer.argv, folder)
        while (ended := running.poll()) is None:
            if first == began and parts_of(writer, folder):
                first = time.monotonic()
            time.sleep(0.002)
        inputs.require_done(writer.argv, ended)
        end, results = time.monotonic(), Results.of(folder / "work")
        shutil.rmtree(folder)
        return (end - began, end - first), results

    def _kill(self, number: int, rng: random.Random) -> Steps:
        writer = self.writers[number % len(self.writers)]
        known, folder = self.known[writer.name], self.root / "kills" / str(number)
        with_signal = rng.choice(_SIGNALS[:1] if writer.on_ray else _SIGNALS)
        earliest = 0.0 if with_signal is signal.SIGKILL else _LISTENING_S
        how, faults = "", []
        for _ in range(_TRIES):
            self._furnished(folder, writer)
            share, at_work = rng.random(), bool(writer.parts) and rng.random() < _AT_WORK
            seconds = known.working if at_work else known.seconds
            how = f"{with_signal.name} at {share:.1%} of {seconds:.1f} s{' from its first part on' * at_work}"
            running = self._start(writer.argv, folder)
            ended = yield running, time.monotonic()
            while at_work and ended is None and not parts_of(writer, folder):
                ended = yield running, time.monotonic()
            if ended is None:
                ended = yield running, time.monotonic() + share * seconds
            if ended is None:
                running.end(with_signal)
                ended = yield running, time.monotonic() + _ENDING_S
                if ended is None:
                    running.end(signal.SIGKILL)
                    faults.append(f"it did not end within {_ENDING_S:.0f} s")
                    ended = yield running, time.monotonic() + _ENDING_S
                elif ended.code != 0 and not (ended.code == -with_signal and ended.seconds < earliest):
                    faults += _asked_to_end(ended, folder) if with_signal is not signal.SIGKILL else []
                    break
            shutil.rmtree(folder)
            if faults:
                return Kill(number, writer.name, how, tuple(faults))
        else:
            return Kill(number, writer.name, how, ("it had ended before, however early it was to be killed",))
        faults += yield from self._after(writer, folder, rng)
        shutil.rmtree(folder, ignore_errors=True)
        return Kill(number, writer.name, how, tuple(faults))

    def _after(
        self, writer: Writer, folder: Path, rng: random.Random
    ) -> Generator[tuple[Running, float], Ended | None, list[str]]:
        """What others find, and what the same command comes to."""
        faults = []
        beside = folder.with_name(f"{folder.name}-beside")
        shutil.copytree(folder, beside, symlinks=True)
        others = [commands.READERS[rng.randrange(len(commands.READERS))], commands.READERS[0]]
        others += [rng.choice(commands.EXPORTS)] if rng.random() < _EXPORTS else []
        for argv in others:
            ended = yield from _to_the_end(self._start(argv, beside))
            faults += _refused(argv, ended)
        shutil.rmtree(beside)
        before = parts_of(writer, folder)
        ended = yield from _to_the_end(self._start(writer.again, folder))
        faults += _refused(writer.again, ended)
        if not faults:
            faults += made_again(writer, folder, before)
            faults += self.known[writer.name].expected.differences(Results.of(folder / "work"))
            faults += _left_outside(folder)
        return faults

    def _furnished(self, folder: Path, writer: Writer) -> Path:
        (folder / "work").mkdir(parents=True)
        commands.furnish(folder / "work", self._inputs, writer)
        return folder

    def _start(self, argv: tuple[str, ...], folder: Path) -> Running:
        return Running(Command(argv, folder / "work", inputs.surroundings(folder)), seconds=300)


def parts_of(writer: Writer, folder: Path) -> dict[str, tuple[int, int]]:
    """Files that come one after the other, as far as they are there: name → what tells whether it is the same one."""
    found = {}
    for path in (folder / "work").glob(writer.parts) if writer.parts else ():
        with suppress(FileNotFoundError):  # it has been put together with others meanwhile
            status = path.stat()
            found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def made_again(writer: Writer, folder: Path, before: dict[str, tuple[int, int]]) -> list[str]:
    """Those that were there ``before``, and were made once more all the same."""
    if not before:
        return []
    now = parts_of(writer, folder)  # none, where one file is made of all
    faults = [f"{name} was made again" for name, file in sorted(before.items()) if now and now.get(name) != file]
    taken = json.loads((folder / "work/score.json").read_bytes())["parts_before"]
    return faults + ([f"of {len(before)} parts that were there {taken} were taken"] if taken < len(before) else [])


def _to_the_end(running: Running) -> Generator[tuple[Running, float], Ended | None, Ended]:
    ended = yield running, float("inf")
    assert ended is not None
    return ended


def _refused(argv: tuple[str, ...], ended: Ended) -> list[str]:
    if ended.code == 0:
        return []
    said = ended.err.decode(errors="replace").strip().splitlines()
    return [f"lifedeploy {' '.join(argv)} then ended with {ended.code}: {(said or ['without a word'])[-1][:300]}"]


def _asked_to_end(ended: Ended, folder: Path) -> list[str]:
    """What is wrong with how a command ended that could clean up behind itself."""
    said = ended.err.decode(errors="replace")
    faults = [f"it ended with {ended.code}, without cleaning up"] if ended.code < 0 else []
    faults += ["it showed a traceback"] if "Traceback" in said else []
    return faults + _left_outside(folder) + [f"{name} was left" for name in _hidden(folder / "work")]


def _left_outside(folder: Path) -> list[str]:
    """Temporary files outside the workspace."""
    found = [str(path.relative_to(folder)) for name in ("tmp", "home") for path in _below(folder / name)]
    return [f"{name} was left" for name in (*found, *_hidden(folder / "cache"))]


def _hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in _below(folder) if path.name.startswith(".")]


def _below(folder: Path) -> Iterable[Path]:
    return folder.rglob("*") if folder.is_dir() else ()
