"""A share of ``make kill``, and what its comparison has to find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.kill.commands import Writer
from tests.robustness.kill.results import Expected, Results
from tests.robustness.kill.session import made_again, parts_of

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="children are forked, as on Linux")
KILLS = 6
SECONDS = 600  # more than enough, on a machine that has much else to do


def test_a_share_of_the_kills(inputs_at):
    """Three commands, each killed twice; ``make kill`` kills them all."""
    writers = ("--writer=build-engine onnxruntime", "--writer=train --dense", "--writer=score one file")
    command = [sys.executable, "-m", "tests.robustness.kill", f"--kills={KILLS}", "--seed=0", inputs_at, *writers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.splitlines()[-1].startswith(f"{KILLS} of {KILLS} kills: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/model.onnx").write_bytes(b"graph")
    (tmp_path / "report.json").write_text(json.dumps({"loss": 0.5, "minutes": 1.0, "rows": [{"seconds": 1, "a": 2}]}))
    (tmp_path / "log.csv").write_text("loss,images_per_s\n0.5,100\n")
    return tmp_path


def test_what_is_measured_is_not_compared(folder):
    before = Results.of(folder)
    (folder / "report.json").write_text(json.dumps({"loss": 0.5, "minutes": 9.0, "rows": [{"seconds": 7, "a": 2}]}))
    (folder / "log.csv").write_text("loss,images_per_s\n0.5,7\n")
    assert Expected(before, before).differences(Results.of(folder)) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("engine/model.onnx", "other", "engine/model.onnx is another one"),
        ("report.json", '{"loss": 0.6}', "report.json is another one"),
        ("report.json", "", "report.json is another one"),
        ("log.csv", "loss,images_per_s\n0.6,100\n", "log.csv is another one"),
        ("engine/.tmp", "x", "engine/.tmp is left over"),
    ],
)
def test_differences_are_found(folder, name, content, said):
    before = Results.of(folder)
    (folder / name).write_text(content)
    assert said in Expected(before, before).differences(Results.of(folder))


def test_missing_files_and_empty_folders_are_found(folder):
    before = Results.of(folder)
    (folder / "log.csv").unlink()
    (folder / "made").mkdir()
    assert Expected(before, before).differences(Results.of(folder)) == ["made is left over", "log.csv is missing"]


def test_rows_of_a_job_are_compared_whatever_key_it_has(folder):
    (folder / "part-00000-0123456789ab.jsonl").write_text("a")
    before = Results.of(folder)
    (folder / "part-00000-0123456789ab.jsonl").rename(folder / "part-00000-ba9876543210.jsonl")
    assert Expected(before, before).differences(Results.of(folder)) == []
    (folder / "part-00000-0123456789ab.jsonl").write_text("a")
    assert len(Expected(before, before).differences(Results.of(folder))) == 1
    (folder / "part-00000-0123456789ab.jsonl").unlink()
    (folder / "part-00000-ba9876543210.jsonl").write_text("b")
    assert Expected(before, before).differences(Results.of(folder)) == ["part-00000.jsonl is another one"]


def test_parts_that_are_made_again_are_found(tmp_path):
    rows = tmp_path / "work/rows"
    rows.mkdir(parents=True)
    (tmp_path / "work/score.json").write_text('{"parts_before": 1}')
    (rows / "part-0").write_text("a")
    writer = Writer("", (), (), parts="rows/part-*")
    before = parts_of(writer, tmp_path)
    assert made_again(writer, tmp_path, before) == []
    (rows / "part-0").rename(rows / "old")
    (rows / "part-0").write_text("a")
    assert made_again(writer, tmp_path, before) == ["part-0 was made again"]
    (tmp_path / "work/score.json").write_text('{"parts_before": 0}')
    (rows / "part-0").unlink()
    assert made_again(writer, tmp_path, before) == ["of 1 parts that were there 0 were taken"]


def test_what_differs_between_undisturbed_runs_has_to_be_there_only(folder):
    one = Results.of(folder)
    (folder / "engine/model.onnx").write_bytes(b"other")
    expected = Expected(one, Results.of(folder))
    assert "engine/model.onnx" not in expected.stable
    (folder / "engine/model.onnx").write_bytes(b"a third")
    assert expected.differences(Results.of(folder)) == []
    (folder / "engine/model.onnx").write_bytes(b"")
    assert expected.differences(Results.of(folder)) == ["engine/model.onnx is empty"]
