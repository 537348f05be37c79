"""``predict`` as a small case of ``score``: the same answers wherever an image is among others, and bad ones told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lifedeploy.artifact import Workspace
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import WeightsError
from lifedeploy.progress import Step
from lifedeploy.workflows.predict import PredictReport, PredictRequest, predict
from tests.scoring.photos import asked, photos, probabilities

NAMES = ("cat", "cup", "rocket")


def run(model: Path, paths: list[Path], **options: Any) -> PredictReport:
    return predict(PredictRequest(tuple(paths), model, **options), Workspace(Path("artifacts")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More than are inferred at a time."""
    return photos(tmp_path_factory.mktemp("photos"), 37)


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(model, exported, data):
    expected = probabilities(asked(model, data))
    for engine in (model, next(exported.glob("*/openvino-fp32"))):
        predictions = run(engine, data, top=3).predictions
        assert [prediction.image for prediction in predictions] == list(map(str, data))
        for prediction, shares in zip(predictions, expected, strict=True):
            best = np.argsort(-shares)
            assert [guess.index for guess in prediction.guesses] == best.tolist()
            assert [guess.name for guess in prediction.guesses] == [NAMES[index] for index in best]
            told = [guess.probability for guess in prediction.guesses]
            np.testing.assert_allclose(told, shares[best], rtol=1e-4, atol=1e-5)
            assert prediction.inference_ms > 0 and prediction.error == ""
    (alone,) = run(model, data[33:34], top=3).predictions
    np.testing.assert_allclose([guess.probability for guess in alone.guesses], sorted(expected[33])[::-1], rtol=1e-4)


@pytest.mark.parametrize("bad", [{0}, {36}, {1, 2, 31, 32, 33}, set(range(1, 37)), set(range(35))], ids=str)
def test_bad_images_among_good_ones_change_nothing_of_these(model, data, tmp_path, bad):
    (tmp_path / "bad.png").write_text("no image")
    paths = [tmp_path / "bad.png" if number in bad else path for number, path in enumerate(data)]
    report = run(model, paths, top=1)
    whole = run(model, data, top=1).predictions
    assert [prediction.image for prediction in report.predictions] == list(map(str, paths))
    assert len(report.bad) == len(bad)
    for number, (mine, other) in enumerate(zip(report.predictions, whole, strict=True)):
        if number in bad:
            assert (mine.guesses, mine.inference_ms) == ((), None)
            assert mine.error.startswith(f"{tmp_path / 'bad.png'} is not an image that can be read")
        else:
            assert mine.guesses[0].index == other.guesses[0].index
            assert mine.guesses[0].probability == pytest.approx(other.guesses[0].probability, rel=1e-4)


def test_a_bad_image_is_told_among_the_others(lifedeploy, model, data, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    paths = [data[0], tmp_path / "bad.png", tmp_path / "none.png", data[1]]
    ended = lifedeploy("predict", *paths, "-m", model, "--json", "-")
    assert ended.code == 1
    report = json.loads(ended.out)
    first, bad, none, last = report["predictions"]
    assert bad["error"].startswith(f"{tmp_path / 'bad.png'} is not an image that can be read: ")
    assert none["error"] == f"image {tmp_path / 'none.png'} does not exist"
    assert (bad["guesses"], bad["inference_ms"], first["error"], last["error"]) == ([], None, "", "")
    assert len(first["guesses"]) == len(last["guesses"]) == 3
    assert ended.lines[-1].startswith("error: 2 of 4 images have no answer; the first: ")
    assert "bad.png is not an image" in ended.lines[-1]


def test_what_is_shown_has_the_others_and_the_reason(lifedeploy, model, data, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    ended = lifedeploy("predict", data[0], tmp_path / "bad.png", data[1], "-m", model)
    assert ended.code == 1
    said = [str(data[0]), f"{tmp_path / 'bad.png'} is not an image", str(data[1])]
    shown = "".join(ended.out.split())  # a long line is wrapped, at a space where there is one
    places = [shown.index("".join(text.split())) for text in said]
    assert places == sorted(places)
    assert ended.out.count("ms)") == 2
    assert ended.out.count("rocket") == 2


def test_good_images_end_with_0(lifedeploy, model, data):
    ended = lifedeploy("predict", *data[:3], "-m", model, "--top", "1", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["schema"] == 1
    assert [len(prediction["guesses"]) for prediction in report["predictions"]] == [1, 1, 1]
    assert {prediction["error"] for prediction in report["predictions"]} == {""}


@pytest.mark.parametrize("output", [(), ("--json", "-"), ("--json", "p.json")])
def test_where_no_image_has_an_answer_there_is_no_report(lifedeploy, model, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    ended = lifedeploy("predict", "a.png", "-m", model, *output)
    assert (ended.code, ended.out, ended.lines) == (1, "", ["error: image a.png does not exist"])
    ended = lifedeploy("predict", "a.png", "b.png", "-m", model, *output)
    assert (ended.code, ended.out, ended.lines) == (1, "", ["error: none of 2 images: image a.png does not exist"])
    assert not (tmp_path / "p.json").exists()


def test_a_bomb_is_told(lifedeploy, model, data, tmp_path):
    Image.new("1", (100, 90)).save(tmp_path / "bomb.png")
    ended = lifedeploy("predict", data[0], tmp_path / "bomb.png", "-m", model, "--max-pixels", "8000", "--json", "-")
    assert ended.code == 1
    good, bomb = json.loads(ended.out)["predictions"]
    said = f"{tmp_path / 'bomb.png'} has 100 x 90 = 9,000 pixels, more than the 8,000 that --max-pixels allows"
    assert (good["error"], bomb["error"]) == ("", said)


def test_an_answer_that_is_no_number_is_told_of_its_image_alone(lifedeploy, fake, data, monkeypatch):
    real = Fake._run
    expected = [path for number, path in enumerate(data[:3]) if number == 1]

    def play(self: Fake, feeds: Any) -> Any:
        outputs = real(self, feeds)
        outputs["logits"][1] = np.nan
        return outputs

    monkeypatch.setattr(Fake, "_run", play)
    ended = lifedeploy("predict", *data[:3], "-m", fake, "--json", "-")
    assert ended.code == 1
    predictions = json.loads(ended.out, parse_constant=pytest.fail)["predictions"]
    bad = [prediction for prediction in predictions if prediction["error"]]
    assert [prediction["image"] for prediction in bad] == list(map(str, expected))
    assert "NaN or infinity" in bad[0]["error"]
    assert (bad[0]["guesses"], bad[0]["inference_ms"]) == ([], None)


def test_a_model_without_a_head_names_nothing(headless, data):
    with pytest.raises(WeightsError, match="has no classification head: test_vit gives features"):
        run(headless, data[:1])


def test_how_far_it_is_is_told(model, data):
    steps: list[Step] = []
    predict(PredictRequest(tuple(data), model), Workspace(Path("artifacts")), steps.append)
    assert [(step.what, step.detail) for step in steps] == [
        ("predicting", "32 of 37 images"),
        ("predicting", "37 of 37 images"),
    ]
    assert steps[-1].share == 1.0
