"""Jobs that are killed, a share of ``python -m tests.robustness.scores``, which kills more of them, and on Ray too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.robustness.scores import Job, redone

SECONDS = 600  # more than enough, on a machine that has much else to do
ROOT = Path(__file__).parents[2]


def test_a_job_goes_on_wherever_it_was_killed(model):
    command = [sys.executable, "-m", "tests.robustness.scores", str(model), "--kills=4", "--seed=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.splitlines()[-1].startswith("4 of 4 kills on here: ")


def test_what_is_done_again_is_seen(tmp_path):
    (tmp_path / "rows").mkdir()
    job = Job(tmp_path, (), "rows")
    first, second = (tmp_path / "rows" / f"part-{number}" for number in range(2))
    first.write_text("a\nb\n")
    second.write_text("c\n")
    before = job.parts
    assert job.rows == [b"a", b"b", b"c"] and redone(before, job.parts) == []
    first.rename(tmp_path / "gone")
    first.write_text("a\nb\n")
    assert redone(before, job.parts) == ["part-0 was finished, and is done again"]
    second.unlink()
    assert len(redone(before, job.parts)) == 2
