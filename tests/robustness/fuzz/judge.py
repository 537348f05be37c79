"""What is held against a command, whatever it was given."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.forked import GIB, Ended
from tests.robustness.fuzz.case import MARK, Case
from tests.robustness.fuzz.values import ESCAPES

# In the order in which they are counted at the end.
FAULTS = {
    "traceback": "tracebacks",
    "bug": "bugs",
    "accepted": "bad inputs accepted",
    "escape": "escapes",
    "hang": "hangs",
    "memory": "over 4 GiB",
    "device": "devices or links replaced",
    "half-written": "half-written files",
    "leftover": "leftovers",
    "executed": "executed",
    "message": "unclear messages",
    "crash": "crashes",
}
# C0 but tab and line end, DEL, C1, and what turns the direction of writing or ends lines unseen.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_LONGEST = 640  # characters of a line of an error: its message and "error: "
_PAGE = 6000  # characters of all that is said where something is refused


@dataclass(frozen=True)
class Fault:
    """One of :data:`FAULTS`, and what was found."""

    name: str
    found: str


@dataclass(frozen=True)
class Listing:
    """Everything below a folder: path → what tells whether it is still the same."""

    entries: dict[str, tuple[int, int, int, int]]

    @classmethod
    def of(cls, folder: Path) -> Listing:
        """What is there now; links are not followed."""
        entries = {}
        for above, folders, files in os.walk(folder):
            for name in (*folders, *files):
                path = os.path.join(above, name)  # noqa: PTH118 (names may be no UTF-8; many are looked at)
                found = os.lstat(path)
                changing = stat.S_ISREG(found.st_mode)
                time, size = (found.st_mtime_ns, found.st_size) if changing else (0, 0)
                entries[os.path.relpath(path, folder)] = (stat.S_IFMT(found.st_mode), found.st_rdev, time, size)
        return cls(entries)

    def pipes(self, folder: Path) -> list[Path]:
        """Those in it that are pipes."""
        return [folder / name for name, (sort, *_) in self.entries.items() if stat.S_ISFIFO(sort)]

    def changed(self, now: Listing) -> list[str]:
        """What is new, gone, or another one."""
        names = self.entries.keys() | now.entries.keys()
        return sorted(name for name in names if self.entries.get(name) != now.entries.get(name))


def judged(case: Case, ended: Ended, folder: Path, before: Listing) -> list[Fault]:
    """All faults of a command that ran in ``folder / "work"``, which was as ``before`` says."""
    return [*_ending(case, ended), *_words(case, ended), *_executed(folder), *_files(case, ended, folder, before)]


def _ending(case: Case, ended: Ended) -> Iterator[Fault]:
    if ended.hung:
        yield Fault("hang", f"still running after {ended.seconds:.0f} s")
    elif ended.peak > 4 * GIB:
        yield Fault("memory", f"{ended.peak / GIB:.1f} GiB")
    elif ended.code < 0 or ended.code not in (0, 1, 2):
        yield Fault("crash", f"ended with {ended.code}")
    elif ended.code == 0 and case.bad:
        yield Fault("accepted", "exit code 0")
    if ended.left:
        yield Fault("leftover", "a process of its own still runs")


def _words(case: Case, ended: Ended) -> Iterator[Fault]:
    text = (ended.out + b"\n" + ended.err).decode(case.encoding, "surrogateescape")
    said = ended.err.decode(case.encoding, "surrogateescape")
    if "Traceback (most recent call last)" in text:
        yield Fault("traceback", text.strip().splitlines()[-1][:300])
    bug = re.search("unexpected [A-Z].*|.*this is a bug.*", text)
    if bug:
        yield Fault("bug", bug[0][:300])
    if case.terminal:
        # Progress is drawn with sequences of our own: those that were given are looked for.
        drawn = ended.out.decode("utf-8", "surrogateescape")
        escape = next((escape for escape in ESCAPES if escape in drawn), None)
        if escape is not None:
            yield Fault("escape", f"{escape!a} on a terminal")
        return
    found = _UNPRINTABLE.search(text)
    if found:
        around = text[max(found.start() - 40, 0) : found.end() + 40]
        yield Fault("escape", f"{found[0]!a} in {around!a}")
    if ended.code in (1, 2) and not ended.hung:
        yield from _message(said, case.says)


def _message(said: str, pattern: str) -> Iterator[Fault]:
    lines = said.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1:
        yield Fault("message", f"{len(errors)} lines of error: {said[-200:]!a}")
    elif len(errors[0]) > _LONGEST or not errors[0].removeprefix("error: ").strip():
        yield Fault("message", f"an error of {len(errors[0]):,} characters")
    elif re.search(pattern, errors[0]) is None:
        yield Fault("message", f"it does not say what it should ({pattern}): {ascii(errors[0])[:300]}")
    if len(said) > _PAGE:
        yield Fault("message", f"{len(said):,} characters on standard error")


def _executed(folder: Path) -> Iterator[Fault]:
    for above, _, files in os.walk(folder):
        if MARK in files:
            yield Fault("executed", f"something of the case ran as code: {above}/{MARK}")
            return


def _files(case: Case, ended: Ended, folder: Path, before: Listing) -> Iterator[Fault]:
    work = folder / "work"
    now = Listing.of(work)
    changed = before.changed(now)
    for name in changed:
        was = before.entries.get(name)
        kept = now.entries.get(name)
        if was and not stat.S_ISREG(was[0]) and not stat.S_ISDIR(was[0]) and kept != was:
            yield Fault("device", f"{name} is not what it was")
    for name in (*Listing.of(folder / "tmp").entries, *Listing.of(folder / "home").entries):
        yield Fault("leftover", f"{name!a} in the folder for temporary files, or at home")
    for name in Listing.of(folder / "cache").entries:
        if _looks_temporary(name):
            yield Fault("leftover", f"{name!a} in the cache")
    if ended.code == 0:
        for name in case.links:
            if not (work / name).is_file() or (work / name).read_bytes() == b"as it was":
                yield Fault("device", f"{name} is a link, and was not written through")
        yield from _results(work, before, now)
        return
    for name in changed:
        if not any((name + "/").startswith(f"{allowed}/") for allowed in case.writes):
            yield Fault(
                "half-written" if name in before.entries else "leftover", f"after a failure: {ascii(name)[:99]}"
            )
        elif _looks_temporary(name):
            yield Fault("leftover", ascii(name)[:120])


def _results(work: Path, before: Listing, now: Listing) -> Iterator[Fault]:
    """What a command that succeeded has written can be read."""
    for name in before.changed(now):
        path = work / name
        if name not in now.entries or not stat.S_ISREG(now.entries[name][0]):
            continue
        if _looks_temporary(name):
            yield Fault("leftover", ascii(name)[:120])
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_json)
            elif path.suffix == ".csv":
                list(csv.reader(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))
            elif path.stat().st_size == 0 and path.suffix in (".onnx", ".safetensors", ".png", ".npz", ".xml"):
                yield Fault("half-written", f"{ascii(name)[:120]} is empty")
        except (ValueError, csv.Error) as error:
            yield Fault("half-written", f"{ascii(name)[:120]}: {error}")


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _looks_temporary(name: str) -> bool:
    """Whether a name is none that a result has: hidden, or of a temporary file, whoever makes it."""
    parts = name.split("/")
    return any(part.startswith(".") or re.search(r"\.tmp|-tmp|\.part\b|.~$", part) for part in parts)
