"""``python -m tests.robustness.kill``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.robustness.kill.commands import WRITERS
from tests.robustness.kill.session import Session


def main() -> int:
    """Kill commands, and say in one line what they came to; 1 if one left something that trips others."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="how many (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of their moments (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--writer", action="append", choices=[writer.name for writer in WRITERS], help="only this one")
    parser.add_argument("--inputs", type=Path, metavar="DIR", help="where the inputs are kept, made if missing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder is taken away then too
    root = Path(tempfile.mkdtemp(prefix="lifedeploy-kill-"))
    began = time.monotonic()
    good = 0
    try:
        writers = tuple(writer for writer in WRITERS if writer.name in (arguments.writer or [writer.name]))
        session = Session(root, arguments.seed, arguments.inputs or root / "inputs", writers)
        session.prepare()
        for name, known in session.known.items():
            stable, all_of_them = len(known.expected.stable), len(known.expected.one.contents)
            _tell(f"{name}: {known.seconds:.1f} s, {stable} of {all_of_them} files are the same every time")
        for done, kill in enumerate(session.run(arguments.kills, arguments.jobs), 1):
            good += not kill.faults
            for fault in kill.faults:
                print(f"kill {kill.number} ({kill.writer}, {kill.how}): {fault}", flush=True)
            if done % 20 == 0:
                _tell(f"{done} of {arguments.kills} kills, {time.monotonic() - began:.0f} s")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{good} of {arguments.kills} kills: the same command again, an equal result, and nothing left behind")
    return 0 if good == arguments.kills else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libraries that were imported for children only have much to say at an ordinary end
