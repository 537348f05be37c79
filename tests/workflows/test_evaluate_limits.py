"""Evaluate where names, environment and sizes are not the usual ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import UsageError
from tests.workflows.test_evaluate import make_images, run, spoil


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data")


def test_a_folder_whose_name_is_no_utf8_is_evaluated(data, folder, lifedeploy):
    odd = Path(os.fsdecode(b"caf\xe9")) / "data"
    odd.parent.mkdir()
    data.rename(odd)
    (odd / "notes.txt").touch()
    ended = lifedeploy("evaluate", folder, "--data", odd, "--json", "report.json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["data"]["source"] == r"caf\xe9/data"
    assert report["warnings"] == [r"1 file of caf\xe9/data is not used: no image by ending (.txt): notes.txt"]
    spoil(odd)
    ended = lifedeploy("evaluate", folder, "--data", odd)
    assert ended.code == 1
    assert r"caf\xe9/data/cup/2.png is not an image that can be read" in ended.err


def test_a_launcher_that_says_no_number_is_named(data, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "²")
    with pytest.raises(UsageError, match="WORLD_SIZE is '²'; expected the number of processes"):
        run(data, folder)


def test_an_engine_makes_no_room_for_more_images_than_there_are(data, folder, monkeypatch):
    asked = []
    real = OnnxRuntime.__init__

    def noting(self, path, options, *rest):
        asked.append(options.batch)
        real(self, path, options, *rest)

    monkeypatch.setattr(OnnxRuntime, "__init__", noting)
    assert run(data, folder, batch=65_536).rows[0].accuracy.images == 15
    assert set(asked) == {15}
