"""The configuration: what it refuses, and that TOML says the same."""

from __future__ import annotations

import json
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy.errors import UsageError
from lifedeploy.processes import Processes
from lifedeploy.training import loader
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.recipes import settled
from tests.plugins import entry


def test_a_configuration_survives_toml(tmp_path):
    config = TrainConfig(
        data="x",
        options={"temperature": 2.5},
        counts=(9, 5),
        drop_layers=(2, 3),
        image_size=(64, 32),
        elastic=True,
        ema=0.99,
    )
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert settled({}, path) == config


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
        ({"options": {"temperature": 0}}, "temperature is 0: expected float >= 0.001"),
        ({"temperature": 0}, "temperature is 0: expected float >= 0.001"),
        ({"options": {"merged": 8}}, "'merged' is no option of life; there are: temperature"),
        ({"options": 5}, "options is 5: expected object, got int"),
        ({"temperature": 2.0, "options": 5}, "options is 5: expected object, got int"),
        ({"method": "dense", "options": {"temperature": 2}}, "'temperature' is no option of dense; it has none"),
        ({"method": "lief"}, "method 'lief' is unknown; there are: life, .*, dense"),
        (
            {"method": "first-k"},
            "first-k is no method to slim a model by, but the bound .*: life, .*, dense",
        ),
        ({"method": "other", "dense": True}, "--dense and --method other exclude each other: dense drops nothing"),
        ({"method": "other", "single_stage": True}, "other trains in one stage as it is, without --single-stage"),
        ({"method": "other", "epochs": 0}, "0 epochs in all"),
        ({"method": "other", "options": {"fuse": 1}}, "fuse is 1: expected bool, got int"),
        ({"method": "untrained"}, "untrained says of no stage what it trains: it is used as it is"),
        ({"method": "dense", "elastic": True}, "--dense fine-tunes"),
        ({"precision": "fp8"}, "precision is 'fp8': expected one of auto, fp32, bf16, fp16"),
        ({"scale": [0.9, 0.5]}, "scale is 0.9, 0.5; expected the smaller number first"),
        ({"scale": [0.9]}, r"scale is \(0.9,\): expected array of length 2, got 1"),
        ({"scale": 0.9}, "scale is 0.9: expected array, got float"),
        ({"scale": [0.9, 1.5]}, r"scale is \(0.9, 1.5\): expected float <= 1.0 - at \$\[1\]"),
        ({"elastic_range": [0.5, 1.2]}, "expected float <= 1.0"),
        ({"distill_logits": -1.5}, "distill_logits is -1.5: expected float >= 0.0"),
        ({"recipe": "ours"}, "recipe is 'ours': expected one of published, lifedeploy, none"),
        ({"keep_ramp": [0.5, 0.1]}, "keep_ramp is 0.5, 0.1; expected the smaller number first"),
        (
            {"keep_ramp": [0.0, 0.5], "counts": [9, 5]},
            "--keep-ramp lets one keep rate fall: not with --dense, --elastic, counts or own budgets",
        ),
        ({"keep_ramp": [0.0, 0.5], "elastic": True}, "--keep-ramp lets one keep rate fall"),
        ({"keep_ramp": [0.0, 0.5], "dense": True}, "--keep-ramp lets one keep rate fall"),
        ({"backbone_curve": "flat"}, "backbone_curve is 'flat': expected one of cosine, capped"),
        ({"backbone_delay": 1.0}, "backbone_delay is 1.0: expected float < 1.0"),
        ({"lr_min": 2}, "lr_min is 2: expected float <= 1.0"),
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
def test_what_cannot_be_is_refused_in_a_line(plugged, settings, message):
    plugged(entry("tests.plugins:OTHER"), entry("tests.plugins:UNTRAINED", "untrained"))
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


NAMES = [*sorted(TrainConfig().to_dict()), "temperature"]
OPTIONS = st.dictionaries(st.sampled_from(["temperature", "x"]), VALUES, max_size=2)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4) | st.fixed_dictionaries({"options": OPTIONS}))
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
    assert len(loader.micro_batches(9, config, Processes(), epoch=0)) == 2
    with loader.seeded(loader.seed_of(config.seed, 0, 0)), loader.seeded(config.seed):
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


def test_options_of_a_method_go_over_those_of_the_file_one_by_one(plugged, tmp_path):
    plugged(entry("tests.plugins:OTHER"))
    path = tmp_path / "run.toml"
    path.write_text('method = "other"\n[options]\nmerged = 16\nfuse = false\n', encoding="utf-8")
    assert settled({"options": {"merged": 4}}, path).options == {"merged": 4, "fuse": False}
    assert settled({"options": {"merged": 4}, "method": "other"}, path).options == {"merged": 4, "fuse": False}
    assert settled({"options": {"temperature": 2.0}, "method": "life"}, path).options == {"temperature": 2.0}
    path.write_text("temperature = 3\n", encoding="utf-8")  # of the usual method, and from before there were options
    assert settled({}, path).model_options == {"temperature": 3.0}
    assert settled({"options": {"temperature": 2.0}}, path).options == {"temperature": 2.0}
    path.write_text("options = 5\n", encoding="utf-8")
    assert settled({"options": {"temperature": 2.0}}, path).options == {"temperature": 2.0}
    with pytest.raises(UsageError, match="options is 5: expected object, got int"):
        settled({}, path)


def test_what_is_trained_has_all_its_options():
    assert TrainConfig().model_options == {"temperature": 1.5}
    assert TrainConfig(options={"temperature": 2}).model_options == {"temperature": 2.0}
    # From when there was one method, whose option stood among the settings, in dense runs too.
    assert TrainConfig.from_dict({"dense": True, "temperature": 3.0}).model_options == {}


# All that decided the result of ``TrainConfig()`` in version 0.1, before methods had options: what a run's fingerprint
# was made of. Runs that were begun then are continued, so it stays to the digit.
DECISIVE = {
    "accumulate": 1, "auto_augment": "", "backbone": "deit_s", "backbone_lr": 1e-05, "batch": 128, "clip_grad": 1.0,
    "color_jitter": 0.0, "counts": [], "cutmix": 0.0, "data": "", "dense": False, "distill": False,
    "distill_lives": 1.0, "distill_logits": 1.0, "distill_tokens": 0.5, "drop_layers": [], "drop_path": 0.0,
    "elastic": False, "elastic_range": [0.4, 0.95], "ema": 0.0, "epochs": 3, "hard": False, "head_lr": 1e-05,
    "hflip": 0.5, "image_size": [], "keep_rate": 0.7, "label_smoothing": 0.0, "mixup": 0.0, "precision": "auto",
    "predictor_lr": 0.001, "random_erasing": 0.0, "ratio": [0.75, 1.3333], "scale": [0.6, 1.0], "seed": 0,
    "single_stage": False, "stage1_epochs": 1, "stage2_epochs": 1, "temperature": 1.5, "val_share": 0.1, "vflip": 0.0,
    "warmup": 0.1, "weight_decay": 0.05, "weights": "auto",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        (
            {"dense": True, "epochs": 30, "backbone_lr": 2e-5, "head_lr": 2e-4, "data": "digits"},
            {"backbone_lr": 2e-05, "data": "digits", "dense": True, "epochs": 30, "head_lr": 0.0002},
        ),
        (  # whole numbers as a TOML file has them
            {"temperature": 2, "counts": [9, 5], "drop_layers": [2, 3], "image_size": [64, 64], "warmup": 0},
            {"counts": [9, 5], "drop_layers": [2, 3], "image_size": [64, 64], "temperature": 2, "warmup": 0},
        ),
        (
            {"temperature": 0.5, "elastic": True, "distill": True, "hard": True, "keep_rate": 0.5},
            {"distill": True, "elastic": True, "hard": True, "keep_rate": 0.5, "temperature": 0.5},
        ),
        ({"dense": True, "temperature": 3.0}, {"dense": True, "temperature": 3.0}),
        ({"workers": 3, "checkpoint_every": 7, "log_every": 1, "tensorboard": True}, {}),
    ],
)
def test_what_decided_a_run_before_methods_had_options_decides_it_still(given, changed):
    assert fingerprinted(TrainConfig.from_dict(given)) == fingerprinted(DECISIVE | changed)
    now = {("options" if name == "temperature" else name): value for name, value in given.items()}
    if "options" in now:
        now["options"] = {"temperature": now["options"]}
    assert fingerprinted(TrainConfig.from_dict(now)) == fingerprinted(DECISIVE | changed)


def fingerprinted(facts: TrainConfig | dict[str, object]) -> str:
    """As it is hashed: 2 and 2.0 are equal, but not there."""
    return json.dumps(facts.decisive() if isinstance(facts, TrainConfig) else facts, sort_keys=True)


def test_another_method_and_its_options_decide(plugged):
    plugged(entry("tests.plugins:OTHER"))
    facts = TrainConfig(method="other", options={"merged": 4}).decisive()
    expected = DECISIVE | {"method": "other", "merged": 4, "fuse": True, "pooled_by": "mean", "sharpness": 2.0}
    del expected["temperature"]
    assert facts == expected


def test_a_dense_run_has_rates_of_its_own_unless_they_are_given():
    assert (settled({"dense": True}, None).backbone_lr, settled({"dense": True}, None).head_lr) == (2e-5, 2e-4)
    assert settled({"dense": True, "backbone_lr": 1e-3}, None).head_lr == pytest.approx(1e-2)
    assert settled({"backbone_lr": 3e-5}, None).head_lr == 3e-5
    assert settled({}, None).backbone_lr == 1e-5
