"""Checkpoints come back as they were, run nothing, and say in one line why they do not fit."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import WeightsError
from lifedeploy.model import backbones, checkpoint, raw
from lifedeploy.model.reducers import Plan, Reducer, build_reducer
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, PreprocessSpec, Provenance
from tests.model.conftest import images_for, tiny_vit

SMALL = "test_vit"  # timm's own test model: 6 layers, 64 channels
SIZE = (64, 64)  # 16 patches
NAMES = ("tabby, cat", "[ odd ]\nname", 'quo"ted ✓')


def small_model(**changes: Any) -> tuple[SlimViT, ModelSpec]:
    """A small timm model under ``life``; its predictor is not at its starting point."""
    settings = {
        "backbone": SMALL,
        "timm_name": SMALL,
        "method": "life",
        "schedule": Schedule.from_keep_rate(16, 6, 0.7),
        "preprocess": PreprocessSpec(image_size=SIZE, crop_pct=0.95),
        "num_classes": 3,
        "prefix_tokens": 1,
        "provenance": Provenance(weights="trained", source="run 7", predictor="trained"),
        "options": {"temperature": 2.0},
        "classes": NAMES,
    }
    spec = ModelSpec(**(settings | changes))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(4)
        vit = backbones.create(SMALL, image_size=spec.image_size, num_classes=spec.num_classes)
        model = build_model(vit, spec)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, spec


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, SlimViT, ModelSpec]:
    model, spec = small_model()
    path = tmp_path / "runs" / "last.safetensors"
    checkpoint.save(path, model, spec)
    return path, model, spec


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(call: Callable[[], object], path: Path) -> WeightsError:
    """The WeightsError of ``call``: one line, without control characters, that names the file."""
    with pytest.raises(WeightsError) as error:
        call()
    assert str(path) in error.value.message
    assert error.value.message.isprintable(), error.value.message
    return error.value


# --- ours: there and back ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_checkpoint_comes_back_with_weights_spec_and_class_names(saved):
    path, model, spec = saved
    loaded, found = checkpoint.load(path)
    assert found == spec
    assert found.classes == NAMES
    assert checkpoint.read_spec(path) == spec
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = images_for(model.backbone)
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert torch.equal(loaded(images, soft=True).logits, model(images, soft=True).logits)
    assert not loaded.training


def test_saving_leaves_only_the_file_and_can_be_repeated(saved):
    path, model, spec = saved
    checkpoint.save(path, model, spec)
    assert listing(path.parent) == [path.name]


def test_saving_that_fails_keeps_the_previous_checkpoint(saved, monkeypatch):
    path, model, spec = saved
    before = path.read_bytes()

    class Full(dict):
        """Sizes of types, on a disk that fills up behind the header."""

        def __getitem__(self, dtype: torch.dtype) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(raw, "_DTYPES", Full())
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(path, model, spec)
    assert path.read_bytes() == before
    assert listing(path.parent) == [path.name]


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "options"), [("dense", {}), ("first-k", {"inside": False}), ("life", {"temperature": 2.0})]
)
def test_the_same_weights_run_under_another_method(saved, method, options):
    path, model, spec = saved
    loaded, found = checkpoint.load(path, method=method, ordering="per-stage")
    assert (found.method, found.options) == (method, options)
    assert found.provenance == spec.provenance
    images = images_for(model.backbone)
    if method == "dense":
        assert torch.equal(loaded(images).logits, model.backbone(images))
    if method == "life":
        assert torch.equal(loaded(images).logits, model(images).logits)


@torch.no_grad()
def test_a_dense_checkpoint_gets_a_predictor_at_its_starting_point(tmp_path):
    model, spec = small_model(method="dense", options={})
    path = tmp_path / "dense.safetensors"
    checkpoint.save(path, model, spec)
    loaded, _ = checkpoint.load(path, method="life")
    assert torch.equal(loaded.reducer.predictor.weight, torch.eye(64))
    assert torch.equal(loaded.backbone.head.weight, model.backbone.head.weight)


@torch.no_grad()
def test_what_another_method_has_learned_is_left_out(tmp_path):
    source, _ = small_model()
    model, _ = small_model()
    model.backbone.head.weight.zero_()
    learned = model.reducer.predictor.weight.clone()
    state = {name: tensor for name, tensor in source.state_dict().items() if name.startswith("backbone.")}
    state["reducer.keep_scores.2.weight"] = torch.ones(2, 64)
    checkpoint.load_into(model, state, tmp_path / "other.safetensors")
    assert torch.equal(model.backbone.head.weight, source.backbone.head.weight)
    assert torch.equal(model.reducer.predictor.weight, learned)


# --- ours: from before methods had options ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), [("life", {"temperature": 2.5}), ("dense", {}), ("first-k", {})])
def test_a_checkpoint_from_before_methods_had_options_is_read(tmp_path, method, options):
    model, spec = small_model(method=method, options=options)
    written = spec.to_dict()
    del written["options"]
    written["temperature"] = 2.5  # whatever the method was
    path = tmp_path / "older.safetensors"
    save_file(model.state_dict(), path, metadata={checkpoint.SPEC_KEY: json.dumps(written)})
    loaded, found = checkpoint.load(path)
    assert found == spec
    assert getattr(loaded.reducer, "temperature", None) == options.get("temperature")


def test_a_plain_file_carries_no_spec_and_is_not_loaded_as_ours(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(small_model()[0].backbone.state_dict(), path)
    assert checkpoint.read_spec(path) is None
    error = refusal(lambda: checkpoint.load(path), path)
    assert "carries no description of its model" in error.message
    assert error.hint is not None and "lifedeploy export" in error.hint


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        json.dumps(small_model()[1].to_dict() | {"schedule": {"tokens": [4, 8], "drop_layers": []}}),
    ],
    ids=["broken", "list", "null", "empty", "impossible-schedule"],
)
def test_a_spec_that_cannot_be_read_is_refused(tmp_path, text):
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={checkpoint.SPEC_KEY: text})
    assert "carries a description that cannot be read" in refusal(lambda: checkpoint.read_spec(path), path).message


def test_class_names_in_the_header_of_a_plain_file_are_read(tmp_path):
    path = tmp_path / "named.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"classes": json.dumps(NAMES)})
    assert checkpoint.read_classes(path) == NAMES
    save_file({"a": torch.ones(1)}, path)
    assert checkpoint.read_classes(path) == ()


@pytest.mark.parametrize("text", ['["a"', "3", "null", '{"a": 1}', '"cat"'])
def test_class_names_that_are_no_list_are_refused(tmp_path, text):
    path = tmp_path / "named.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"classes": text})
    assert "class" in refusal(lambda: checkpoint.read_classes(path), path).message


# --- nothing is run ---------------------------------------------------------------------------------------------


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


class Execute(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def pickled(data: object, how: str) -> bytes:
    buffer = io.BytesIO()
    if how == "pickle":
        pickle.dump(data, buffer)
    else:
        torch.save(data, buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("evil", [Touch, Execute])
def test_code_in_a_checkpoint_is_not_run(tmp_path, suffix, how, evil):
    target, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    path.write_bytes(pickled({"model": {"head.weight": torch.ones(2), "x": evil(target)}}, how))
    error = refusal(lambda: checkpoint.read(path).state, path)
    assert not target.exists()
    assert "holds more than tensors and is not loaded, since that could run code" in error.message
    assert error.hint == "save it again as safetensors, or as a plain state dict"

    pickle.loads(pickled(evil(target), "pickle"))  # the trap does work
    assert target.exists()


def test_code_behind_the_name_of_a_safetensors_file_is_not_run(tmp_path):
    target, path = tmp_path / "executed", tmp_path / "evil.safetensors"
    path.write_bytes(pickled(Touch(target), "zip"))
    assert "is not a readable safetensors file" in refusal(lambda: checkpoint.read(path).state, path).message
    assert "is not a readable safetensors file" in refusal(lambda: checkpoint.load(path), path).message
    assert not target.exists()


class Other:
    """An object that is neither code nor known."""


@pytest.mark.parametrize("data", [torch.nn.Linear(2, 2), {"model": {}, "args": argparse.Namespace(lr=Other())}])
def test_other_objects_are_refused_like_code(tmp_path, data):
    path = tmp_path / "module.pth"
    torch.save(data, path)
    assert "holds more than tensors" in refusal(lambda: checkpoint.read(path).state, path).message


# --- damaged files ----------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_is_refused(tmp_path):
    path = tmp_path / "none.safetensors"
    error = refusal(lambda: checkpoint.load(path), path)
    assert error.message == f"checkpoint {path} does not exist"
    assert error.hint == "--weights takes auto, pretrained, random or a file"


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_refused(saved, share):
    path, _, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for call in (checkpoint.load, checkpoint.read, checkpoint.read_spec, checkpoint.read_classes):
        assert "is not a readable safetensors file" in refusal(lambda call=call: call(path), path).message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_truncated_pth_file_is_refused_wherever_it_was_cut(tmp_path, how):
    path = tmp_path / "cut.pth"
    content = pickled({"a": torch.ones(3), "b": torch.zeros(2, 2)}, how)
    for length in range(0, len(content) - 40, 23):
        path.write_bytes(content[:length])
        refusal(lambda: checkpoint.read(path).state, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_other_bytes_are_refused(tmp_path):
    path, generator = tmp_path / "noise.pth", random.Random(0)
    for prefix in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04"):
        for _ in range(150):
            path.write_bytes(prefix + generator.randbytes(generator.randrange(60)))
            refusal(lambda: checkpoint.read(path).state, path)


def test_text_is_called_damaged_and_not_dangerous(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>not found</html>\n")
    assert "is damaged or no checkpoint" in refusal(lambda: checkpoint.read(path).state, path).message


@pytest.mark.parametrize(
    "data", [{}, [1, 2], torch.ones(3), {"model": {}}, {"model": {"a": 1}}, {"a": torch.ones(1), "epoch": 3}]
)
def test_a_pth_file_without_a_state_dict_is_refused(tmp_path, data):
    path = tmp_path / "odd.pth"
    torch.save(data, path)
    assert "holds no state dict: expected a mapping of names to tensors" in (
        refusal(lambda: checkpoint.read(path).state, path).message
    )


# --- other people's state dicts ---------------------------------------------------------------------------------


def write_state(path: Path, state: dict[str, Tensor], form: str) -> None:
    match form:
        case "safetensors":
            save_file(state, path)
        case "plain":
            torch.save(state, path)
        case "data-parallel":
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
        case key:
            torch.save({key: state}, path)


@torch.no_grad()
@pytest.mark.parametrize("form", ["safetensors", "plain", "model", "state_dict", "model_state_dict", "data-parallel"])
def test_every_form_of_state_dict_loads_into_the_backbone(tmp_path, form):
    source, _ = small_model()
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    write_state(path, source.backbone.state_dict(), form)
    spec = small_model()[1]
    target = build_model(backbones.create(SMALL, image_size=SIZE, num_classes=3), spec)
    checkpoint.load_into(target, checkpoint.read(path).state, path)
    images = images_for(target.backbone)
    assert torch.equal(target.backbone(images), source.backbone(images))
    assert torch.equal(target.reducer.predictor.weight, torch.eye(64))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda state, at: state.pop(f"{at}blocks.3.mlp.fc1.weight"),
            "1 of {total} tensors are missing, the first is {at}blocks.3.mlp.fc1.weight",
        ),
        (
            lambda state, at: state.update({f"{at}head.weight": torch.zeros(7, 64)}),
            "{at}head.weight is (7, 64), expected (3, 64)",
        ),
        (
            lambda state, at: state.update({f"{at}blocks.9.x": torch.zeros(1)}),
            "1 tensors are not part of it, the first is {at}blocks.9.x",
        ),
    ],
    ids=["missing", "shape", "left-over"],
)
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path, ours, change, problem):
    model, _ = small_model()
    source = model if ours else model.backbone
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at, total = ("backbone." if ours else ""), len(state)
    change(state, at)
    path = tmp_path / "some.safetensors"
    error = refusal(lambda: checkpoint.load_into(model, state, path), path)
    assert error.message == f"{path} does not fit this backbone: " + problem.format(at=at, total=total)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_predictor_of_which_a_part_is_missing_is_refused(saved):
    path, model, _ = saved
    state = dict(load_file(path))
    del state["reducer.predictor.weight"]
    error = refusal(lambda: checkpoint.load_into(model, state, path), path)
    assert "missing, the first is reducer.predictor.weight" in error.message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (5,)),
        ("patch_embed.proj.weight", (64, 1, 16, 16)),
        ("pos_embed", (64,)),
        ("pos_embed", (1, 17, 7)),
        ("cls_token", ()),
    ],
)
def test_a_tensor_that_cannot_be_resampled_either_is_refused(tmp_path, name, shape):
    model, _ = small_model()
    state = model.backbone.state_dict() | {name: torch.zeros(shape)}
    path = tmp_path / "odd.pth"
    assert "does not fit this backbone" in refusal(lambda: checkpoint.load_into(model, state, path), path).message


def test_weights_of_another_backbone_are_refused(tmp_path):
    model, _ = small_model()
    path = tmp_path / "other.pth"
    error = refusal(lambda: checkpoint.load_into(model, tiny_vit().state_dict(), path), path)
    assert "does not fit this backbone" in error.message


def test_a_checkpoint_of_a_method_has_all_of_its_reducer(tmp_path):
    model, spec = small_model()
    path = tmp_path / "stripped.safetensors"
    bare = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("reducer.")}
    raw.write_tensors(path, bare, {checkpoint.SPEC_KEY: json.dumps(spec.to_dict())})
    with pytest.raises(WeightsError, match=r"does not fit this method: 3 of \d+ tensors are missing, .* reducer"):
        checkpoint.load(path)
    described = spec.under("dense")
    raw.write_tensors(path, bare, {checkpoint.SPEC_KEY: json.dumps(described.to_dict())})
    loaded, _ = checkpoint.load(path, method="life")  # the dense model's has nothing of it: life starts from its start
    assert torch.equal(loaded.reducer.predictor.weight, torch.eye(64))


class Drawn(Reducer):
    """Has a parameter that is drawn."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.weight = torch.nn.Parameter(torch.randn(3))


def test_a_reducer_starts_from_the_same_parameters_wherever_it_is_made():
    method = replace(methods.get("life"), reducer=f"{__name__}:Drawn")
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(
            build_reducer(
                method, Plan(schedule=Schedule.from_keep_rate(100, 6, 0.7), width=64, heads=2, prefix=1)
            ).weight
        )
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), after)  # and nobody else's numbers are taken
    assert torch.equal(*drawn)
