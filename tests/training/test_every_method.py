"""What holds for lives in training holds for every method: the same tests, over all that have stages."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lifedeploy import machine, methods
from lifedeploy.artifact import Workspace
from lifedeploy.errors import UsageError
from lifedeploy.model import checkpoint
from lifedeploy.model.request import ModelRequest
from lifedeploy.model.vit import SlimViT
from lifedeploy.model.weights import load
from lifedeploy.recipe import LIFEDEPLOY, PUBLISHED
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.log import read_log
from lifedeploy.training.loop import Trainer
from lifedeploy.training.recipes import settled
from lifedeploy.training.stages import LearningRates, freeze, parameter_groups, plan
from lifedeploy.training.start import load_start
from lifedeploy.workflows.train import TrainRequest, resumed, train
from tests.training.test_runs import ROOT, comparable, digest, stopped_after, weights_of

TRAINED = [name for name in methods.names() if methods.get(name).stages]
SLIMMED = [name for name in TRAINED if methods.get(name).role == methods.SLIMMED]
DRAWS = {"dynamicvit", "ia-red2"}  # in the forward pass, from the generator of each process


def small(settings, method: str, **changes) -> TrainConfig:
    """The recipe of a method, on images that take a second; rates under which that teaches something."""
    usual = settings().to_dict()
    shared = ("backbone", "image_size", "data", "val_share", "batch", "weights", "precision", "workers", "log_every")
    given = {name: usual[name] for name in shared} | {"backbone_lr": 1e-3, "head_lr": 1e-3, "predictor_lr": 1e-2}
    return settled(given | {"method": method} | changes, None)


@pytest.fixture(scope="session")
def unbroken(settings, tmp_path_factory):
    """The run of a method, under a recipe, that nothing stopped."""

    @cache
    def run(method: str, recipe: str) -> Path:
        config = small(settings, method, recipe=recipe, checkpoint_every=1)
        workspace = Workspace(tmp_path_factory.mktemp(f"{method}-{recipe}"))
        return train(TrainRequest(config=config, name="unbroken"), workspace).folder

    return run


@pytest.mark.parametrize("recipe", [PUBLISHED, LIFEDEPLOY])
@pytest.mark.parametrize("method", SLIMMED)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(settings, workspace, unbroken, method, recipe):
    """After the fourth of six steps, in the second epoch: of the second stage, where there is one."""
    config = small(settings, method, recipe=recipe, checkpoint_every=1)
    whole = unbroken(method, recipe)

    with stopped_after(4):
        train(TrainRequest(config=config, name="broken"), workspace)
    folder = workspace.root / "checkpoints" / "broken"
    torch.rand(7)  # what was drawn meanwhile is of no consequence
    train(resumed(folder), workspace)
    ours, theirs = weights_of(folder), weights_of(whole)
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert comparable(folder) == comparable(whole)


@pytest.mark.parametrize("recipe", [PUBLISHED, LIFEDEPLOY])
@pytest.mark.parametrize("method", SLIMMED)
def test_what_a_stage_trains_moves_and_nothing_else(settings, workspace, unbroken, method, recipe):
    config = small(settings, method, recipe=recipe)
    folder = unbroken(method, recipe)
    before = {name: tensor for name, tensor in start(config).items() if "train_only" not in name}
    for stage in plan(config):
        after = weights_of(folder, f"after-{stage.name}")
        assert set(after) == set(before)  # what training alone has is in no checkpoint
        for backbone, trains in ((True, stage.backbone), (False, stage.reducer)):
            if any(name.startswith("backbone.") == backbone for name in before):
                moved = digest(after, backbone=backbone) != digest(before, backbone=backbone)
                assert moved == trains, f"{stage.name}: {'backbone' if backbone else 'reducer'}"
        for name in config.frozen:
            assert torch.equal(after[f"backbone.{name}"], before[f"backbone.{name}"])
        before = after


@pytest.mark.parametrize("method", TRAINED)
def test_the_optimiser_itself_steps_at_the_rates_of_the_schedule(settings, workspace, method):
    """Not groups that it had before it was prepared: then every step would be at the highest rate."""
    config, taken = small(settings, method, log_every=1), []

    def note(optimizer, args, kwargs) -> None:
        taken.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(note)
    try:
        folder = train(TrainRequest(config=config, name="run"), workspace).folder
    finally:
        handle.remove()
    model, expected = load_start(config, ("blue", "green", "red"), Workspace(Path("nowhere"))).model, []
    steps = len(taken) // config.total_epochs
    for stage in plan(config):
        if stage.soft and stage.backbone:
            model.reducer.equip(model.adapted)
        freeze(model, stage, config.frozen)
        apart = torch.optim.AdamW(parameter_groups(model, config))
        rounds = model.reducer.turns if stage.reducer and stage.soft else 1
        rates = LearningRates(apart, stage.epochs * steps, config, rounds)
        for step in range(stage.epochs * steps):
            rates.set(step + 1)
            expected.append([group["lr"] for group in apart.param_groups])
    assert taken == expected
    assert [row.lr for row in read_log(folder / "log.csv") if row.kind == "train"] == [max(rates) for rates in taken]
    assert min(map(max, taken)) < 0.8 * max(map(max, taken))


@pytest.mark.parametrize(
    ("precision", "tiles", "fused"), [("bf16", True, {False}), ("bf16", False, {True}), ("fp32", True, {True})]
)
def test_with_tiles_attention_trains_as_products(settings, workspace, monkeypatch, precision, tiles, fused):
    seen: set[bool] = set()
    step = Trainer._step

    def watched(trainer, *arguments) -> None:
        blocks = trainer.job.model.adapted.blocks
        seen.update(block.attn.fused_attn for block in blocks)
        step(trainer, *arguments)

    monkeypatch.setattr(machine, "bf16_tiles", lambda: tiles)
    monkeypatch.setattr(Trainer, "_step", watched)
    train(TrainRequest(config=small(settings, "life", precision=precision), name="run"), workspace)
    assert seen == fused


def start(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The weights that a run starts from."""
    classes = ("blue", "green", "red")
    return dict(load_start(config, classes, Workspace(Path("nowhere"))).model.state_dict())


@pytest.mark.parametrize("method", SLIMMED)
def test_what_was_trained_is_read_as_what_it_is(unbroken, method):
    folder = unbroken(method, PUBLISHED)
    spec = checkpoint.read_spec(folder / "last.safetensors")
    assert spec is not None and (spec.method, spec.provenance.weights) == (method, "trained")
    assert spec.provenance.predictor == ("trained" if methods.get(method).trains_reducer else "none")
    request = ModelRequest(backbone="test_vit", method=method, weights=str(folder / "last.safetensors"))
    loaded = load(request, Workspace(folder))
    assert loaded.spec.schedule == spec.schedule
    assert loaded.model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 3)


@pytest.mark.parametrize("method", SLIMMED)
def test_bf16_trains_every_method(settings, workspace, method):
    report = train(TrainRequest(config=small(settings, method, precision="bf16", weight_decay=0.01)), workspace)
    assert report.precision == "bf16"
    state = weights_of(report.folder)
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in state.values())
    assert digest(state, backbone=True) != digest(start(report.config), backbone=True)


@pytest.mark.parametrize("method", SLIMMED)
def test_averaged_weights_mixtures_and_parts_of_a_batch_go_with_every_method(settings, workspace, method):
    config = small(settings, method, ema=0.9, mixup=0.3, drop_path=0.1, accumulate=2, label_smoothing=0.1)
    report = train(TrainRequest(config=config), workspace)
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(report.folder).values())
    assert all(row.loss == row.loss for row in read_log(report.folder / "log.csv"))


def test_two_processes_train_every_method_as_one_does(settings, workspace, unbroken, tmp_path):
    """Where nothing is drawn in the forward pass; else both have the same weights at the end, or the run would end with
    an error: gradients are awaited of every parameter.
    """
    files, runs = [], [*((method, PUBLISHED) for method in SLIMMED), ("life", LIFEDEPLOY)]
    for method, recipe in runs:
        files.append(tmp_path / f"{method}-{recipe}.toml")
        config = small(settings, method, recipe=recipe, checkpoint_every=1)
        files[-1].write_text(config.to_toml(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633"]
    command += ["-m", "tests.training.two_processes", str(workspace.root), *map(str, files)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    for method, recipe in runs:
        ours = weights_of(workspace.root / "checkpoints" / f"{method}-{recipe}")
        theirs = weights_of(unbroken(method, recipe))
        assert set(ours) == set(theirs)
        for name, tensor in theirs.items():
            if method in DRAWS:
                assert bool(ours[name].isfinite().all())
            else:
                torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=2e-3, msg=f"{method}: {name}")


def test_a_stage_that_a_method_lacks_is_skipped_and_that_is_said(settings, workspace):
    said: list[str] = []
    train(TrainRequest(config=small(settings, "topk", epochs=1)), workspace, note=said.append)
    assert said == [
        "topk has no parameters of its own to train: that stage is skipped, and --epochs says how long the backbone "
        "trains (1)"
    ]
    said.clear()
    train(
        TrainRequest(config=small(settings, "dynamicvit", stage1_epochs=1, stage2_epochs=0)),
        workspace,
        note=said.append,
    )
    assert said == []


def test_a_parameter_that_is_to_stay_and_is_not_there_is_refused_by_name(settings, workspace):
    config = small(settings, "dynamicvit").but(frozen=("pos_embed", "dist_token"))
    with pytest.raises(UsageError, match=r"frozen names 'dist_token', and test_vit has no such parameter; there are: "):
        train(TrainRequest(config=config), workspace)
    assert not (workspace.root / "checkpoints").exists()


@pytest.mark.parametrize("method", ["ia-red2", "avit-ranked"])
def test_a_form_that_knows_no_keep_rate_cannot_learn_many(settings, workspace, method):
    for option, given in (("--elastic", {"elastic": True}), ("--keep-ramp", {"keep_ramp": (0.0, 0.5)})):
        with pytest.raises(UsageError, match=rf"{option} .* in stage .* {method} trains in a form that knows of none"):
            train(TrainRequest(config=small(settings, method, **given)), workspace)
    report = train(TrainRequest(config=small(settings, method, elastic=True, hard=True)), workspace)
    assert report.spec.provenance.elastic


@pytest.mark.parametrize("method", [name for name in SLIMMED if methods.get(name).takes_keep_rate])
def test_the_keep_rate_falls_from_1_where_that_is_asked_for(settings, workspace, monkeypatch, method):
    config, seen = small(settings, method, recipe=LIFEDEPLOY, keep_ramp=(0.0, 0.9)), []
    forward = SlimViT.forward

    def note(self, images, **how):
        if self.backbone.training and "progress" in how:
            seen.append((how["schedule"] or self.schedule).counts)
        return forward(self, images, **how)

    monkeypatch.setattr(SlimViT, "forward", note)
    spec = train(TrainRequest(config=config), workspace).spec
    assert all(count == spec.schedule.patches for count in seen[0])
    assert all(
        later <= earlier for before, after in pairwise(seen) for earlier, later in zip(before, after, strict=True)
    )
    assert seen[-1] < seen[0]
    assert spec.schedule.keep_rate == config.keep_rate and not spec.provenance.elastic


def test_a_keep_rate_that_has_nowhere_to_fall_from_is_one_as_it_stands(settings, workspace):
    """The recipe has a ramp, and at this rate the token that is made of the rest makes up for the one that leaves."""
    config = small(settings, "evit", keep_rate=0.95, epochs=1)
    assert config.keep_ramp[1]
    assert set(train(TrainRequest(config=config), workspace).spec.schedule.counts) == {16}


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [("evo-vit", {}, "evo-vit takes no keep rate"), ("tome", {"r": "2"}, "r 2 and keep rate 0.4 both say how many")],
)
def test_a_budget_that_knows_no_keep_rate_cannot_learn_many(settings, workspace, method, options, said):
    with pytest.raises(UsageError, match=f"^{said}"):
        train(TrainRequest(config=small(settings, method, elastic=True, options=options)), workspace)
    assert not (workspace.root / "checkpoints").exists()


def test_a_keep_rate_is_kept_where_a_method_has_a_budget_of_its_own(settings, workspace):
    counts = []
    for rate in (0.7, 0.5):
        config = small(settings, "tome", keep_rate=rate, epochs=1)
        spec = train(TrainRequest(config=config), workspace).spec
        assert spec.schedule.keep_rate == rate
        counts.append(spec.schedule.counts)
    own = train(TrainRequest(config=small(settings, "tome", epochs=1, options={"r": "2"}), name="own"), workspace).spec
    assert own.schedule.keep_rate is None and own.schedule.counts[0] == own.schedule.patches - 2
    assert counts[0] != counts[1]


def test_what_a_method_cannot_do_with_a_backbone_is_said_before_a_folder_is_made(settings, workspace):
    config = small(settings, "avit", backbone="vit_tiny_patch16_224.augreg_in21k", image_size=(64, 64))
    from lifedeploy.model import backbones

    create = backbones.create

    def pooling(*arguments, **options):
        vit = create(*arguments, **options)
        vit.global_pool = "avg"
        return vit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "create", pooling)
        with pytest.raises(UsageError, match="A-ViT reads classes from CLS, and this backbone pools patches"):
            train(TrainRequest(config=config), workspace)
    assert not (workspace.root / "checkpoints").exists()


def test_a_token_that_nobody_reads_has_a_head_that_does_not_train(settings, workspace):
    """Else several processes would wait for its gradient."""
    config = small(settings, "evo-vit", backbone="deit_tiny_distilled_patch16_224", epochs=1)
    before = start(config)
    after = weights_of(train(TrainRequest(config=config), workspace).folder)
    unread = [name for name in before if name.startswith("backbone.head_dist.")]
    assert unread and all(torch.equal(after[name], before[name]) for name in unread)
    assert not torch.equal(after["backbone.head.weight"], before["backbone.head.weight"])
