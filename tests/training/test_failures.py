"""Runs under failure: files of a run that are damaged, two writers, kills, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lifedeploy.artifact import Workspace
from lifedeploy.errors import LifedeployError, TrainingError, UsageError
from lifedeploy.model.raw import read_header, read_tensors, write_tensors
from lifedeploy.temporary import is_temporary
from lifedeploy.training import loader, state
from lifedeploy.training.log import LogRow, read_log
from lifedeploy.training.runs import newest_run, run_config, run_folder
from lifedeploy.viz.curves import draw_curves
from lifedeploy.workflows.train import TrainRequest, resumed, train
from lifedeploy.writing import sole_writer
from tests.model.test_foreign_files import mutated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def finished_once(settings, tmp_path_factory) -> Path:
    """A workspace with a dense run of two epochs in it, with three steps each. Read only: copy it (``finished``)."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "artifacts")
    train(TrainRequest(config=settings(dense=True, epochs=2, log_every=1), name="run"), workspace)
    return workspace.root


@pytest.fixture
def finished(finished_once, workspace) -> Path:
    """The run in a copy of that workspace."""
    shutil.copytree(finished_once, workspace.root)
    return run_folder(workspace, "run")


def refused(folder: Path, workspace: Workspace) -> str:
    with pytest.raises(LifedeployError) as error:
        train(resumed(folder), workspace)
    assert error.value.message.isprintable() and len(error.value.message) < 700
    assert error.value.exit_code == 1, error.value.message
    return error.value.message


def rewrite(path: Path, change: Any, tensors: Any = lambda found: found) -> None:
    """A state with another header or other tensors."""
    header = json.loads(read_header(path)["lifedeploy.training"])
    changed = change(header)
    found = tensors(read_tensors(path))
    write_tensors(path, found, {"lifedeploy.training": json.dumps(header if changed is None else changed)})


# --- equal runs -------------------------------------------------------------------------------------------------


def test_equal_runs_leave_equal_files_but_for_times(settings, tmp_path):
    """Times are in three places: speeds in the log, minutes in the report, seconds in the states' headers."""
    folders = []
    for name in ("one", "two"):
        workspace = Workspace(tmp_path / name)
        folders.append(train(TrainRequest(config=settings(ema=0.9, checkpoint_every=2), name="run"), workspace).folder)
    one, two = ([path.relative_to(folder) for path in sorted(folder.rglob("*"))] for folder in folders)
    assert one == two
    for path in one:
        ours, theirs = (folder / path for folder in folders)
        if path.suffix == ".safetensors" and path.parent.name != state.FOLDER:
            assert ours.read_bytes() == theirs.read_bytes(), path
    for ours, theirs in zip(*(sorted((folder / state.FOLDER).iterdir()) for folder in folders), strict=True):
        for path in (ours, theirs):
            rewrite(path, lambda header: header["position"].update(seconds=0.0))
        assert ours.read_bytes() == theirs.read_bytes()


# --- states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["position"].update(best="x"),
        lambda header: header["position"].update(best=2.0),
        lambda header: header["position"].update(step=-1),
        lambda header: header["position"].update(run_step=1.5),
        lambda header: header["position"].update(seconds=1e300),
        lambda header: header["position"].pop("run_step"),
        lambda header: header.pop("fingerprint"),
        lambda header: header.update(fingerprint=3),
        lambda header: header.update(scaler=[1]),
        lambda header: header.update(position=[]),
        lambda header: [header],
        lambda header: None if header.clear() else {},
    ],
)
def test_a_wrongly_typed_state_gives_way_to_the_one_before_it(finished, workspace, change):
    newest = max((finished / "state").iterdir())
    before, rows = (finished / "last.safetensors").read_bytes(), len(read_log(finished / "log.csv"))
    rewrite(newest, change)
    train(resumed(finished), workspace)
    assert (finished / "last.safetensors").read_bytes() == before
    assert len(read_log(finished / "log.csv")) == rows


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["position"].update(stage=7),
        lambda header: header["position"].update(epoch=5),
        lambda header: header["position"].update(step=10**9),
        lambda header: header["position"].update(run_step=10**9),
        lambda header: header["position"].update(run_epoch=0, run_step=0, epoch=0, stage=0, log_rows=900),
        lambda header: header["position"].update(log_rows=0),
        lambda header: header.update(fingerprint="another"),
    ],
)
def test_a_state_from_nowhere_in_this_run_is_refused(finished, workspace, change):
    log = (finished / "log.csv").read_bytes()
    rewrite(max((finished / "state").iterdir()), change)
    refused(finished, workspace)
    assert (finished / "log.csv").read_bytes() == log


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found | {"model/backbone.cls_token": torch.zeros(2, 2)}, "backbone.cls_token is (2, 2)"),
        (lambda found: found | {"model/x": torch.zeros(1)}, "x is no part of it"),
        (lambda found: {n: t for n, t in found.items() if n != "model/backbone.cls_token"}, "cls_token is missing"),
        (lambda found: found | {"optimizer/0/exp_avg": torch.zeros(3)}, "0/exp_avg is (3,)"),
        (lambda found: found | {"optimizer/x": torch.zeros(3)}, "x is no part of it"),
        (lambda found: found | {"optimizer/0/step": torch.tensor(float("nan"))}, "has NaN or infinity"),
        (lambda found: {}, "is missing"),
    ],
)
def test_tensors_of_another_run_are_refused(finished, workspace, change, said):
    first, last = sorted((finished / "state").iterdir())
    last.unlink()
    rewrite(first, lambda header: None, change)
    assert said in refused(finished, workspace)


def test_any_damage_to_a_state_is_skipped_or_told(finished, workspace):
    """Bytes of the newest state, anywhere."""
    newest = max((finished / "state").iterdir())
    content = newest.read_bytes()
    fingerprint = json.loads(read_header(newest)["lifedeploy.training"])["fingerprint"]
    for seed in range(300):
        newest.write_bytes(mutated(content, seed))
        try:
            found = state.latest(finished / "state", fingerprint)
        except TrainingError as error:
            assert error.message.isprintable()
        else:
            assert found is not None


def test_what_is_not_a_state_is_not_read(tmp_path):
    for name in (".00000009.safetensors.host-1.01234567.lifedeploy-tmp", "9.safetensors", "x.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    os.mkfifo(tmp_path / "00000008.safetensors")
    (tmp_path / "00000007.safetensors").mkdir()
    assert state.latest(tmp_path, "") is None


def test_states_are_in_the_order_of_their_steps(tmp_path):
    for step in (99_999_999, 100_000_000, 5):
        position = replace(state.START, run_step=step)
        state.save(tmp_path, state.State(position=position, fingerprint="same", model={"a": torch.ones(1)}))
    assert state.latest(tmp_path, "same").position.run_step == 100_000_000
    assert len(list(tmp_path.iterdir())) == 2


# --- the other files of a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"batch = ", b"batch = 0", b"\xff\xfe", b"data = 3", b"x = " + b"[" * 5000, b"lr = 1\n", b"batch = nan"],
    ids=str,
)
def test_a_damaged_configuration_is_one_line(finished, workspace, content):
    (finished / "config.toml").write_bytes(content)
    if content:
        assert "config.toml" in refused(finished, workspace)
    else:  # all defaults: no data
        with pytest.raises(UsageError, match="no data to train on"):
            train(resumed(finished), workspace)


def test_a_configuration_with_a_byte_order_mark_is_read(finished):
    path = finished / "config.toml"
    before = run_config(finished)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run_config(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 3],
        lambda text: text.replace("step", "stop", 1),
        lambda text: text.replace("train", "\x1b[31m", 1),
        lambda text: text.replace(",1,", ",x,", 1),
        lambda text: text.replace(",1,", ",-1,", 1),
        lambda text: text + "val,dense,2,1,0,0,0,0\n" * 20,
        lambda text: "\0" + text,
        lambda text: '"' + "x" * 200_000,
    ],
)
def test_a_damaged_log_is_one_line(finished, workspace, change):
    path = finished / "log.csv"
    path.write_text(change(path.read_text()))
    assert "log.csv" in refused(finished, workspace)


def test_a_log_that_is_missing_is_one_line(finished, workspace):
    (finished / "log.csv").unlink()
    assert "log.csv does not exist" in refused(finished, workspace)


@pytest.mark.parametrize("torn", ["val,den", "val,dense,2,6,0.0,0.2,0.5,0", "val,dense,2,6,0.0,0.2,0.5,0.0\r"])
def test_a_line_that_was_being_written_is_none(finished, torn):
    path = finished / "log.csv"
    rows = read_log(path)
    with path.open("a", newline="") as file:
        file.write(torn)
    assert read_log(path) == rows


def test_a_run_goes_on_with_its_own_images_or_not_at_all(finished, workspace):
    path = finished / "split.csv"
    before = path.read_bytes()
    path.write_bytes(before.replace(b",train", b",val", 1))
    assert "split.csv lists other images than there are now, or is damaged" in refused(finished, workspace)
    path.unlink()
    train(resumed(finished), workspace)
    assert path.read_bytes() == before


def test_curves_of_any_numbers_are_drawn(tmp_path):
    row = LogRow(kind="train", stage="$x^2", epoch=1, step=0, lr=0.0, loss=float("nan"), accuracy=0.5, images_per_s=0.0)
    rows = [row, row, replace(row, step=5, loss=float("inf"), lr=1e-300), replace(row, kind="val", step=5, loss=1e308)]
    draw_curves(rows, tmp_path / "curves.png", title="caf\udce9 $1 \x1b[31m")
    draw_curves([rows[-1]], tmp_path / "one.svg")
    assert "\x1b" not in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3-d2", "original-mstd0.5", "rand-m9-t3aw"])
def test_timms_policies_are_taken(settings, tiny, policy):
    loader.TrainingImages(None, tiny[1].preprocess, settings(auto_augment=policy))


@pytest.mark.parametrize("policy", ["nothing", "rand-zz9", "augmix-m0.5", "rand-m1.2.3"])
def test_a_policy_that_is_none_is_refused_before_a_folder_is_made(settings, workspace, policy):
    with pytest.raises(UsageError):
        train(TrainRequest(config=settings(auto_augment=policy), name="run"), workspace)
    assert not workspace.root.exists()


# --- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", ".", ".x", "a/b", "/tmp/x", "a\0b", "a\nb", "x" * 300, "caf\udce9", "a\\b", "\x1b[1m"]
)
def test_a_name_is_that_of_one_folder(settings, workspace, name):
    with pytest.raises(UsageError, match="cannot be a run's folder"):
        train(TrainRequest(config=settings(), name=name), workspace)
    assert not workspace.root.exists()


def test_a_workspace_that_weights_cannot_be_read_from_is_refused_before_the_work(settings, tmp_path):
    workspace = Workspace(tmp_path / "caf\udce9")
    with pytest.raises(UsageError, match=r"caf\\xe9/checkpoints/run/ is no UTF-8"):
        train(TrainRequest(config=settings(), name="run"), workspace)
    assert not workspace.root.exists()


def test_the_newest_run_is_found_among_what_is_none(workspace):
    place = workspace.root / "checkpoints"
    for name in ("old", "new", ".new.host-1.01234567.lifedeploy-tmp"):
        (place / name).mkdir(parents=True)
        (place / name / "config.toml").touch()
        time.sleep(0.01)
    (place / "new" / "dangling").symlink_to("nowhere")
    (place / "file").touch()
    assert newest_run(workspace).name == "new"


def test_a_run_folder_has_one_writer(settings, workspace, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for request in (resumed(finished), TrainRequest(config=settings(), name="run", overwrite=True)):
        with sole_writer(finished), pytest.raises(UsageError, match="is being written to by another process"):
            train(request, workspace)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    train(resumed(finished), workspace)


def test_a_run_that_was_being_removed_is_removed_by_the_same_command(settings, workspace, finished, monkeypatch):
    class Killed(BaseException):
        pass

    unlink, request, left = Path.unlink, TrainRequest(config=settings(stage2_epochs=0), name="run", overwrite=True), [0]

    def unlink_some(path: Path, **how: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        unlink(path, **how)

    for removed in range(3):
        left[0] = removed
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink_some)
            with pytest.raises(Killed):
                train(request, workspace)
        assert (finished / "config.toml").exists()
    train(request, workspace)
    assert run_config(finished) == request.config.but(options={"temperature": 1.5})  # all settings, said or not
    assert not (finished / "after-dense.safetensors").exists()


def test_what_a_killed_writer_left_is_no_part_of_a_run(settings, workspace, finished):
    left = ".config.toml.somewhere-1.01234567.lifedeploy-tmp"
    empty = run_folder(workspace, "empty")
    empty.mkdir()
    for folder in (finished, finished / "state", empty):
        (folder / left).write_text("half")
    config = settings(dense=True, epochs=1)
    train(TrainRequest(config=config, name="empty"), workspace)
    train(resumed(finished), workspace)
    assert not [path for path in workspace.root.rglob("*") if is_temporary(path.name)]


# --- kills ------------------------------------------------------------------------------------------------------


def test_a_run_killed_with_its_workers_is_resumed_at_once(settings, workspace, tmp_path):
    """The lock ends with the process that holds it, though its decoding processes live on for a moment."""
    config = settings(dense=True, epochs=3, checkpoint_every=1, log_every=1, workers=2)
    unbroken = train(TrainRequest(config=config.but(workers=0), name="killed"), Workspace(tmp_path / "unbroken")).folder
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    folder = run_folder(workspace, "killed")
    command = [sys.executable, "-m", "lifedeploy", "train", "-w", str(workspace.root), "--name", "killed", "--resume"]
    generator = random.Random(os.getpid())
    running = subprocess.Popen([*command, "--config", str(file)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (folder / "log.csv").exists():
        assert running.poll() is None
        time.sleep(0.02)
    time.sleep(generator.random())
    running.send_signal(signal.SIGKILL)
    running.wait()
    train(TrainRequest(config=config, name="killed", resume=True), workspace)
    assert (folder / "last.safetensors").read_bytes() == (unbroken / "last.safetensors").read_bytes()
    assert not [path for path in folder.rglob("*") if is_temporary(path.name)]
    assert asdict(run_config(folder)) == asdict(config.but(options={"temperature": 1.5}))
