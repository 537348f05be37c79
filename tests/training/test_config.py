"""The configuration: what it refuses, and that TOML says the same."""

from __future__ import annotations

import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy.errors import UsageError
from lifedeploy.training import feeds
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
        ({"batch": 0}, "batch is 0: expected int >= 1"),
        ({"batch": 8.5}, "batch is 8.5: expected int, got float"),
        ({"batch": True}, "batch is True: expected int, got bool"),
        ({"batch": 10**5000}, "batch is a int: expected int <= 1000000"),
        ({"dense": 1}, "dense is 1: expected bool, got int"),
        ({"workers": 1e26}, r"workers is 1e\+26: expected int, got float"),
        ({"workers": 10**26}, r"workers is 1000*: expected int <= 256"),
        ({"epochs": 10**9}, "epochs is 1000000000: expected int <= 100000"),
        ({"seed": -1}, "seed is -1: expected int >= 0"),
        ({"seed": 2**32}, "seed is 4294967296: expected int <= 4294967295"),
        ({"backbone_lr": -1e-3}, "backbone_lr is -0.001: expected float >= 0.0"),
        ({"backbone_lr": float("nan")}, "backbone_lr is nan: expected float >= 0.0"),
        ({"clip_grad": float("inf")}, "clip_grad is inf: expected float <= "),
        ({"backbone_lr": 10**400}, "backbone_lr is 1000.*: number out of range"),
        ({"warmup": 1.0}, "warmup is 1.0: expected float < 1.0"),
        ({"hflip": 1.5}, "hflip is 1.5: expected float <= 1.0"),
        ({"temperature": 0}, "temperature is 0: expected float >= 0.001"),
        ({"precision": "fp8"}, "precision is 'fp8': expected one of auto, fp32, bf16, fp16"),
        ({"scale": [0.9, 0.5]}, "scale is 0.9, 0.5; expected the smaller number first"),
        ({"scale": [0.9]}, r"scale is \(0.9,\): expected array of length 2, got 1"),
        ({"scale": 0.9}, "scale is 0.9: expected array, got float"),
        ({"scale": [0.9, 1.5]}, r"scale is \(0.9, 1.5\): expected float <= 1.0 - at \$\[1\]"),
        ({"elastic_range": [0.5, 1.2]}, "expected float <= 1.0"),
        ({"distill_logits": 1.5}, "distill_logits is 1.5: expected float <= 1.0"),
        ({"counts": ["a"]}, r"counts is \('a',\): expected int, got str"),
        ({"image_size": [64]}, "image_size is 64 alone; expected height and width"),
        ({"image_size": [10**9, 64]}, r"image_size is \(1000000000, 64\): expected int <= 8192"),
        ({"auto_augment": "rand-n1000000000"}, "auto_augment is rand-n1000000000; expected numbers of at most 100"),
        ({"auto_augment": "rand m9"}, "auto_augment is 'rand m9': expected str matching regex"),
        ({"data": "caf\udce9"}, r"data is caf\\xe9, which is no UTF-8, and the run's configuration"),
        ({"stage1_epochs": 0, "stage2_epochs": 0}, "0 epochs in all"),
        ({"dense": True, "distill": True}, "--dense trains the unslimmed model|--dense fine-tunes"),
        ({"learning_rate": 1}, "has 'learning_rate', which is no setting of training; there are: .*backbone_lr"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(settings)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers())), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([10**400, 10**5000, -(10**5000), "x" * 10**6, float("inf"), 1e26]),
)


@given(st.dictionaries(st.sampled_from(sorted(TrainConfig().to_dict())), VALUES, max_size=4))
def test_whatever_is_said_is_a_configuration_or_a_line(settings):
    try:
        config = settled(settings, None)
    except UsageError as error:
        assert error.message.isprintable() and len(error.message) < 700
        return
    numbers = [value for value in config.to_dict().values() if isinstance(value, (int, float))]
    assert all(math.isfinite(number) and abs(number) < 2**33 for number in numbers)
    assert TrainConfig.from_dict(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_every_seed_that_is_allowed_is_taken_by_all_that_is_seeded(seed):
    config = TrainConfig(seed=seed, batch=4)
    assert len(feeds.micro_batches(9, config, feeds.Share(), epoch=0)) == 2
    with feeds.seeded(feeds.seed_of(config.seed, 0, 0)), feeds.seeded(config.seed):
        assert np.random.random() < 1


def test_a_whole_number_passes_for_a_fraction():
    assert TrainConfig.from_dict({"warmup": 0, "clip_grad": 2}).clip_grad == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("\ufeffbatch = 0", "batch is 0: expected"),
        ("batch = ", "cannot be read: Invalid value"),
        ("lr = 1", "has 'lr', which is no"),
        ("x = " + "[" * 5000, "cannot be read: it is nested too deep"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "run.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as refused:
        settled({}, path)
    assert str(path) in refused.value.message or "batch is 0" in refused.value.message


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
