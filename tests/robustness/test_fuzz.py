"""A share of ``make fuzz``, and what the harness itself has to find."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.forked import Ended
from tests.robustness.fuzz import options
from tests.robustness.fuzz.case import KINDS, MARK, Case
from tests.robustness.fuzz.judge import FAULTS, Listing, judged
from tests.robustness.fuzz.session import summary
from tests.robustness.fuzz.values import change_json, damaged

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="children are forked, as on Linux")
CASES = 45
SECONDS = 600  # more than enough, on a machine that has much else to do


def test_a_share_of_the_cases(inputs_at):
    """None of what is counted, in cases that take little time; ``make fuzz`` runs more, and slower ones."""
    command = [sys.executable, "-m", "tests.robustness.fuzz", "--cheap", "--seed=0", f"--cases={CASES}", inputs_at]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{CASES} cases: ")
    assert re.findall(r"(\d+) [a-z]", last)[1:] == ["0"] * len(FAULTS)


def test_the_line_of_counts_names_every_fault():
    assert summary(0, []).count(",") == len(FAULTS) - 1


def test_every_parameter_of_every_command_is_drawn():
    for command, parameters in options.commands().items():
        assert parameters, command
        names = [parameter.name for parameter in parameters]
        assert len(set(names)) == len(names)
    assert len(options.commands()) > 9
    assert {"--json", "model", "--batch"} <= {parameter.name for parameter in options.commands()["bench"]}
    assert set(options.LINES) <= set(options.commands())


@pytest.mark.parametrize("name", ["image", "shards", "configuration", "rows"])
def test_kinds_are_registered(name):
    assert KINDS[name].share > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("work", "tmp", "home", "cache"):
        (tmp_path / name).mkdir()
    return tmp_path


def names_of(case: Case, ended: Ended, folder: Path, before: Listing) -> set[str]:
    return {fault.name for fault in judged(case, ended, folder, before)}


def ended(code: int = 1, *, out: str = "", err: str = "error: it is refused\n", **facts: object) -> Ended:
    known: dict[str, object] = {"seconds": 0.1, "peak": 0} | facts
    return Ended(code, out.encode("utf-8", "surrogateescape"), err.encode("utf-8", "surrogateescape"), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "how", "fault"),
    [
        (Case("", ("x",)), ended(err="Traceback (most recent call last):\nerror: x\n"), "traceback"),
        (Case("", ("x",)), ended(err="error: unexpected ValueError: x\nhint: this is a bug\n"), "bug"),
        (Case("", ("x",), bad=True), ended(0, err=""), "accepted"),
        (Case("", ("x",)), ended(0, out="\x1b[31mred", err=""), "escape"),
        (Case("", ("x",)), ended(0, out="\x9b31mred", err=""), "escape"),
        (Case("", ("x",)), ended(0, out="a\u202eb", err=""), "escape"),
        (Case("", ("x",)), ended(0, out="caf\udce9", err=""), "escape"),
        (Case("", ("x",), terminal=True), ended(0, out="\x1b[2K\x1b]0;owned\x07", err=""), "escape"),
        (Case("", ("x",)), ended(-9, hung=True), "hang"),
        (Case("", ("x",)), ended(-9, peak=5 * 1024**3), "memory"),
        (Case("", ("x",)), ended(-11), "crash"),
        (Case("", ("x",)), ended(err=""), "message"),
        (Case("", ("x",)), ended(err=f"error: {'x' * 1000}\n"), "message"),
        (Case("", ("x",)), ended(err="error: a\nerror: b\n"), "message"),
        (Case("", ("x",)), ended(left=True), "leftover"),
    ],
)
def test_what_a_command_must_not_say_or_do_is_found(folder, case, how, fault):
    assert names_of(case, how, folder, Listing.of(folder / "work")) == {fault}


@pytest.mark.parametrize("how", [ended(), ended(2), ended(0, out="done → ρ\n", err=""), ended(0, err="note: a\n")])
def test_what_a_command_may_say_is_no_fault(folder, how):
    assert names_of(Case("", ("x",)), how, folder, Listing.of(folder / "work")) == set()


def test_what_is_left_after_a_failure_is_found(folder):
    work = folder / "work"
    (work / "there.json").write_text("{}")
    os.mkfifo(work / "pipe")
    (work / "link").symlink_to("there.json")
    before = Listing.of(work)
    assert names_of(Case("", ("x",)), ended(), folder, before) == set()
    (work / "new").write_text("half")
    assert names_of(Case("", ("x",)), ended(), folder, before) == {"leftover"}
    assert names_of(Case("", ("x",), writes=("new",)), ended(), folder, before) == set()
    (work / "there.json").write_text("[")
    assert names_of(Case("", ("x",), writes=("new",)), ended(), folder, before) == {"half-written"}
    assert names_of(Case("", ("x",)), ended(0, err=""), folder, before) == {"half-written"}
    (work / "there.json").write_text("[NaN]")
    assert names_of(Case("", ("x",)), ended(0, err=""), folder, before) == {"half-written"}
    for name in ("pipe", "link"):
        (work / name).unlink()
        (work / name).write_text("replaced")
        assert "device" in names_of(Case("", ("x",), writes=("new", "there.json")), ended(), folder, before)


def test_temporary_files_are_found_wherever_they_are(folder):
    before = Listing.of(folder / "work")
    for name in ("tmp/x", "home/x", "cache/.x.tmp", "work/.new.host-1.abc.lifedeploy-tmp"):
        (folder / name).write_text("x")
        assert names_of(Case("", ("x",)), ended(0, err=""), folder, before) == {"leftover"}, name
        (folder / name).unlink()


def test_code_that_ran_is_found(folder):
    before = Listing.of(folder / "work")
    (folder / "cache" / MARK).touch()
    assert names_of(Case("", ("x",)), ended(), folder, before) == {"executed"}


def test_a_link_that_was_not_written_through_is_found(folder):
    work = folder / "work"
    (work / "real.json").write_text("as it was")
    (work / "out.json").symlink_to("real.json")
    case, before = Case("", ("x",), links=("out.json",)), Listing.of(work)
    assert names_of(case, ended(0, err=""), folder, before) == {"device"}
    (work / "real.json").write_text("{}")
    assert names_of(case, ended(0, err=""), folder, before) == set()


def test_cases_are_functions_of_the_seed():
    data = {"a": [1, {"b": "c"}], "d": None}
    for seed in range(50):
        assert change_json(data, random.Random(seed)) == change_json(data, random.Random(seed))
        assert damaged(b"x" * 1000, random.Random(seed)) == damaged(b"x" * 1000, random.Random(seed))
