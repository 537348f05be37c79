"""Files of a method's authors on the command line: read, named, or refused in one line with nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from tests.model.test_published import backbone, dynamicvit, of_dynamicvit, of_evit, write
from tests.pictures import class_folders


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes(lines: list[str]) -> list[str]:
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


@pytest.mark.usefixtures("traced_once")
def test_an_export_of_what_the_authors_published_runs_with_their_predictors(lifedeploy):
    write(Path("theirs.pth"), dynamicvit(), args=of_dynamicvit())
    ended = lifedeploy("export", "-b", TINY, "--method", "dynamicvit", "--weights", "theirs.pth", "-w", "w")
    assert ended.code == 0, ended.err
    said = (ended.out + ended.err).splitlines()
    assert notes(said) == ["theirs.pth: DynamicViT checkpoint, model, trained with base_rate 0.7"]
    (folder,) = Path("w").glob("*/model.json")
    provenance = json.loads(folder.read_text())["spec"]["provenance"]
    assert (provenance["source"], provenance["predictor"]) == ("theirs.pth", "trained")


@pytest.mark.parametrize(
    ("state", "options", "line"),
    [
        (
            dynamicvit(2),
            ["--method", "dynamicvit"],
            "error: theirs.pth does not fit this method: it has 2 of score_predictor, one for each drop layer, and 3 "
            "are asked for (after 2, 3, 4)",
        ),
        (
            dynamicvit(3, 32),
            ["--method", "dynamicvit"],
            "error: theirs.pth does not fit this method: score_predictor.0.in_conv.0.weight is (32,), expected (64,)",
        ),
        (
            dynamicvit() | {"head.bias": torch.zeros(7)},
            ["--method", "dynamicvit"],
            "error: theirs.pth does not fit this backbone: head.bias is (7,), expected (3,)",
        ),
        (
            dynamicvit(),
            ["--method", "evit"],
            "error: theirs.pth is a checkpoint of dynamicvit, and evit is asked for: its weights are of use to "
            "dynamicvit alone",
        ),
    ],
    ids=["number", "width", "backbone", "method"],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(lifedeploy, here, state, options, line):
    write(Path("theirs.pth"), state)
    ended = lifedeploy("export", "-b", TINY, "--img-size", 64, "--weights", "theirs.pth", "-w", "w", *options)
    assert (ended.code, ended.out) == (1, "")
    assert [text for text in ended.lines if not text.startswith("hint: ")] == [line]
    assert [path.name for path in here.iterdir()] == ["theirs.pth"]


def test_training_starts_from_them_and_says_whose_they_are(lifedeploy):
    write(Path("theirs.pth"), backbone().state_dict(), args=of_evit())
    class_folders(Path("data"), {"a": 4, "b": 4, "c": 4})
    train = ("train", "--backbone", TINY, "--weights", "theirs.pth", "--data", "data", "--epochs", 1, "--batch", 4)
    told = "theirs.pth: EViT checkpoint, model, trained with base_keep_rate 0.7, drop_loc '(3, 6, 9)', fuse_token True"
    for method, said in (
        ("evit", [told]),
        ("topk", [told, "theirs.pth is a checkpoint of evit, and topk is asked for"]),
    ):
        ended = lifedeploy(*train, "--method", method)
        assert ended.code == 0, ended.err
        lacking = f"{method} has no parameters of its own to train: that stage is skipped, and --epochs says how long "
        assert notes((ended.out + ended.err).splitlines()) == [*said, f"{lacking}the backbone trains (1)"]


@pytest.mark.parametrize("form", ["model", "safetensors"])
def test_what_carries_no_description_is_not_evaluated_and_what_to_do_is_said(lifedeploy, here, form):
    path = write(Path("theirs.safetensors" if form == "safetensors" else "theirs.pth"), dynamicvit(), form)
    ended = lifedeploy("evaluate", path, "--data", class_folders(Path("data"), {"a": 1, "b": 1, "c": 1}))
    assert (ended.code, ended.out) == (1, "")
    assert any("lifedeploy export --backbone NAME --weights FILE" in text for text in ended.lines)
    assert not (here / "artifacts").exists()
