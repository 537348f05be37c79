"""Every verb that reads a data set says on standard error what of it is not used, and nothing where all is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lifedeploy.model import weights
from tests.workflows.test_evaluate import make_images

SAID = {
    "1 file of data is not used: no image by ending (.txt): notes.txt",
    "2 files of data are not used: hidden, the first is .DS_Store",
}
SHORT = ("--img-size", "64", "--batch", "4", "--epochs", "1", "--workers", "0")
VERBS = {
    "evaluate": ("evaluate", "MODEL", "--data", "data", "--limit", "3", "--json", "report.json"),
    "bench": ("bench", "MODEL", "--data", "data", "--limit", "3", "--batch", "1", "--budget", "0.1", "--no-memory"),
    "calibrate": ("calibrate", "MODEL", "--data", "data", "--images", "4", "--check-images", "2"),
    "visualize": ("visualize", "MODEL", "--histogram", "--data", "data", "-o", "lives.png"),
    "train": ("train", "--data", "data", "--dense", "--backbone", "test_vit", *SHORT),
}


@pytest.fixture
def data(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "no hub in a test")
    return make_images(Path("data"), count=4)


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_used_is_said_in_a_line_each(data, workspace, lifedeploy, verb):
    model = next(workspace.glob("*/model.json")).parent
    command = [model if word == "MODEL" else word for word in VERBS[verb]]
    whole = lifedeploy(*command)
    assert whole.code == 0, whole.err
    assert "not used" not in whole.err
    (data / "notes.txt").touch()
    (data / ".DS_Store").touch()
    (data / "cat" / "._1.png").touch()
    # What was calibrated is found again, and is of the same images: it has to be said all the same.
    again = lifedeploy(*command, *(("--overwrite",) if verb == "train" else ()))
    assert again.code == 0, again.err
    said = [line.strip("│ ") for line in again.err.splitlines() if "not used" in line]
    assert sorted(said) == sorted(SAID)


def test_reports_hold_what_is_not_used(data, workspace, lifedeploy):
    (data / "notes.txt").touch()
    model = next(workspace.glob("*/model.json")).parent
    lifedeploy("evaluate", model, "--data", "data", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    (left,) = report["data"]["left_out"]
    assert left == {
        "reason": "no image by ending (.txt)",
        "count": 1,
        "first": "notes.txt",
        "where": "data",
        "unit": "file",
    }
    assert report["warnings"] == ["1 file of data is not used: no image by ending (.txt): notes.txt"]
