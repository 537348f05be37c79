"""The configuration: what it refuses, and that TOML says the same."""

from __future__ import annotations

import pytest

from lifedeploy.errors import UsageError
from lifedeploy.training.config import TrainConfig
from lifedeploy.workflows.train import settled


def test_a_configuration_survives_toml(tmp_path):
    config = TrainConfig(data="x", counts=(9, 5), drop_layers=(2, 3), image_size=(64, 32), elastic=True, ema=0.99)
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(path) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch is 0, expected greater than 0"),
        ({"batch": 8.5}, "batch is 8.5, expected a whole number"),
        ({"batch": True}, "batch is True, expected a whole number"),
        ({"dense": 1}, "dense is 1, expected true or false"),
        ({"backbone_lr": -1e-3}, "backbone_lr is -0.001, expected 0 or greater"),
        ({"backbone_lr": float("nan")}, "backbone_lr is nan, expected a finite number"),
        ({"warmup": 1.0}, r"warmup is 1.0, expected in \[0, 1\)"),
        ({"hflip": 1.5}, r"hflip is 1.5, expected in \[0, 1\]"),
        ({"precision": "fp8"}, "precision is fp8, expected one of auto, fp32, bf16, fp16"),
        ({"scale": [0.9, 0.5]}, "scale is .*, expected two numbers, the smaller first"),
        ({"scale": [0.9, 1.5]}, "expected shares of the image's area, at most 1"),
        ({"elastic_range": [0.5, 1.2]}, "expected keep rates, at most 1"),
        ({"distill_logits": 1.5}, r"distill_logits is 1.5, expected in \[0, 1\]"),
        ({"counts": ["a"]}, "counts holds 'a', expected numbers"),
        ({"stage1_epochs": 0, "stage2_epochs": 0}, "0 epochs in all"),
        ({"dense": True, "distill": True}, "--dense trains the unslimmed model|--dense fine-tunes"),
        ({"learning_rate": 1}, "has 'learning_rate', which is no setting of training; there are: .*backbone_lr"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(settings)


def test_a_whole_number_passes_for_a_fraction():
    assert TrainConfig.from_dict({"warmup": 0, "clip_grad": 2}).clip_grad == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("batch = ", "is no TOML file"), ("lr = 1", "has 'lr', which is no")],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as refused:
        settled({}, path)
    assert "run.toml" in refused.value.message


def test_options_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("batch = 16\nseed = 4\n", encoding="utf-8")
    config = settled({"batch": 32}, path)
    assert (config.batch, config.seed, config.keep_rate) == (32, 4, 0.7)


def test_a_dense_run_has_rates_of_its_own_unless_they_are_given():
    assert (settled({"dense": True}, None).backbone_lr, settled({"dense": True}, None).head_lr) == (2e-5, 2e-4)
    assert settled({"dense": True, "backbone_lr": 1e-3}, None).head_lr == pytest.approx(1e-2)
    assert settled({"backbone_lr": 3e-5}, None).head_lr == 3e-5
    assert settled({}, None).backbone_lr == 1e-5
