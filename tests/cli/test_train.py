"""``train`` as a user types it: the chain to export, its messages, and every refusal in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifedeploy.model import weights

SMALL = ("--backbone", "test_vit", "--img-size", "64", "--batch", "8", "--val-share", "0.25", "--workers", "0")
FAST = (*SMALL, "--backbone-lr", "1e-3", "--log-every", "1")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "no hub in a test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(12):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def test_dense_then_life_then_export_and_predict(data, lifedeploy):
    dense = lifedeploy("train", "--dense", "--data", data, *FAST, "--epochs", "1", "--json", "dense.json")
    assert dense.code == 0, dense.err
    assert "RANDOM WEIGHTS to start from" in dense.err
    assert "training artifacts/checkpoints/test_vit-dense-64x64px" in dense.err
    assert "batch=8" in dense.err  # the configuration is printed
    report = json.loads(Path("dense.json").read_text())
    assert report["config"]["head_lr"] == pytest.approx(1e-2)
    assert report["spec"]["classes"] == ["cat", "dog"]
    assert report["command"].startswith("lifedeploy train --dense --data")
    assert report["machine"]["versions"]["torch"]

    life = lifedeploy("train", "--data", data, *FAST)
    assert life.code == 0, life.err
    assert "RANDOM" not in life.err
    assert "predictor" in life.out and "backbone" in life.out
    assert "lifedeploy export --backbone test_vit --rho 0.7" in life.out

    exported = lifedeploy("export", "--backbone", "test_vit", "--rho", "0.7")
    assert exported.code == 0, exported.err
    assert "RANDOM" not in exported.err
    manifest = json.loads(next(Path("artifacts").glob("test_vit-life*/model.json")).read_text())
    assert manifest["spec"]["provenance"]["predictor"] == "trained"
    predicted = lifedeploy("predict", data / "cat" / "0.png")
    assert predicted.code == 0, predicted.err
    assert "cat" in predicted.out and "dog" in predicted.out


def test_resume_alone_continues_the_newest_run(data, lifedeploy):
    assert lifedeploy("train", "--data", data, *FAST, "--stage2-epochs", "0").code == 0
    again = lifedeploy("train", "--data", data, *FAST, "--stage2-epochs", "0")
    assert again.code == 2
    assert again.lines[-2].startswith("error: artifacts/checkpoints/test_vit-life-r0.7-64x64px/ holds a run already")
    resumed = lifedeploy("train", "--resume")
    assert resumed.code == 0, resumed.err
    assert lifedeploy("train", "--data", data, *FAST, "--stage2-epochs", "0", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no data to train on"),
        (("--data", "nowhere"), 1, "nowhere is no folder"),
        (("--data", "data", "--batch", "64"), 2, "18 training images do not fill one batch of 64"),
        (("--data", "data", "--rho", "1.5"), 2, "keep rate 1.5 is out of range: it must be in (0, 1]"),
        (("--data", "data", "--rho", "0.5", "--counts", "9,5,3"), 2, "--rho and --counts exclude each other"),
        (("--data", "data", "--counts", "9,5"), 2, "2 token counts (9, 5) for 3 drop layers"),
        (("--data", "data", "--weights", "none.pth"), 1, "checkpoint none.pth does not exist"),
        (("--data", "data", "--backbone", "deit_x"), 2, "backbone 'deit_x' is unknown"),
        (("--data", "data", "--scale", "half"), 2, "--scale 'half' is no list of numbers; expected for example 0.6,1"),
        (("--data", "data", "--precision", "fp8"), 2, "precision is fp8, expected one of auto, fp32, bf16, fp16"),
        (("--data", "data", "--dense", "--distill"), 2, "--dense"),
        (("--data", "data", "--config", "none.toml"), 2, "none.toml does not exist"),
        (("--data", "data", "--val-share", "1.5"), 2, "a share of 1.5 cannot be held out"),
        (("--resume", "--overwrite"), 2, "--resume and --overwrite exclude each other"),
        (("--resume",), 1, "no training run in artifacts/checkpoints/"),
        (("--resume", "--name", "none"), 2, "none/config.toml does not exist"),
        (("--data", "data", "--stage1-epochs", "0", "--stage2-epochs", "0"), 2, "0 epochs in all"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(data, lifedeploy, arguments, code, message):
    given = SMALL if "--data" in arguments else ()
    ended = lifedeploy("train", *given, *arguments)
    errors = [line for line in ended.lines if line.startswith("error:")]
    assert ended.code == code, ended.err
    assert len(errors) == 1 and message in errors[0], ended.err
    assert not Path("artifacts").exists()


def test_a_data_set_without_images_is_refused(lifedeploy, tmp_path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    ended = lifedeploy("train", "--data", "empty", *SMALL)
    assert ended.code == 1
    assert "empty/ holds no images" in ended.err
