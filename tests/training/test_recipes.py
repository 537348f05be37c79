"""Whose settings a run has where none are given, and what learning rates and keep rates come of them."""

from __future__ import annotations

import math

import pytest
import tomli_w
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.recipe import LIFEDEPLOY, LR_BASE_SIZE, NO_RECIPE, PUBLISHED
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.loop import ramped
from lifedeploy.training.recipes import settled
from lifedeploy.training.stages import LearningRates, freeze, parameter_groups, plan
from tests.conftest import make_tiny

TRAINED = [name for name in methods.names() if methods.get(name).stages]


@pytest.mark.parametrize("method", TRAINED)
def test_the_published_recipe_is_what_is_taken_unless_told(method):
    config = settled({"method": method}, None)
    assert config.recipe == PUBLISHED
    recipe = dict(methods.get(method).recipe)
    share = config.batch / recipe.pop(LR_BASE_SIZE, config.batch)
    for name, value in recipe.items():
        assert getattr(config, name) == (value * share if name.endswith("_lr") else value)
    usual = TrainConfig()
    changed = {name for name, value in config.to_dict().items() if value != usual.to_dict()[name]}
    assert changed <= {"method", "recipe", "head_lr", *methods.get(method).recipe}
    assert config.total_epochs == (3 if method == "dense" else 2)  # the same budget for every method
    assert settled({"method": method, "recipe": NO_RECIPE}, None) == TrainConfig(method=method)


def test_published_recipes_in_numbers():
    """As their papers and scripts have them, which train EViT and A-ViT at lr · batch / 512."""
    evit = settled({"method": "evit", "batch": 512}, None)
    assert (evit.backbone_lr, evit.head_lr, evit.lr_min * evit.backbone_lr) == (2e-5, 2e-5, pytest.approx(2e-6))
    assert (evit.weight_decay, evit.warmup, evit.keep_ramp) == (1e-6, 0.0, (10 / 300, 110 / 300))
    dynamic = settled({"method": "dynamicvit"}, None)
    assert [(s.name, s.epochs, s.reducer, s.backbone, s.soft) for s in plan(dynamic)] == [
        ("single", 2, True, True, True)
    ]
    assert (dynamic.distill_labels, dynamic.distill_logits, dynamic.distill_tokens) == (1.0, 0.5, 0.5)
    assert dynamic.model_options == {"ratio_weight": 2.0}
    assert dynamic.backbone_lr == pytest.approx(0.01 * dynamic.predictor_lr)
    avit = settled({"method": "avit", "batch": 512}, None)
    assert (avit.backbone_lr, avit.model_options["ponder_weight"], avit.model_options["prior_weight"]) == (
        3e-4,
        5e-4,
        1e-3,
    )
    assert settled({}, None) == TrainConfig(recipe=PUBLISHED)  # the paper's, for lives


@pytest.mark.parametrize(
    ("method", "printed"), [("evit", 2e-5), ("tome", 2e-5), ("evo-vit", 5e-4), ("avit-ranked", 3e-4)]
)
def test_a_published_rate_goes_with_the_batch_and_a_given_one_does_not(method, printed, tmp_path):
    small = settled({"method": method, "batch": 32}, None)
    assert small.backbone_lr == small.head_lr == pytest.approx(printed / 16)
    assert settled({"method": method, "batch": 32, "accumulate": 4}, None).backbone_lr == small.backbone_lr
    assert settled({"method": method, "batch": 32, "backbone_lr": printed}, None).backbone_lr == printed
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(small.to_dict()), encoding="utf-8")
    assert settled({}, path) == small  # a run's own file has the rate, and is not scaled once more
    for other in ("life", "dynamicvit", "ia-red2", "random"):  # as printed
        assert settled({"method": other, "batch": 32}, None).backbone_lr == settled({"method": other}, None).backbone_lr


@pytest.mark.parametrize("method", [name for name in TRAINED if methods.get(name).role == methods.SLIMMED])
def test_our_recipe_is_the_same_for_every_method(method):
    """Lives are taught by where the dense model looks, so that they need no stage in which every token stays."""
    config, lives = settled({"method": method, "recipe": LIFEDEPLOY}, None), method == "life"
    assert config == TrainConfig(
        method=method,
        recipe=LIFEDEPLOY,
        distill=True,
        hard=True,
        epochs=2,
        single_stage=lives,
        backbone_lr=2e-5,
        head_lr=2e-5,
    )
    assert config.total_epochs == 2 and not plan(config)[-1].soft
    assert config.backbone_lr == settled({"dense": True}, None).backbone_lr  # of the model that it starts from
    given = settled({"method": method, "recipe": LIFEDEPLOY, "backbone_lr": 1e-5, "batch": 32}, None)
    assert (given.backbone_lr, given.head_lr) == (1e-5, 1e-5)
    stages = len(plan(config.but(single_stage=False)))
    assert len(plan(config)) == (1 if lives else stages)


def test_lives_that_nothing_teaches_without_a_gradient_have_a_stage_of_their_own():
    for given in ({"distill": False}, {"distill_lives": 0.0}, {"single_stage": False}):
        config = settled({"recipe": LIFEDEPLOY} | given, None)
        assert [(stage.name, stage.soft) for stage in plan(config)] == [("predictor", True), ("backbone", False)]
    assert [stage.epochs for stage in plan(settled({"recipe": LIFEDEPLOY, "epochs": 5}, None))] == [5]


def test_what_is_given_goes_over_a_recipe_and_a_file_over_it_too(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('method = "evit"\nwarmup = 0.2\nrecipe = "published"\n', encoding="utf-8")
    config = settled({"backbone_lr": 1e-4}, path)
    assert (config.warmup, config.backbone_lr, config.head_lr, config.weight_decay) == (0.2, 1e-4, 1e-4, 1e-6)
    assert settled({"recipe": LIFEDEPLOY}, path).but(warmup=0.1) == settled(
        {"method": "evit", "recipe": LIFEDEPLOY}, None
    )


@pytest.mark.parametrize("given", [{"counts": [9, 5, 3]}, {"elastic": True}])
def test_a_keep_rate_that_there_is_not_does_not_fall(given):
    assert settled({"method": "evit"} | given, None).keep_ramp == (0.0, 0.0)


def test_a_keep_rate_falls_as_it_is_told_and_not_at_all_where_it_is_told_not_to():
    assert settled({"recipe": LIFEDEPLOY, "keep_ramp": (0.1, 0.4)}, None).keep_ramp == (0.1, 0.4)
    assert settled({"method": "evit", "keep_ramp": (0.0, 0.0)}, None).keep_ramp == (0.0, 0.0)


@pytest.mark.parametrize("given", [{"dense": True}, {"method": "dense"}])
def test_the_dense_model_cannot_learn_from_itself(given):
    with pytest.raises(UsageError, match="recipe lifedeploy teaches a slimmed model what the dense one knows"):
        settled(given | {"recipe": LIFEDEPLOY}, None)


def test_a_recipe_of_another_package_that_cannot_be_is_said(plugged, monkeypatch):
    from tests import plugins
    from tests.plugins import entry

    monkeypatch.setattr(plugins, "OTHER", methods_with(plugins.OTHER, {"learning_rate": 1.0}))
    plugged(entry("tests.plugins:OTHER"))
    with pytest.raises(
        UsageError, match=r"method other of lifedeploy-other 1\.2 cannot be used: its recipe has .learn"
    ):
        settled({"method": "other"}, None)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"epochs": "two"}, "its recipe cannot be: epochs is 'two': expected int"),
        ({"data": "elsewhere"}, "its recipe has 'data', which is no setting of training that a method has a say in"),
        ({"lr_base_size": "512"}, "lr_base_size of its recipe is '512', expected a number of images"),
        ({"lr_base_size": 0}, "lr_base_size of its recipe is 0, expected a number of images"),
        ({"lr_base_size": 512, "backbone_lr": -1.0}, "its recipe cannot be: backbone_lr is "),
        ({"keep_ramp": (0.5, 0.1)}, "its recipe cannot be: keep_ramp is 0.5, 0.1; expected the smaller number first"),
    ],
)
def test_what_a_recipe_cannot_say_is_said_with_whose_it_is(plugged, monkeypatch, recipe, said):
    from tests import plugins
    from tests.plugins import entry

    monkeypatch.setattr(plugins, "OTHER", methods_with(plugins.OTHER, recipe))
    plugged(entry("tests.plugins:OTHER"))
    with pytest.raises(UsageError, match=rf"method other of .* cannot be used: {said}"):
        settled({"method": "other"}, None)


def test_what_trains_in_no_stage_is_said_as_it_was():
    with pytest.raises(UsageError, match=r"^plain says of no stage what it trains: it is used as it is"):
        settled({"method": "plain"}, None)


def methods_with(row, recipe):
    from dataclasses import replace

    return replace(row, recipe=recipe)


def test_rates_of_zero_are_rates():
    config = settled({"backbone_lr": 0}, None)
    assert (config.backbone_lr, config.head_lr) == (0, 0)
    assert settled({"dense": True, "recipe": NO_RECIPE, "backbone_lr": 0}, None).head_lr == 0
    assert settled({"dense": True, "backbone_lr": 0}, None).head_lr == 0


@pytest.mark.parametrize("method", ["dynamicvit", "ia-red2"])
def test_hard_makes_two_stages_of_one(method):
    """Tokens leave in a stage in which the backbone alone trains."""
    stages = plan(settled({"method": method, "hard": True}, None))
    assert [(stage.reducer, stage.backbone, stage.soft) for stage in stages] == [
        (True, False, True),
        (False, True, False),
    ]
    for given in ({"single_stage": True}, {"single_stage": True, "distill": True}):
        with pytest.raises(UsageError, match=rf"--single-stage --hard leaves nothing that teaches {method}"):
            settled({"method": method, "hard": True} | given, None)
    with pytest.raises(UsageError, match="trains in two stages, and epochs are of one"):
        settled({"method": method, "hard": True, "epochs": 4}, None)


def test_epochs_are_those_of_a_single_stage():
    assert settled({"method": "dynamicvit", "epochs": 30}, None).total_epochs == 30
    assert settled({"single_stage": True, "epochs": 7}, None).total_epochs == 7
    assert settled({"method": "evit", "epochs": 7}, None).total_epochs == 7
    for given in ({"epochs": 30}, {"method": "dynamicvit", "epochs": 30, "recipe": NO_RECIPE}):
        with pytest.raises(UsageError, match="trains in two stages, and epochs are of one"):
            settled(given, None)


def test_the_configuration_of_a_run_is_no_recipes_to_add_to(tmp_path):
    """As version 0.1 wrote it down: it says all that there was to say."""
    written = TrainConfig(method="evit").to_dict()
    for name in ("recipe", "keep_ramp", "lr_min", "backbone_delay", "backbone_curve", "frozen", "distill_labels"):
        del written[name]
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(written), encoding="utf-8")
    assert settled({}, path) == TrainConfig(method="evit")


def test_what_labels_count_is_the_recipes_where_a_file_does_not_say(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('method = "dynamicvit"\ndistill_logits = 0.25\n', encoding="utf-8")
    assert settled({}, path).distill_labels == 1.0
    path.write_text("distill = true\ndistill_logits = 0.25\n", encoding="utf-8")
    assert settled({}, path).distill_labels == 0.75


@pytest.mark.parametrize(
    ("options", "gives"), [({}, False), ({"r": ""}, False), ({"r": "3"}, True), ({"inflect": 0.0}, False)]
)
def test_a_budget_is_one_that_is_given(options, gives):
    config = TrainConfig(method="tome", options=options)
    assert config.has_own_budget == gives
    assert methods.get("tome").gives_budget(config.model_options) == gives


# --- learning rates ---------------------------------------------------------------------------------------------


def rates_of(config: TrainConfig, steps: int) -> tuple[list[list[float]], list[str]]:
    """Step → the rate of each group; and of which part each group is."""
    model, _ = make_tiny()
    freeze(model, plan(config)[0], config.frozen)
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    rates = LearningRates(optimizer, steps, config)
    found = []
    for step in range(1, steps + 1):
        rates.set(step)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found, [group["part"] for group in optimizer.param_groups]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_are_those_of_timm(warmup):
    """As they have been since the first version, to the last digit that matters: runs of then go on."""
    config = TrainConfig(single_stage=True, warmup=warmup, predictor_lr=1e-3, backbone_lr=1e-5, head_lr=1e-4)
    found, _ = rates_of(config, 40)
    model, _ = make_tiny()
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    theirs = CosineLRScheduler(
        optimizer, t_initial=41, warmup_t=round(warmup * 40), warmup_lr_init=0.0, t_in_epochs=False
    )
    for step, rates in enumerate(found, start=1):
        theirs.step_update(step)
        assert rates == pytest.approx([group["lr"] for group in optimizer.param_groups], rel=1e-12)


def test_a_decay_may_end_at_a_share():
    found, _ = rates_of(TrainConfig(single_stage=True, warmup=0.0, lr_min=0.1, predictor_lr=1.0), 1000)
    rates = [max(step) for step in found]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4) and rates[499] == pytest.approx(0.55, abs=2e-3)


def test_a_backbone_may_wait_and_may_be_held_below_the_methods_own_rate():
    config = TrainConfig(
        single_stage=True, warmup=0.0, predictor_lr=1e-3, backbone_lr=1e-5, backbone_delay=0.1, backbone_curve="capped"
    )
    found, parts = rates_of(config, 100)
    for step, rates in enumerate(found, start=1):
        own = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 101))
        for part, rate in zip(parts, rates, strict=True):
            wanted = own if part == "reducer" else 0.0 if step <= 10 else min(1e-5, own)
            assert rate == pytest.approx(wanted, rel=1e-9)
    assert found[-1][parts.index("backbone")] < 1e-5  # at the very end it is the other that is lower


def test_rates_begin_anew_for_each_part():
    model, _ = make_tiny()
    config = TrainConfig(single_stage=True, warmup=0.2, predictor_lr=1.0)
    freeze(model, plan(config)[0])
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    apart, alone = LearningRates(optimizer, 40, config, rounds=3), LearningRates(optimizer, 14, config)
    seen = []
    for rates, steps in ((apart, 40), (alone, 14)):
        seen.append([])
        for step in range(1, steps + 1):
            rates.set(step)
            seen[-1].append(rates.largest)
    assert seen[0][:14] == seen[1]
    assert [step for step in range(1, 40) if seen[0][step] > 3 * seen[0][step - 1]] == [14, 27]  # where parts begin


def test_moments_keep_their_numbers():
    """States hold them by the number of a parameter: that of version 0.1, where parts are not treated apart."""
    model, _ = make_tiny()
    config = TrainConfig(single_stage=True, predictor_lr=1e-5, backbone_lr=1e-5, head_lr=1e-5)
    freeze(model, plan(config)[0])
    assert len(parameter_groups(model, config)) == 2  # what decays, and what does not
    assert len(parameter_groups(model, config.but(backbone_curve="capped"))) == 4


def test_a_parameter_that_stays_is_in_no_group():
    model, _ = make_tiny()
    config = TrainConfig(single_stage=True, frozen=("cls_token", "pos_embed"))
    freeze(model, plan(config)[0], config.frozen)
    grouped = {id(p) for group in parameter_groups(model, config) for p in group["params"]}
    assert id(model.backbone.cls_token) not in grouped and id(model.backbone.pos_embed) not in grouped
    assert id(model.backbone.patch_embed.proj.weight) in grouped


# --- a keep rate that falls -------------------------------------------------------------------------------------


def test_a_keep_rate_falls_from_one_by_a_cosine():
    ramp = (0.2, 0.6)
    assert [ramped(0.5, progress, ramp) for progress in (0.0, 0.1, 0.2)] == [1.0, 1.0, 1.0]
    assert ramped(0.5, 0.4, ramp) == pytest.approx(0.75)
    assert ramped(0.5, 0.3, ramp) == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi / 4)))
    assert [ramped(0.5, progress, ramp) for progress in (0.6, 0.9)] == pytest.approx([0.5, 0.5])
    assert ramped(0.5, 0.3, (0.3, 0.3)) == 0.5 and ramped(0.5, 0.2, (0.3, 0.3)) == 1.0
