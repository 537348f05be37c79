"""Where weights come from: which checkpoint ``auto`` takes, what it says when there is none, and no network needed."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lifedeploy.artifact import Workspace
from lifedeploy.errors import ScheduleError, UnsupportedModelError, UsageError, WeightsError
from lifedeploy.files import sha256
from lifedeploy.model import backbones, checkpoint, weights
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.model.weights import ModelRequest
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance
from tests.plugins import entry

SMALL = "test_vit"  # timm's own test model: 6 layers, 64 channels, 160 pixels
SIZE = (64, 64)  # 16 patches
REQUEST = ModelRequest(backbone=SMALL, image_size=SIZE, num_classes=3)
NOWHERE = "cannot reach hub.invalid: no such host"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, whatever this machine can reach or has cached."""
    monkeypatch.setattr(weights, "hub_obstacle", lambda name: NOWHERE)


@pytest.fixture
def no_pretrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub answers; what is loaded 'from' it is a fresh model with a head of sevens."""
    asked: list[str] = []
    create = backbones.create

    def fake(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        vit = create(name, **options)
        if pretrained:
            asked.append(name)
            torch.nn.init.constant_(vit.head.bias, 7.0)
        return vit

    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "")
    monkeypatch.setattr(backbones, "create", fake)
    return asked


def leave_trained(
    workspace: Workspace,
    name: str,
    *,
    mark: float = 0.0,
    age_s: float = 0.0,
    request: ModelRequest = REQUEST,
    predictor: str = "trained",
) -> Path:
    """A checkpoint as training leaves it; ``mark`` is the bias of its head, to tell it by."""
    path = workspace.root / "checkpoints" / name / "last.safetensors"
    model, spec = trained(request, mark, predictor)
    checkpoint.save(path, model, spec)
    os.utime(path, (1_700_000_000 - age_s,) * 2)
    return path


def trained(
    request: ModelRequest = REQUEST, mark: float = 0.0, predictor: str = "trained"
) -> tuple[SlimViT, ModelSpec]:
    vit = backbones.create(request.backbone, image_size=request.image_size, num_classes=request.num_classes)
    torch.nn.init.constant_(vit.head.bias, mark)
    names = tuple(f"class {index} of run {mark:g}" for index in range(vit.num_classes))
    spec = weights.describe(request, vit, Provenance(weights="trained", source="train", predictor=predictor), names)
    return build_model(vit, spec), spec


def mark_of(loaded: weights.LoadedModel) -> float:
    return loaded.model.backbone.head.bias[0].item()


# --- requests ---------------------------------------------------------------------------------------------------


def test_a_request_makes_its_schedule_from_rate_or_counts():
    assert ModelRequest(backbone=SMALL).schedule(196, 12) == Schedule.from_keep_rate(196, 12, 0.7)
    assert ModelRequest(backbone=SMALL, keep_rate=0.9, drop_layers=(3,)).schedule(196, 12).tokens[3:] == (176,) * 9
    by_counts = ModelRequest(backbone=SMALL, keep_rate=None, counts=(9, 5), drop_layers=(1, 2))
    assert by_counts.schedule(16, 6).tokens == (16, 9, 5, 5, 5, 5)


def test_a_request_for_nothing_in_particular_is_keep_rate_0_7():
    assert ModelRequest(backbone=SMALL, keep_rate=None).schedule(16, 6) == Schedule.from_keep_rate(16, 6, 0.7)


@pytest.mark.parametrize("policy", ["auto", "random"])
def test_a_schedule_that_cannot_be_is_refused_whatever_the_weights(workspace, offline, policy):
    with pytest.raises(ScheduleError, match=r"keep rate 1\.5 is out of range"):
        weights.load(replace(REQUEST, keep_rate=1.5, weights=policy), workspace)


@pytest.mark.parametrize("policy", ["auto", "pretrained", "random"])
@pytest.mark.parametrize(
    ("name", "error"), [("resnet50", UnsupportedModelError), ("deits", UsageError), (f"{SMALL}.nonsense", UsageError)]
)
def test_a_backbone_that_cannot_be_is_refused_whatever_the_weights(workspace, monkeypatch, policy, name, error):
    monkeypatch.setattr(weights, "_unreachable", lambda url: NOWHERE)
    monkeypatch.setattr(weights, "_cached", lambda hub_id, filename: False)
    with pytest.raises(error) as refusal:
        weights.load(ModelRequest(backbone=name, weights=policy), workspace)
    assert name in refusal.value.message


# --- auto -------------------------------------------------------------------------------------------------------


def test_auto_takes_the_trained_checkpoint_of_the_same_backbone_and_keep_rate(workspace, no_pretrained):
    path = leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(REQUEST, workspace)
    assert mark_of(loaded) == 3.0
    assert loaded.warning == ""
    assert loaded.spec.provenance == Provenance(
        weights="trained", source="last.safetensors", sha256=sha256(path), predictor="trained"
    )
    assert loaded.spec.classes == ("class 0 of run 3", "class 1 of run 3", "class 2 of run 3")
    assert loaded.spec.schedule == Schedule.from_keep_rate(16, 6, 0.7)
    assert no_pretrained == []


def test_auto_takes_the_newest_of_several(workspace, offline):
    leave_trained(workspace, "a", mark=1.0, age_s=20)
    leave_trained(workspace, "b", mark=2.0, age_s=10)
    leave_trained(workspace, "c", mark=3.0, age_s=30)
    assert mark_of(weights.load(REQUEST, workspace)) == 2.0


def test_auto_finds_the_one_that_fits_among_newer_ones_that_do_not(workspace, offline):
    leave_trained(workspace, "fits", mark=1.0, age_s=100)
    leave_trained(workspace, "other-rate", mark=2.0, request=replace(REQUEST, keep_rate=0.5))
    leave_trained(workspace, "other-layers", mark=3.0, request=replace(REQUEST, drop_layers=(1, 2, 3)))
    loaded = weights.load(replace(REQUEST, keep_rate=0.7, drop_layers=(2, 4, 5)), workspace)
    assert mark_of(loaded) == 1.0
    assert loaded.spec.schedule.keep_rate == 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_rate": 0.5},
        {"keep_rate": None, "counts": (12, 8, 6)},
        {"drop_layers": (1, 3)},
        {"image_size": (96, 96)},
        {"num_classes": 4},
        {"backbone": "deit_t"},
        {"method": "first-k"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_auto_takes_no_checkpoint_of_something_else(workspace, offline, changes):
    leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(replace(REQUEST, **changes), workspace)
    assert loaded.spec.provenance.weights == "random"
    assert mark_of(loaded) != 3.0
    assert loaded.warning.startswith("RANDOM WEIGHTS")


def test_auto_takes_the_newest_where_no_schedule_is_asked_for(workspace, offline):
    leave_trained(workspace, "older", mark=1.0, age_s=100)
    leave_trained(workspace, "newer", mark=2.0, request=replace(REQUEST, keep_rate=0.5, drop_layers=(1, 2, 3)))
    loaded = weights.load(REQUEST, workspace)
    assert mark_of(loaded) == 2.0
    assert loaded.spec.schedule == Schedule.from_keep_rate(16, 6, 0.5, (1, 2, 3))


def test_auto_names_what_it_did_not_take(workspace, offline):
    path = leave_trained(workspace, "run", mark=3.0)
    warning = weights.load(replace(REQUEST, keep_rate=0.5), workspace).warning
    assert f"; {path} has another schedule, image size, number of classes or options)" in warning


def test_auto_passes_over_a_checkpoint_of_a_smaller_image_when_counts_are_asked_for(workspace, offline):
    # 16 patches there, 100 here: counts that are fine here must not be held against the checkpoint's.
    leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(ModelRequest(backbone=SMALL, keep_rate=None, counts=(70, 49, 34), num_classes=3), workspace)
    assert loaded.spec.schedule.counts == (70, 49, 34)
    assert loaded.spec.provenance.weights == "random"


def test_auto_passes_over_files_that_are_no_checkpoints_of_ours(workspace, offline):
    folder = workspace.root / "checkpoints"
    folder.mkdir(parents=True)
    save_file({"head.weight": torch.zeros(3, 64)}, folder / "plain.safetensors")
    assert weights.load(REQUEST, workspace).spec.provenance.weights == "random"


def test_auto_takes_pretrained_weights_where_nothing_was_trained(workspace, no_pretrained):
    loaded = weights.load(replace(REQUEST, num_classes=None), workspace)
    assert no_pretrained == [SMALL]
    assert mark_of(loaded) == 7.0
    assert loaded.warning == ""
    assert loaded.spec.provenance.weights == "pretrained"
    assert loaded.spec.provenance.source.startswith("timm/test_vit.")
    assert loaded.spec.provenance.predictor == "identity"


def test_a_pretrained_head_of_another_size_is_refused_unless_a_new_one_is_wanted(workspace, no_pretrained):
    request = replace(REQUEST, weights="pretrained")
    with pytest.raises(WeightsError, match="the pretrained head of test_vit has 1000 classes, not 3"):
        weights.load(request, workspace)
    loaded = weights.load(replace(request, new_head=True), workspace)
    assert loaded.model.backbone.num_classes == 3
    assert loaded.spec.classes == ()


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_with_a_head_of_another_size_gets_a_new_one_if_wanted(tmp_path, workspace, plain):
    path = tmp_path / "other.safetensors"
    model, spec = trained(mark=5.0)
    if plain:
        save_file(model.backbone.state_dict(), path)
    else:
        checkpoint.save(path, model, spec)
    request = replace(REQUEST, weights=str(path), num_classes=4)
    with pytest.raises(WeightsError, match=r"is \(3|for a head of 4 classes"):
        weights.load(request, workspace)
    loaded = weights.load(replace(request, new_head=True), workspace)
    assert loaded.model.backbone.head.bias.tolist() != [5.0] * 4
    assert loaded.spec.classes == ()
    kept = loaded.model.backbone.blocks[0].mlp.fc1.weight
    assert torch.equal(kept, model.backbone.blocks[0].mlp.fc1.weight)


def test_auto_falls_back_to_random_weights_and_says_so(workspace, offline):
    loaded = weights.load(REQUEST, workspace)
    assert loaded.spec.provenance == Provenance(weights="random", source="seed 0")
    assert loaded.warning.startswith(f"RANDOM WEIGHTS: no trained checkpoint in {workspace.root}/ ")
    assert f"({NOWHERE})" in loaded.warning
    assert "its classes mean nothing" in loaded.warning
    assert "\n" not in loaded.warning
    assert loaded.spec.classes == ()


def test_auto_falls_back_when_the_hub_answers_and_does_not_deliver(workspace, undelivered):
    loaded = weights.load(REQUEST, workspace)
    assert loaded.spec.provenance.weights == "random"
    assert "connection lost half way" in loaded.warning


@pytest.fixture
def undelivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answers, and the download breaks."""
    create = backbones.create

    def fake(name: str, *, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("connection lost half way")
        return create(name, **options)

    monkeypatch.setattr(weights, "hub_obstacle", lambda name: "")
    monkeypatch.setattr(backbones, "create", fake)


# --- pretrained -------------------------------------------------------------------------------------------------


def test_pretrained_weights_out_of_reach_are_an_error_even_with_a_trained_checkpoint(workspace, offline):
    leave_trained(workspace, "run")
    with pytest.raises(WeightsError) as refusal:
        weights.load(replace(REQUEST, weights="pretrained"), workspace)
    assert refusal.value.message == f"no pretrained weights for {SMALL}: {NOWHERE}"
    assert refusal.value.hint == "--weights random, or --weights FILE"
    assert refusal.value.exit_code == 1


def test_pretrained_weights_that_break_off_are_an_error(workspace, undelivered):
    with pytest.raises(WeightsError) as refusal:
        weights.load(replace(REQUEST, weights="pretrained"), workspace)
    assert refusal.value.message == (f"pretrained weights of {SMALL} could not be fetched: connection lost half way")


def test_pretrained_weights_of_imagenet_come_with_its_class_names(workspace, no_pretrained):
    loaded = weights.load(ModelRequest(backbone=SMALL, weights="pretrained"), workspace)
    assert (loaded.spec.num_classes, len(loaded.spec.classes)) == (1000, 1000)
    assert loaded.spec.classes[0].startswith("tench")
    assert loaded.spec.classes[281].startswith("tabby")


# --- random -----------------------------------------------------------------------------------------------------


def test_random_weights_are_always_the_same(workspace):
    first = weights.load(replace(REQUEST, weights="random"), workspace).model.state_dict()
    torch.manual_seed(123)
    second = weights.load(replace(REQUEST, weights="random"), workspace).model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_random_weights_do_not_depend_on_the_method_or_graph(workspace):
    life = weights.load(replace(REQUEST, weights="random"), workspace, ordering="per-stage").model.backbone.state_dict()
    dense = weights.load(replace(REQUEST, weights="random", method="dense"), workspace).model.backbone.state_dict()
    assert all(torch.equal(life[name], dense[name]) for name in life)


def test_random_weights_leave_the_global_generators_alone(workspace):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    weights.load(replace(REQUEST, weights="random"), workspace)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@torch.no_grad()
@pytest.mark.parametrize("backbone", [SMALL, "deit3_small_patch16_224"])
def test_random_weights_make_logits_that_tell_images_apart(workspace, backbone):
    request = ModelRequest(backbone=backbone, image_size=(32, 32), num_classes=3, keep_rate=1.0, weights="random")
    model = weights.load(request, workspace).model
    assert all(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if name.endswith("weight"))
    logits = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert logits.std(dim=1).min() > 1e-3


def test_random_weights_ignore_what_was_trained(workspace):
    leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(replace(REQUEST, weights="random"), workspace)
    assert abs(mark_of(loaded)) < 0.2  # not 3
    assert loaded.warning == ""


def test_random_weights_leave_nothing_to_compile_away(workspace):
    """Zeros and ones would: a bias that adds nothing, a norm that scales by one."""
    loaded = weights.load(replace(REQUEST, weights="random"), workspace)
    vectors = {name: it for name, it in loaded.model.backbone.named_parameters() if it.ndim == 1}
    assert {name.rpartition(".")[2] for name in vectors} == {"weight", "bias"}
    for name, vector in vectors.items():
        start = float(name.endswith("weight"))
        assert (vector != start).float().mean() > 0.99 and (vector - start).abs().max() < 0.1, name
    again = weights.load(replace(REQUEST, weights="random"), workspace)
    assert all(torch.equal(it, again.model.backbone.get_parameter(name)) for name, it in vectors.items())


# --- a file -----------------------------------------------------------------------------------------------------


def plain_file(path: Path, num_classes: int = 3, metadata: dict[str, str] | None = None) -> Path:
    vit = backbones.create(SMALL, image_size=SIZE, num_classes=num_classes)
    torch.nn.init.constant_(vit.head.bias, 9.0)
    save_file(vit.state_dict(), path, metadata=metadata)
    return path


def test_a_plain_file_says_itself_how_many_classes_it_has(workspace, tmp_path):
    path = plain_file(tmp_path / "mine.safetensors", 4, {"classes": '["a", "b", "c", "d"]'})
    loaded = weights.load(ModelRequest(backbone=SMALL, image_size=SIZE, weights=str(path)), workspace)
    assert mark_of(loaded) == 9.0
    assert (loaded.spec.num_classes, loaded.spec.classes) == (4, ("a", "b", "c", "d"))
    assert loaded.spec.provenance == Provenance(
        weights="file", source="mine.safetensors", sha256=sha256(path), predictor="identity"
    )


def test_a_plain_file_of_a_thousand_classes_gets_imagenets_names(workspace, tmp_path):
    path = plain_file(tmp_path / "mine.safetensors", 1000)
    loaded = weights.load(ModelRequest(backbone=SMALL, image_size=SIZE, weights=str(path)), workspace)
    assert loaded.spec.classes[0].startswith("tench")
    assert loaded.notes == ("its 1,000 classes are taken for ImageNet's",)


def test_as_many_class_names_as_classes_are_expected(workspace, tmp_path):
    path = plain_file(tmp_path / "mine.safetensors", 4, {"classes": '["a", "b"]'})
    with pytest.raises(WeightsError) as refusal:
        weights.load(ModelRequest(backbone=SMALL, image_size=SIZE, weights=str(path)), workspace)
    assert str(path) in refusal.value.message
    assert "2 class names" in refusal.value.message and "4 classes" in refusal.value.message


def test_a_file_of_another_number_of_classes_is_refused(workspace, tmp_path):
    path = plain_file(tmp_path / "mine.safetensors", 4)
    with pytest.raises(WeightsError, match=r"head\.weight is \(4, 64\), expected \(3, 64\)"):
        weights.load(replace(REQUEST, weights=str(path)), workspace)


@pytest.mark.parametrize("shape", [(), (0,)])
def test_a_file_whose_head_is_no_matrix_is_refused(workspace, tmp_path, shape):
    path = tmp_path / "mine.safetensors"
    save_file({"head.weight": torch.zeros(shape)}, path)
    with pytest.raises(WeightsError, match="does not fit this backbone"):
        weights.load(ModelRequest(backbone=SMALL, image_size=SIZE, weights=str(path)), workspace)


@pytest.mark.parametrize("policy", ["none.safetensors", "none.pth", "Auto", "."])
def test_a_file_that_is_not_there_is_refused(workspace, tmp_path, monkeypatch, policy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as refusal:
        weights.load(replace(REQUEST, weights=policy), workspace)
    assert refusal.value.message == f"checkpoint {policy} does not exist"
    assert refusal.value.hint == "--weights takes auto, pretrained, random or a file"


def test_a_checkpoint_of_ours_keeps_its_image_size_classes_and_provenance(workspace, tmp_path):
    path = leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(ModelRequest(backbone=SMALL, weights=str(path)), workspace)
    assert mark_of(loaded) == 3.0
    assert (loaded.spec.image_size, loaded.spec.num_classes) == (SIZE, 3)
    assert loaded.spec.classes[2] == "class 2 of run 3"
    assert (loaded.spec.provenance.weights, loaded.spec.provenance.predictor) == ("trained", "trained")


def test_options_are_the_weights_own_unless_asked_for_and_of_their_method_alone(workspace):
    path = str(leave_trained(workspace, "run", request=replace(REQUEST, options={"temperature": 2.0})))
    for asked, options in (
        ({}, {"temperature": 2.0}),
        ({"options": {"temperature": 3}}, {"temperature": 3.0}),
        ({"method": "dense"}, {}),
    ):
        loaded = weights.load(replace(REQUEST, weights=path, **asked), workspace)
        assert loaded.spec.options == options
        assert getattr(loaded.model.reducer, "temperature", None) == options.get("temperature")


@pytest.mark.parametrize(
    ("made_by", "asked", "predictor", "elastic"),
    [
        ("life", "life", "trained", True),
        ("life", "dense", "trained", True),  # as an export's baseline is described by the same weights
        ("dense", "life", "identity", False),  # a dense model has learned nothing about which tokens to drop
        ("life", "dynamicvit", "identity", False),  # it has predictors, and no stage trains them
        ("life", "other", "identity", False),
        ("life", "untrained", "none", False),
    ],
)
def test_what_one_method_has_learned_is_nothing_to_another(workspace, plugged, made_by, asked, predictor, elastic):
    plugged(entry("tests.plugins:OTHER"), entry("tests.plugins:UNTRAINED", "untrained"))
    model, spec = trained(replace(REQUEST, method=made_by))
    path = workspace.root / "mine.safetensors"
    checkpoint.save(path, model, replace(spec, provenance=replace(spec.provenance, elastic=True)))
    loaded = weights.load(replace(REQUEST, weights=str(path), method=asked), workspace)
    found = loaded.spec.provenance
    assert (found.weights, found.predictor, found.elastic) == ("trained", predictor, elastic)
    assert torch.equal(loaded.model.backbone.head.bias, model.backbone.head.bias)


def test_a_checkpoint_of_ours_may_run_at_another_keep_rate_when_named(workspace):
    path = leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(replace(REQUEST, keep_rate=0.5, weights=str(path)), workspace)
    assert loaded.model.schedule == Schedule.from_keep_rate(16, 6, 0.5)
    assert mark_of(loaded) == 3.0


def test_a_checkpoint_of_ours_may_run_at_another_image_size_when_named(workspace):
    path = leave_trained(workspace, "run", mark=3.0)
    loaded = weights.load(replace(REQUEST, image_size=(96, 128), weights=str(path)), workspace)
    assert loaded.spec.image_size == (96, 128)
    assert loaded.model.backbone.pos_embed.shape == (1, 1 + 6 * 8, 64)
    assert mark_of(loaded) == 3.0


def test_a_checkpoint_of_another_backbone_is_refused(workspace):
    path = leave_trained(workspace, "run")
    with pytest.raises(WeightsError, match=rf"holds {SMALL}, but --backbone is deit_t"):
        weights.load(replace(REQUEST, backbone="deit_t", weights=str(path)), workspace)


# --- can the hub be reached -------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No cache, no proxy, no switch: only the hub's address counts."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(weights, "_cached", lambda hub_id, filename: False)
    return monkeypatch


def hub_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def hub_that_answers(code: int) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def host_that_says(reply: bytes | None) -> Iterator[str]:
    """A port that takes connections and speaks no HTTP; with None it says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                if reply is None:
                    ended.wait()
                else:
                    connection.recv(4096)
                    connection.sendall(reply)

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            with socket.socket() as wake:  # where nobody came
                wake.connect_ex(server.getsockname())
            thread.join()


def test_a_hub_whose_name_does_not_resolve_is_reported_within_five_seconds(bare):
    hub_at(bare, "http://hub.invalid")
    start = time.monotonic()
    reason = weights.hub_obstacle(SMALL)
    assert time.monotonic() - start < 5
    assert reason.startswith("cannot reach hub.invalid: ")
    assert "\n" not in reason


def test_a_hub_that_takes_the_connection_and_says_nothing_is_reported_in_time(bare):
    bare.setattr(weights, "HUB_TIMEOUT_S", 0.3)
    with host_that_says(None) as url:
        hub_at(bare, url)
        start = time.monotonic()
        reason = weights.hub_obstacle(SMALL)
        assert time.monotonic() - start < 2
    assert reason.startswith("cannot reach 127.0.0.1: ")


def test_a_name_server_that_hangs_is_not_waited_for(bare):
    ended = threading.Event()
    bare.setattr(weights, "HUB_TIMEOUT_S", 0.3)
    bare.setattr(socket, "getaddrinfo", lambda *arguments, **options: ended.wait() and [])
    hub_at(bare, "http://hub.invalid")
    start = time.monotonic()
    reason = weights.hub_obstacle(SMALL)
    ended.set()
    assert time.monotonic() - start < 2
    assert reason == "cannot reach hub.invalid: no answer within 0.3 s"


def test_the_time_out_is_short():
    assert weights.HUB_TIMEOUT_S < 5


def test_a_hub_that_refuses_the_connection_is_reported(bare):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        hub_at(bare, f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert weights.hub_obstacle(SMALL) == "cannot reach 127.0.0.1: Connection refused"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\xff" * 70_000 + b"\r\n"], ids=["ssh", "eof", "long"]
)
def test_a_host_that_speaks_something_else_is_reported(bare, reply):
    with host_that_says(reply) as url:
        hub_at(bare, url)
        start = time.monotonic()
        reason = weights.hub_obstacle(SMALL)
        assert time.monotonic() - start < weights.HUB_TIMEOUT_S - 1  # it did answer
    assert "127.0.0.1" in reason
    assert reason.isprintable()


def test_a_hub_that_answers_is_no_obstacle_and_is_asked_for_the_weights_themselves(bare):
    with hub_that_answers(200) as (url, asked):
        hub_at(bare, url)
        assert weights.hub_obstacle(SMALL) == ""
    assert len(asked) == 1
    assert asked[0].startswith("/timm/test_vit.") and asked[0].endswith("/resolve/main/model.safetensors")


def test_a_file_that_is_not_found_is_left_to_timm_which_knows_other_names(bare):
    with hub_that_answers(404) as (url, _):
        hub_at(bare, url)
        assert weights.hub_obstacle(SMALL) == ""


@pytest.mark.parametrize("code", [401, 403, 500, 503])
def test_a_hub_that_answers_with_an_error_is_reported(bare, code):
    with hub_that_answers(code) as (url, _):
        hub_at(bare, url)
        assert weights.hub_obstacle(SMALL).startswith(f"127.0.0.1 answers {code} ")


def test_weights_in_the_cache_need_no_hub(bare):
    asked: list[tuple[str, str | None]] = []
    bare.setattr(weights, "_cached", lambda hub_id, filename: not asked.append((hub_id, filename)))
    bare.setattr(weights, "_unreachable", lambda url: pytest.fail("the hub was asked"))
    bare.setenv("HF_HUB_OFFLINE", "1")
    assert weights.hub_obstacle(SMALL) == ""
    assert len(asked) == 1 and asked[0][0].startswith("timm/test_vit.")


def test_being_told_to_stay_offline_is_a_reason(bare):
    bare.setattr(weights, "_unreachable", lambda url: pytest.fail("the hub was asked"))
    bare.setenv("HF_HUB_OFFLINE", "1")
    assert weights.hub_obstacle(SMALL) == "HF_HUB_OFFLINE is set and they are not in the cache"


def test_a_model_that_was_never_trained_has_no_weights_to_fetch(bare):
    bare.setattr(weights, "_unreachable", lambda url: pytest.fail("the hub was asked"))
    name = "vit_small_patch16_36x1_224"
    assert weights.hub_obstacle(name) == f"timm has none for {name}"


def test_the_cache_is_asked_for_the_names_timm_uses(monkeypatch, tmp_path):
    import huggingface_hub

    found: dict[str, object] = {}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda hub_id, name: found.get(name))
    assert not weights._cached("timm/x", None)
    found["pytorch_model.bin"] = object()  # how the hub says: known not to exist
    assert not weights._cached("timm/x", None)
    found["pytorch_model.bin"] = str(tmp_path)
    assert weights._cached("timm/x", None)
    assert not weights._cached("timm/x", "other.bin")
