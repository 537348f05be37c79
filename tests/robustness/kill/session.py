"""Kills, several at a time; and what is found after each."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Generator, Iterable, Iterator
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
        self._inputs = inputs.make(self.inputs_at)
        for writer in self.writers:
            found: list[tuple[float, Results]] = []
            for _ in range(2):
                folder = self._furnished(self.root / "undisturbed")
                began = time.monotonic()
                inputs.require(writer.argv, folder / "work", inputs.surroundings(folder))
                found.append((time.monotonic() - began, Results.of(folder / "work")))
                shutil.rmtree(folder)
            (first, one), (second, other) = found
            self.known[writer.name] = _Known(min(first, second), Expected(one, other))

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

    def _kill(self, number: int, rng: random.Random) -> Steps:
        writer = self.writers[number % len(self.writers)]
        known, folder = self.known[writer.name], self.root / "kills" / str(number)
        with_signal = rng.choice(_SIGNALS)
        earliest = 0.0 if with_signal is signal.SIGKILL else _LISTENING_S
        how, faults = "", []
        for _ in range(_TRIES):
            self._furnished(folder)
            share = rng.random()
            how = f"{with_signal.name} at {share:.1%} of {known.seconds:.1f} s"
            running = self._start(writer.argv, folder)
            ended = yield running, time.monotonic() + share * known.seconds
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
        ended = yield from _to_the_end(self._start(writer.again, folder))
        faults += _refused(writer.again, ended)
        if not faults:
            faults += self.known[writer.name].expected.differences(Results.of(folder / "work"))
            faults += _left_outside(folder)
        return faults

    def _furnished(self, folder: Path) -> Path:
        (folder / "work").mkdir(parents=True)
        commands.furnish(folder / "work", self._inputs)
        return folder

    def _start(self, argv: tuple[str, ...], folder: Path) -> Running:
        return Running(Command(argv, folder / "work", inputs.surroundings(folder)), seconds=300)


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
