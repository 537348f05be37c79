"""What the benchmarks share: running commands, timing in turns, tables, and results that are kept."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy import children
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.engines.lanes import Lane
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, fast_bf16, identity, listed

ROOT = Path(__file__).parents[1]
BF16 = ("bf16",) if fast_bf16() else ()  # the precisions that only some CPUs have


# Commands.


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    seconds: float
    peak_mib: float


def lifedeploy(*words: object, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Usage:
    """Run ``lifedeploy WORDS…`` in a folder, its output shown.

    Raises:
        SystemExit: it failed.
    """
    command = [str(word) for word in words]
    print("$ lifedeploy", shlex.join(command), flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        children.command("lifedeploy", *command), cwd=folder, env=children.environment(environment)
    )
    seen, ended = [memory_mib(process.pid, "VmHWM")], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            seen.append(memory_mib(process.pid, "VmHWM"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        process.wait()
        seconds = time.perf_counter() - began
    finally:
        ended.set()
        watching.join()
    if process.returncode:
        raise SystemExit(f"error: lifedeploy {shlex.join(command)} failed")
    return Usage(seconds, max(seen))


def memory_mib(process: int, name: str) -> float:
    """What Linux says that a process has resident (``VmRSS``) or had at most (``VmHWM``); 0 where it does not say.

    ``ru_maxrss`` would be simpler, and is no less than what the parent of a process has when it begins.
    """
    said = next(listed(f"/proc/{process}/status", name), "0 kB")
    return int(said.split()[0]) / 1024


def report_of(*words: object, folder: Path | None = None) -> dict[str, Any]:
    """What ``lifedeploy WORDS… --json FILE`` writes to FILE."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "report.json"
        lifedeploy(*words, "--json", path, folder=folder)
        return read_json(path)


def run_python(words: Sequence[str], folder: Path, limit_s: float) -> tuple[int | None, list[str]]:
    """Run Python with ``words``: its exit code, None where it took too long, and the lines of its standard error.

    A process that is ended takes all that it began with it.
    """
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # no pipe: one that a grandchild holds never ends
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        return code, [line for line in log.read().splitlines() if line.strip()]


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def command_line(module: str, arguments: Sequence[str] | None, hidden: Mapping[str, object] | None = None) -> str:
    """How a script was called; ``hidden`` are words shown in the place of paths that mean nothing elsewhere."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    line = shlex.join(["python", "-m", f"benchmarks.{module}", *words])
    # The longest first: a path may begin as another one does.
    for word, path in sorted((hidden or {}).items(), key=lambda pair: -len(str(pair[1]))):
        line = line.replace(str(path), word)
    return line


# Timing.


def contest(
    lanes: Mapping[str, Lane], batch: int, budget_s: float, half_width: float = 0.01
) -> dict[str, dict[str, float]]:
    """Let lanes take turns, request by request.

    Returns:
        Per lane ``images_per_s`` and ``ms`` of a request, medians; ``ratio``, its throughput over the first lane's
        within rounds, with ``ratio_low``, ``ratio_high`` and their ``coverage``; and ``rounds``.
    """
    contenders = [Contender(name=name, batch=batch, lanes=(lane,)) for name, lane in lanes.items()]
    samples = measure(contenders, Stop(budget_s=budget_s, half_width=half_width))
    rows = {}
    for name in lanes:
        rate = float(np.median([turn.images_per_s for turn in samples.turns[name]]))
        ratio = samples.ratio(name, next(iter(lanes)))
        rows[name] = {"images_per_s": rate, "ms": 1000 * batch / rate, "rounds": samples.count, "ratio": ratio.median}
        rows[name] |= {"ratio_low": ratio.low, "ratio_high": ratio.high, "coverage": ratio.coverage}
    return rows


# Markdown.


def table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """Lines of a table. ``head`` is its first line without the outer bars."""
    columns = head.count("|") + 1
    return [f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def interval(row: Mapping[str, Any], name: str = "ratio", digits: int = 3) -> str:
    """``row[name]`` with its interval, ``name_low`` and ``name_high``; a dash where it was not measured."""
    if row[name] is None:
        return "–"
    return f"{row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"


def number(value: float | None, form: str) -> str:
    """A number in a format, a dash where there is none; ``%`` as in ``99.5 %``."""
    if value is None:
        return "–"
    return f"{100 * value:{form.replace('%', 'f')}} %" if form.endswith("%") else f"{value:{form}}"


def versions(machine: Mapping[str, Any], *packages: str) -> str:
    """Names and versions of packages, those of ``packages`` that are there, or all."""
    return ", ".join(f"{name} {it}" for name, it in machine["versions"].items() if not packages or name in packages)


def source(record: Mapping[str, Any], *packages: str) -> str:
    """One line: by which command, on which machine, with which versions and when a record came about."""
    machine = record["machine"]
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    where = ", ".join([machine["cpu"] + features, f"{machine['cores']} cores", *machine["gpu"]])
    return f"Command: `{record['command']}`; {where}; {versions(machine, *packages)}; {record['date'][:10]}."


# Results.


def record_of(command: str) -> dict[str, Any]:
    """What every result says of its origin."""
    return {"command": command, "machine": describe(), "date": now()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def publish(folder: Path, name: str, record: Mapping[str, Any], text: str) -> None:
    """Write ``NAME.json`` and ``NAME.md``, its name in capitals, to a folder that is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", record)
    (folder / f"{name.upper()}.md").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Results:
    """A JSON file that scripts add to, several at a time."""

    path: Path

    def read(self) -> dict[str, Any]:
        """All of it; empty if there is no file yet."""
        return read_json(self.path) if self.path.is_file() else {}

    def update(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what is there by now; its folder is made if there is none: what was measured is not to be lost."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = self.read()
            change(content)
            write_json(self.path, content)
        finally:
            os.close(descriptor)

    def keep(self, key: str, result: Any, command: str, *, part: str = "") -> None:
        """Put a result under its key and this processor, in the place of an earlier one; ``part``: into a part."""

        def change(content: dict[str, Any]) -> None:
            entry = content.setdefault(key, {}).setdefault(identity(), {})
            entry |= {"result": entry.get("result", {}) | {part: result} if part else result} | record_of(command)

        self.update(change)
