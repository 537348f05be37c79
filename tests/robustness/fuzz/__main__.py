"""``python -m tests.robustness.fuzz``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.robustness.fuzz.case import KINDS
from tests.robustness.fuzz.session import Found, Session, described, last_words, progress, summary


def main() -> int:
    """Run cases, and say in one line what they came to; 1 if a single one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (default: 0)")
    parser.add_argument("--case", type=int, action="append", help="only the case of this number, with all that it says")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time (default: 2)")
    parser.add_argument("--kind", action="append", help="only cases of this kind; gives them other numbers")
    parser.add_argument("--cheap", action="store_true", help="only kinds that take little time; the same")
    parser.add_argument("--verbose", action="store_true", help="show every case, and what it ended with")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy the folders of failed cases there")
    parser.add_argument("--inputs", type=Path, metavar="DIR", help="where the inputs are kept, made if missing")
    arguments = parser.parse_args()
    unknown = set(arguments.kind or ()) - KINDS.keys()
    if unknown:
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are: {', '.join(KINDS)}")
    kinds = arguments.kind or [name for name, kind in KINDS.items() if kind.cheap or not arguments.cheap]
    options = [f"--seed {arguments.seed}"]
    options += [f"--kind '{name}'" for name in arguments.kind or ()] + ["--cheap"] * arguments.cheap
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder is taken away then too
    numbers = arguments.case or range(arguments.cases)
    found: list[Found] = []
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="lifedeploy-fuzz-"))
    try:
        kept = arguments.inputs or root / "inputs"
        session = Session(root, arguments.seed, kept, kinds=kinds, keep=arguments.keep)
        progress(f"inputs made in {time.monotonic() - began:.0f} s")
        for one in session.run(_told(numbers), arguments.jobs):
            if one.faults:
                found.append(one)
            if one.faults or arguments.case or arguments.verbose:
                print(described(one, whole=bool(arguments.case)), flush=True)
            if arguments.verbose:
                print(f"    {last_words(one)}", flush=True)
            if one.faults:
                print(f"    again: python -m tests.robustness.fuzz --case {one.number} {' '.join(options)}", flush=True)
        for name, tally in sorted(session.tallies.items()):
            progress(f"{name}: {tally}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(summary(len(numbers), found))
    return 1 if found else 0


def _told(numbers: list[int] | range):  # type: ignore[no-untyped-def]
    began = time.monotonic()
    for count, number in enumerate(numbers):
        if count and count % 200 == 0:
            progress(f"{count} of {len(numbers)} cases, {time.monotonic() - began:.0f} s")
        yield number


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were imported for children only have much to say at an ordinary end
