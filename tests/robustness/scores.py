"""``score`` killed at random moments: ``python -m tests.robustness.scores --kills 30 [--on ray] [--seed 0]``.

A job is ended by ``kill -9`` again and again, somewhere on its way, and begun again by the same command, until it ends
by itself; then the next one. Its rows must be those of a job that nobody disturbed, and what was finished must be the
very files that were there when it was killed.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lifedeploy import children
from lifedeploy.data.samples import PHOTOS, photo_folder

ROWS, PART = 1200, 40
OUTPUTS = ("rows", "rows.jsonl")  # a folder of parts; one file of all of them
_KILLED_AT_MOST = 3  # times, one job
_MOST_S = 300.0  # that a job may take


@dataclass(frozen=True)
class Job:
    """A command, and where it puts its rows."""

    folder: Path
    words: tuple[str, ...]
    output: str

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """Name → which file it is, of the parts that are there."""
        place = self.folder / (self.output + ".parts" if "." in self.output else self.output)
        status = {path.name: path.stat() for path in place.glob("part-*")} if place.is_dir() else {}
        return {name: (each.st_ino, each.st_mtime_ns) for name, each in status.items()}

    @property
    def rows(self) -> list[bytes]:
        """What has come of it."""
        place = self.folder / self.output
        files = sorted(place.glob("part-*")) if place.is_dir() else [place]
        return [line for path in files for line in path.read_bytes().splitlines()]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin it, or go on with it."""
        return subprocess.Popen(
            children.command("lifedeploy", *self.words),
            cwd=self.folder,
            env=children.environment({"OMP_NUM_THREADS": "1"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def finish(self) -> float:
        """Let it end by itself; the seconds that it takes.

        Raises:
            RuntimeError: it fails.
        """
        began = time.monotonic()
        process = self.start()
        _, said = process.communicate(timeout=_MOST_S)
        if process.returncode:
            raise RuntimeError(said.decode(errors="replace"))
        return time.monotonic() - began


def kills(model: Path, count: int, seed: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """What is wrong after each kill."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="scores-") as temporary:
        root = Path(temporary)
        _manifest(root / "many.csv")
        wanted, seconds = {}, {}
        for output in OUTPUTS:
            job = _job(root / f"unbroken-{len(wanted)}", root, model, output, more)
            seconds[output] = job.finish()
            wanted[output] = job.rows
        done = 0
        while done < count:
            output = OUTPUTS[done % len(OUTPUTS)]
            job = _job(root / f"job-{done}", root, model, output, more)
            times = min(chance.randint(1, _KILLED_AT_MOST), count - done)
            faults: list[list[str]] = [_killed(job, chance.uniform(0.1, 1.1) * seconds[output]) for _ in range(times)]
            before = job.parts
            job.finish()
            if job.rows != wanted[output]:
                faults[-1].append("its rows are other ones")
            if output == OUTPUTS[0]:
                faults[-1] += redone(before, job.parts)
            faults[-1] += [f"{path.name} is left" for path in job.folder.rglob("*lifedeploy-tmp")]
            shutil.rmtree(job.folder)
            yield from faults
            done += times


def _killed(job: Job, after_s: float) -> list[str]:
    """Kill it after so many seconds, if it takes as long; what is wrong with what it leaves."""
    before = job.parts
    process = job.start()
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if job.output in OUTPUTS[1:] and not job.parts:
        return []  # they have become one file
    return redone(before, job.parts)


def redone(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> list[str]:
    """Names of the parts that are other files than they were."""
    return [f"{name} was finished, and is done again" for name, file in before.items() if now.get(name) != file]


def _job(folder: Path, root: Path, model: Path, output: str, more: Sequence[str]) -> Job:
    folder.mkdir()
    words = ("score", str(model), str(root / "many.csv"), "--out", output, "--part", str(PART), "--batch", "8")
    return Job(folder, (*words, "--keep", "logits", "--format", "jsonl", *more), output)


def _manifest(path: Path) -> None:
    names = [str(photo_folder() / name) for name in PHOTOS] + ["nothing.png"]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image"], *([names[row * row % len(names)]] for row in range(ROWS))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, and say in one line what it came to; 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.scores", description=__doc__)
    parser.add_argument("model", type=Path, help="an export or engine of a small model")
    parser.add_argument("--kills", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of their moments (default: 0)")
    parser.add_argument("--on", choices=("here", "ray"), default="here")
    given = parser.parse_args(arguments)
    more = ("--on", "ray", "--actors", "2", "--actor-cores", "1") if given.on == "ray" else ("--threads", "1")
    good = 0
    for number, faults in enumerate(kills(given.model.resolve(), given.kills, given.seed, more), 1):
        good += not faults
        for fault in faults:
            print(f"kill {number}: {fault}", flush=True)
        if number % 10 == 0:
            print(f"{number} of {given.kills} kills", file=sys.stderr, flush=True)
    print(f"{good} of {given.kills} kills on {given.on}: the same rows, and nothing finished done again")
    return 0 if good == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
