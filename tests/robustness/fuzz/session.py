"""Cases one after another, several at a time: made, run, judged, and taken away."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tests.robustness import forked, inputs
from tests.robustness.forked import Command, Ended, Running
from tests.robustness.fuzz import (  # noqa: F401 (their kinds)
    graphs,
    images,
    manifests,
    method_options,
    options,
    places,
    runs,
    scores,
    weights,
)
from tests.robustness.fuzz.case import KINDS, Case, Place
from tests.robustness.fuzz.judge import FAULTS, Fault, Listing, judged

_SECONDS = 60.0  # after which a command hangs


@dataclass(frozen=True)
class Found:
    """How a case ended, and its faults."""

    number: int
    kind: str
    case: Case
    ended: Ended
    faults: tuple[Fault, ...]


@dataclass
class Tally:
    """How the cases of a kind ended."""

    done: int = 0
    refused: int = 0
    seconds: float = 0.0

    def add(self, ended: Ended) -> None:
        """Count one more."""
        self.done += ended.code == 0
        self.refused += ended.code != 0
        self.seconds += ended.seconds

    def __str__(self) -> str:
        return f"{self.done} done, {self.refused} refused, {self.seconds:.0f} s"


@dataclass
class _Open:
    number: int
    kind: str
    case: Case
    folder: Path
    before: Listing
    pipes: list[int]
    running: Running


class Session:
    """Runs cases of one seed below ``root``, a folder that is its own."""

    def __init__(
        self, root: Path, seed: int, inputs_at: Path, *, kinds: Sequence[str] = (), keep: Path | None = None
    ) -> None:
        """``kinds``: only these; by default all, each with its share. ``keep``: where failures are copied to."""
        self._root, self._seed, self._keep = root, seed, keep
        self._kinds = [KINDS[name] for name in (kinds or KINDS)]
        self.tallies: dict[str, Tally] = {}  # by kind
        forked.preload(root)
        self._inputs = inputs.make(inputs_at)

    def run(self, numbers: Iterable[int], jobs: int) -> Iterator[Found]:
        """Run the cases of these numbers, ``jobs`` at a time; all of them, as they end."""
        waiting = iter(numbers)
        going: list[_Open] = []
        try:
            while going := going + [self._start(number) for number in islice(waiting, jobs - len(going))]:
                for one in list(going):
                    _drain(one.pipes)
                    ended = one.running.poll()
                    if ended is not None:
                        going.remove(one)
                        yield self._end(one, ended)
                time.sleep(0.005)
        finally:  # of whoever is interrupted
            for one in going:
                one.running.end(signal.SIGKILL)

    def _start(self, number: int) -> _Open:
        rng = random.Random(f"{self._seed}/{number}")
        kind = rng.choices(self._kinds, [kind.share for kind in self._kinds])[0]
        folder = self._root / "cases" / str(number)
        work = folder / "work"
        work.mkdir(parents=True)
        case = kind.make(Place(work, self._inputs, rng))
        surroundings = inputs.surroundings(folder)
        surroundings["PATH"] = f"{work}/bin:{os.environ['PATH']}"
        before = Listing.of(work)
        # Held open at both ends: a report can be written into a pipe, and whoever reads from one waits for ever.
        pipes = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in before.pipes(work)]
        command = Command(
            tuple(case.argv),
            work,
            surroundings | {"COLUMNS": "200"} | case.environment,
            case.encoding,
            case.terminal,
            case.largest_file,
        )
        return _Open(number, kind.name, case, folder, before, pipes, Running(command, seconds=_SECONDS))

    def _end(self, one: _Open, ended: Ended) -> Found:
        self.tallies.setdefault(one.kind, Tally()).add(ended)
        for pipe in one.pipes:
            os.close(pipe)
        faults = judged(one.case, ended, one.folder, one.before)
        found = Found(one.number, one.kind, one.case, ended, tuple(faults))
        if faults and self._keep is not None:
            self._keep_case(found, one.folder)
        shutil.rmtree(one.folder, ignore_errors=True)
        return found

    def _keep_case(self, found: Found, folder: Path) -> None:
        assert self._keep is not None
        target = self._keep / str(found.number)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        # Pipes and devices are no files to copy.
        ignored = [
            path.name
            for path in (folder / "work").rglob("*")
            if path.exists() and not (path.is_file() or path.is_dir())
        ]
        shutil.copytree(folder / "work", target / "work", symlinks=True, ignore=lambda *_: ignored)
        (target / "report.txt").write_text(described(found, whole=True), encoding="utf-8", errors="backslashreplace")


def _drain(pipes: Sequence[int]) -> None:
    """Read what was written into pipes, as whoever waits there would."""
    for pipe in pipes:
        with suppress(BlockingIOError):
            os.read(pipe, 1024**2)


def described(found: Found, *, whole: bool = False) -> str:
    """What a case is, and its faults; ``whole``: and the command, and all that it said."""
    lines = [f"case {found.number} ({found.kind}): {found.case.about}"]
    lines += [f"    {fault.name}: {fault.found}" for fault in found.faults]
    if whole:
        lines.append("    " + shlex.join(["lifedeploy", *found.case.argv]))
        lines.append(
            f"    ended with {found.ended.code} after {found.ended.seconds:.1f} s, {found.ended.peak >> 20} MiB"
        )
        for name, said in (("out", found.ended.out), ("err", found.ended.err)):
            lines.append(f"--- {name}\n{said.decode(found.case.encoding, 'backslashreplace')}")
    text = "\n".join(lines)
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def last_words(found: Found) -> str:
    """The error that a case ended with."""
    said = (found.ended.err or found.ended.out).decode(found.case.encoding, "backslashreplace")
    errors = [line for line in said.splitlines() if "error: " in line]
    return ascii(errors[-1])[1:-1] if errors else f"ended with {found.ended.code}"


def summary(count: int, found: Sequence[Found]) -> str:
    """The line of counts: cases with each fault."""
    faults = Counter(name for one in found for name in {fault.name for fault in one.faults})
    return f"{count:,} cases: " + ", ".join(f"{faults[name]} {word}" for name, word in FAULTS.items())


def progress(done: str) -> None:
    """A line for whoever waits."""
    print(done, file=sys.stderr, flush=True)
