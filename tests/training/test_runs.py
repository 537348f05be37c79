"""Whole runs on a tiny model: what is frozen stays, what is killed goes on, two processes are one."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file

from lifedeploy.artifact import Workspace
from lifedeploy.errors import ImageError, TrainingError, UsageError
from lifedeploy.model import backbones, checkpoint
from lifedeploy.model.vit import SlimViT
from lifedeploy.training import loop
from lifedeploy.training.log import read_log
from lifedeploy.training.runs import run_config
from lifedeploy.workflows.train import TrainRequest, resumed, train

ROOT = Path(__file__).parents[2]


def weights_of(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / f"{name}.safetensors").state


def digest(state: dict[str, torch.Tensor], *, backbone: bool) -> str:
    chosen = [state[name] for name in sorted(state) if name.startswith("backbone.") == backbone]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in chosen)).hexdigest()


def comparable(folder: Path) -> list[object]:
    """The log without its speeds."""
    return [replace(row, images_per_s=0.0) for row in read_log(folder / "log.csv")]


def test_each_stage_leaves_the_other_part_alone(settings, workspace):
    """Norms and buffers included: the digest is over the whole state of a part."""
    start = (
        train(TrainRequest(config=settings(dense=True, epochs=1), name="start"), workspace).folder / "last.safetensors"
    )
    config = settings(weights=str(start))
    first = train(TrainRequest(config=config.but(stage2_epochs=0), name="one"), workspace).folder
    both = train(TrainRequest(config=config, name="both"), workspace).folder
    second = train(TrainRequest(config=config.but(stage1_epochs=0), name="two"), workspace).folder
    before, one, two, end = (weights_of(folder) for folder in (start.parent, first, second, both))
    assert digest(one, backbone=True) == digest(before, backbone=True)
    assert digest(one, backbone=False) != digest(two, backbone=False)
    assert digest(two, backbone=True) != digest(before, backbone=True)
    assert torch.equal(two["reducer.predictor.weight"], torch.eye(64))
    assert digest(end, backbone=False) == digest(one, backbone=False)
    assert digest(end, backbone=True) != digest(before, backbone=True)


def test_a_single_stage_trains_both(settings, workspace):
    folder = train(TrainRequest(config=settings(single_stage=True)), workspace).folder
    assert folder.name == "test_vit-life-r0.7-64x64px-single"
    state = weights_of(folder)
    assert not torch.equal(state["reducer.predictor.weight"], torch.eye(64))
    assert {row.stage for row in read_log(folder / "log.csv")} == {"single"}


def test_lives_that_are_taught_train_beside_a_backbone_whose_tokens_leave(settings, workspace, monkeypatch):
    """Nothing but the dense model's attention teaches the predictor then."""
    forms: set[bool] = set()
    forward = SlimViT.forward

    def watched(model, images, *, soft=False, **rest):
        if model.training or any(parameter.requires_grad for parameter in model.parameters()):
            forms.add(soft)
        return forward(model, images, soft=soft, **rest)

    monkeypatch.setattr(SlimViT, "forward", watched)
    folder = train(TrainRequest(config=settings(single_stage=True, hard=True, distill=True)), workspace).folder
    assert folder.name.endswith("-single-hard-distill") and forms == {False}
    state = weights_of(folder)
    assert not torch.equal(state["reducer.predictor.weight"], torch.eye(64))


def test_dense_training_learns_the_colours(settings, workspace):
    report = train(TrainRequest(config=settings(dense=True, epochs=8)), workspace)
    assert report.folder.name == "test_vit-dense-64x64px"
    assert report.outcomes[-1].accuracy >= 0.8
    assert report.spec.classes == ("blue", "green", "red")
    assert report.data["held_out"] == "0.2 of every class, seed 0"
    best = max(outcome.accuracy for outcome in report.outcomes)
    spec = checkpoint.read_spec(report.folder / "best.safetensors")
    assert spec is not None and (spec.provenance.weights, spec.provenance.predictor) == ("trained", "identity")
    assert best == max(row.accuracy for row in read_log(report.folder / "log.csv") if row.kind == "val")


def test_lives_start_from_the_dense_model_of_these_classes(settings, workspace):
    dense = train(TrainRequest(config=settings(dense=True, epochs=1)), workspace).folder
    report = train(TrainRequest(config=settings(weights="auto")), workspace)
    assert Path(report.config.weights) in (dense / "best.safetensors", dense / "last.safetensors")
    assert report.warning == ""
    assert report.spec.provenance.predictor == "trained"
    stored = run_config(report.folder)
    assert stored == report.config
    other = train(TrainRequest(config=settings(weights="auto"), name="again"), workspace)
    assert other.config.weights == report.config.weights  # the life run's own checkpoints are no dense model


def test_without_a_dense_model_the_user_is_warned(settings, workspace):
    report = train(TrainRequest(config=settings(weights="auto", stage2_epochs=0)), workspace)
    assert "RANDOM WEIGHTS" in report.warning and "no hub in a test" in report.warning
    assert report.config.weights == "random"


class Stopped(Exception):
    """The end of a run that was to be stopped."""


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Around a run that ends, with no time to clean up, instead of its next step."""
    step, done = loop.Trainer._step, []

    def stopping(self, *arguments):
        if len(done) == steps:
            raise Stopped
        done.append(step(self, *arguments))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Trainer, "_step", stopping)
        yield


RECIPES = {
    "plain": {},
    "dense": {"dense": True, "epochs": 2},
    "everything": {
        "distill": True,
        "elastic": True,
        "ema": 0.9,
        "mixup": 0.3,
        "cutmix": 0.3,
        "drop_path": 0.2,
        "label_smoothing": 0.1,
        "accumulate": 2,
        "random_erasing": 0.3,
        "auto_augment": "rand-m5-n2",
    },
    "single": {"single_stage": True},
    "single hard": {"single_stage": True, "hard": True, "distill": True},
    "bf16": {"precision": "bf16"},
}


@pytest.fixture(scope="session")
def unbroken_run(settings, tmp_path_factory):
    """The run of a recipe that nothing stopped."""

    @cache
    def unbroken_run(recipe: str) -> Path:
        config = settings(checkpoint_every=1, **RECIPES[recipe])
        return train(TrainRequest(config=config, name="unbroken"), Workspace(tmp_path_factory.mktemp(recipe))).folder

    return unbroken_run


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(settings, workspace, unbroken_run, recipe, stop_after):
    config = settings(checkpoint_every=1, **RECIPES[recipe])
    unbroken = unbroken_run(recipe)

    with stopped_after(stop_after):
        train(TrainRequest(config=config, name="broken"), workspace)
    folder = workspace.root / "checkpoints" / "broken"
    torch.rand(7)  # what was drawn meanwhile is of no consequence
    report = train(resumed(folder), workspace)
    ours, theirs = weights_of(folder), weights_of(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert comparable(folder) == comparable(unbroken)
    assert len(report.outcomes) == 2
    assert len(list((folder / "state").iterdir())) == 2


def test_a_killed_process_goes_on_to_the_same_bits(settings, workspace, tmp_path):
    """kill -9 at whatever moment, several times."""
    config = settings(checkpoint_every=1, dense=True, epochs=6, log_every=1)
    unbroken = train(TrainRequest(config=config, name="unbroken"), workspace).folder
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    folder = workspace.root / "checkpoints" / "killed"
    command = [sys.executable, "-m", "lifedeploy", "train", "-w", str(workspace.root), "--name", "killed"]
    log = folder / "log.csv"
    for attempt, enough in enumerate((5, 12)):
        more = ["--config", str(file)] if attempt == 0 else ["--resume"]
        running = subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 600
        while not (log.exists() and len(log.read_text().splitlines()) > enough):
            assert running.poll() is None, running.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stderr.close()
    train(resumed(folder), workspace)
    ours, theirs = weights_of(folder), weights_of(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert comparable(folder) == comparable(unbroken)


def test_two_processes_train_as_one(settings, workspace, tmp_path):
    config = settings(stage1_epochs=1, stage2_epochs=1, log_every=1)
    alone = train(TrainRequest(config=config, name="alone"), workspace).folder
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29631"]
    command += ["-m", "lifedeploy", "train", "--config", str(file), "--name", "two", "-w", str(workspace.root)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workspace.root / "checkpoints" / "two"
    ours, theirs = (read_log(run / "log.csv") for run in (folder, alone))
    assert len(ours) == len(theirs) == 8  # three steps and a validation in each of two stages
    for one, other in zip(ours, theirs, strict=True):
        assert (one.kind, one.step, one.accuracy) == (other.kind, other.step, other.accuracy)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert json.loads((folder / "report.json").read_text())["processes"] == 2
    assert done.stdout.count("predictor") == 1  # one process reports


def test_accumulation_is_the_same_step(settings, workspace):
    whole = train(TrainRequest(config=settings(), name="whole"), workspace).folder
    parts = train(TrainRequest(config=settings(accumulate=4), name="parts"), workspace).folder
    ours, theirs = weights_of(parts), weights_of(whole)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_images(settings, workspace, monkeypatch):
    config = settings(checkpoint_every=1)
    classification_loss = loop.classification_loss
    calls = 0

    def exploding(logits, targets, smoothing):
        nonlocal calls
        calls += 1
        loss = classification_loss(logits, targets, smoothing)
        return loss * float("inf") if calls == 3 else loss

    monkeypatch.setattr(loop, "classification_loss", exploding)
    with pytest.raises(TrainingError) as stopped:
        train(TrainRequest(config=config, name="exploding"), workspace)
    message = stopped.value.message
    assert message.startswith("stage predictor, step 3: gradients are not finite (loss inf, norm ")
    assert message.count(".png") == 8
    folder = workspace.root / "checkpoints" / "exploding"
    monkeypatch.setattr(loop, "classification_loss", classification_loss)
    report = train(resumed(folder), workspace)  # the state from before the step is good
    assert all(tensor.isfinite().all() for tensor in weights_of(report.folder).values())


def test_averaged_weights_are_what_is_validated_and_kept(settings, workspace):
    plain = train(TrainRequest(config=settings(dense=True, epochs=1), name="plain"), workspace).folder
    averaged = train(TrainRequest(config=settings(dense=True, epochs=1, ema=0.99), name="averaged"), workspace).folder
    key = "backbone.blocks.0.mlp.fc1.weight"
    assert not torch.equal(weights_of(plain)[key], weights_of(averaged)[key])


def test_bf16_runs_where_it_is_asked_for(settings, workspace, monkeypatch):
    forward, seen = SlimViT.forward, []

    def watched(self, *arguments, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(SlimViT, "forward", watched)
    report = train(TrainRequest(config=settings(precision="bf16")), workspace)
    assert report.precision == "bf16"
    trained = seen[2:]  # before a folder is made, both forms are tried on nothing
    assert len(trained) >= 8 and all(trained), "in both stages, in training and in validation"
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(report.folder).values())


def test_fp16_on_a_cpu_is_refused(settings, workspace):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UsageError, match="fp16 training needs a GPU"):
        train(TrainRequest(config=settings(precision="fp16")), workspace)


def test_a_broken_image_stops_the_run_by_name(settings, workspace, pictures, tmp_path):
    import shutil

    broken = tmp_path / "pictures"
    shutil.copytree(pictures, broken)
    Image.new("L", (8, 8)).save(broken / "red" / "zz.png")
    (broken / "red" / "zz.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"red/zz\.png is not an image that can be read") as stopped:
            train(TrainRequest(config=settings(data=str(broken), batch=29, workers=workers), overwrite=True), workspace)
        assert "\n" not in stopped.value.message


def test_a_run_is_neither_replaced_nor_mixed_up(settings, workspace):
    config = settings(stage2_epochs=0)
    folder = train(TrainRequest(config=config, name="run"), workspace).folder
    before = (folder / "last.safetensors").stat().st_mtime_ns
    with pytest.raises(UsageError, match="holds a run already") as refused:
        train(TrainRequest(config=config, name="run"), workspace)
    assert "--resume" in (refused.value.hint or "") and "--overwrite" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="the run to resume has batch 8, and 4 was asked for"):
        train(TrainRequest(config=config.but(batch=4), name="run", resume=True), workspace)
    assert (folder / "last.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"the run to resume has temperature 1\.5, and 2\.0 was asked for"):
        train(TrainRequest(config=config.but(options={"temperature": 2.0}), name="run", resume=True), workspace)
    report = train(TrainRequest(config=config, name="run", resume=True), workspace)  # nothing left to do
    assert report.outcomes[-1].stage == "predictor"
    (workspace.root / "checkpoints" / "notes").mkdir()
    (workspace.root / "checkpoints" / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds something else than a training run"):
        train(TrainRequest(config=config, name="notes", overwrite=True), workspace)


def test_a_run_from_before_methods_had_options_is_continued(settings, workspace, monkeypatch):
    """Its configuration says ``temperature`` among the settings, and nothing of methods."""
    config = settings(stage2_epochs=0, checkpoint_every=1)
    folder = train(TrainRequest(config=config, name="run"), workspace).folder
    finished = weights_of(folder)
    max((folder / "state").iterdir()).unlink()  # its last step is to be done again
    older = config.to_dict()
    del older["method"], older["options"]
    written = tomli_w.dumps(older | {"temperature": 1.5})
    done, step = [], loop.Trainer._step
    monkeypatch.setattr(loop.Trainer, "_step", lambda self, *given: done.append(step(self, *given)))
    for request in (lambda: resumed(folder), lambda: TrainRequest(config=config, name="run", resume=True)):
        (folder / "config.toml").write_text(written, encoding="utf-8")
        train(request(), workspace)
        assert all(torch.equal(weights_of(folder)[name], tensor) for name, tensor in finished.items())
    assert len(done) == 1
    assert run_config(folder).model_options == {"temperature": 1.5}


def test_a_state_with_other_starting_weights_is_refused(settings, workspace):
    start = (
        train(TrainRequest(config=settings(dense=True, epochs=1), name="start"), workspace).folder / "last.safetensors"
    )
    config = settings(weights=str(start))
    folder = train(TrainRequest(config=config, name="run"), workspace).folder
    train(TrainRequest(config=settings(dense=True, epochs=1, seed=9), name="start", overwrite=True), workspace)
    with pytest.raises(TrainingError, match="left by a run with other settings or other starting weights"):
        train(resumed(folder), workspace)


def test_a_damaged_state_gives_way_to_the_one_before_it(settings, workspace):
    config = settings(dense=True, epochs=2)
    unbroken = train(TrainRequest(config=config, name="unbroken"), workspace).folder
    folder = train(TrainRequest(config=config, name="damaged"), workspace).folder
    newest = max((folder / "state").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    train(resumed(folder), workspace)
    ours, theirs = weights_of(folder), weights_of(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert comparable(folder) == comparable(unbroken)


def test_the_log_and_the_split_can_be_read_by_anything(settings, workspace):
    folder = train(TrainRequest(config=settings()), workspace).folder
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["train", "train", "val"] * 2
    assert [row["step"] for row in rows] == ["2", "3", "3", "5", "6", "6"]
    with (folder / "split.csv").open() as file:
        halves = [row["split"] for row in csv.DictReader(file)]
    assert (halves.count("train"), halves.count("val")) == (30, 6)


def test_an_elastic_checkpoint_is_what_export_takes_at_any_rate(settings, workspace):
    from lifedeploy.model import weights
    from lifedeploy.model.weights import ModelRequest

    train(TrainRequest(config=settings(elastic=True)), workspace)
    request = ModelRequest(backbone="test_vit", keep_rate=0.4, image_size=(64, 64))
    loaded = weights.load(request, workspace)
    assert loaded.spec.provenance.elastic and loaded.spec.provenance.predictor == "trained"
    assert loaded.spec.schedule.tokens[-1] == round(16 * 0.4**3)


def test_tensorboard_gets_the_same_numbers(settings, workspace):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(TrainRequest(config=settings(tensorboard=True)), workspace).folder
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row.loss for row in read_log(folder / "log.csv") if row.kind == "train"])


def test_the_workspace_offers_the_best_of_the_newest_run(settings, tmp_path):
    workspace = Workspace(tmp_path / "artifacts")
    train(TrainRequest(config=settings(dense=True, epochs=1), name="old"), workspace)
    train(TrainRequest(config=settings(dense=True, epochs=1), name="new"), workspace)
    assert [path.parent.name + "/" + path.stem for path in workspace.checkpoints()] == [
        "new/best",
        "new/last",
        "new/after-dense",
        "old/best",
        "old/last",
        "old/after-dense",
    ]


@pytest.mark.parametrize("named", [True, False], ids=["other names", "no names"])
def test_a_head_of_other_classes_is_taken_by_position_and_that_is_said(settings, workspace, tmp_path, named):
    vit = backbones.create("test_vit", image_size=(64, 64), num_classes=3)
    header = {"image_size": "64"} | ({"classes": '["sky", "grass", "fire"]'} if named else {})
    save_file(vit.state_dict(), tmp_path / "mine.safetensors", metadata=header)
    said: list[str] = []
    config = settings(weights=str(tmp_path / "mine.safetensors"), stage2_epochs=0)
    report = train(TrainRequest(config=config), workspace, warn=said.append)
    given = ("'sky'", "'grass'", "'fire'") if named else ("class 0", "class 1", "class 2")
    assert said == [
        "the head of mine.safetensors is kept, and its classes are matched BY POSITION: "
        f"'blue' for {given[0]}, 'green' for {given[1]}, 'red' for {given[2]}"
    ]
    assert "the head is new" not in report.warning
