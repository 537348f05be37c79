"""The command ``evaluate``: tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workflows.test_evaluate import make_images, spoil


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_images(tmp_path / "data")


def test_tables_fit_eighty_columns(folder, data, lifedeploy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = lifedeploy("evaluate", folder, f"{folder}:dense", "--data", data, "--per-class", "--confusion")
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    for said in ("top-1 %", "±", "same top-1 %", "recall %", "truth in rows", "rocket", "matched by name"):
        assert said in ended.out


def test_json_keeps_its_names(folder, data, lifedeploy, tmp_path):
    ended = lifedeploy("evaluate", folder, "--data", data, "--limit", "6", "--json", tmp_path / "e.json")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["schema"] == 1
    assert report["command"].startswith("lifedeploy evaluate ")
    assert {"cpu", "versions", "threads"} <= set(report["machine"])
    assert report["data"]["images"] == 6
    assert report["pairs"] == report["skipped"] == report["warnings"] == []
    (row,) = report["rows"]
    assert {"model", "engine", "precision", "method", "weights", "accuracy", "images_per_s"} <= set(row)
    promised = {"images", "top1", "standard_error", "top5", "loss", "average_precision", "per_class", "confusion"}
    assert promised == set(row["accuracy"])


def test_left_out_images_are_named_on_standard_error(folder, data, lifedeploy):
    spoil(data)
    ended = lifedeploy("evaluate", folder, "--data", data, "--on-error", "skip", "--json", "-")
    assert ended.code == 0, ended.err
    assert "1 image left out" in ended.err
    assert "cup/2.png" in ended.err
    assert json.loads(ended.out)["rows"][0]["accuracy"]["images"] == 14
    fatal = lifedeploy("evaluate", folder, "--data", data, "--json", data / "e.json")
    assert (fatal.code, fatal.out) == (1, "")
    assert "cup/2.png is not an image" in fatal.lines[0]
    assert "--on-error skip" in fatal.lines[1]
    assert not (data / "e.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing option '--data'"),
        (["--data", "nowhere"], 1, "nowhere is no folder"),
        (["nothing", "--data", "data"], 1, "nothing does not exist"),
        (["--data", "data", "--on-error", "ignore"], 2, "--on-error 'ignore' is unknown"),
        (["--data", "data", "--batch", "0"], 2, "0 images per batch are not allowed"),
        (["--data", "data", "--engine", "abacus", "artifacts"], 2, "engine 'abacus' is unknown"),
        (["--data", "data", "--json", "no/such/e.json"], 2, "no/such/e.json cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(folder, data, lifedeploy, arguments, code, said):
    ended = lifedeploy("evaluate", *arguments)
    assert ended.code == code, ended.err
    assert said in ended.lines[0]
    assert len(ended.lines) <= 2
    assert ended.out == ""
