"""Files of weights as other people's tools write them: read as timm reads them, or named and refused."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lifedeploy.artifact import Workspace
from lifedeploy.errors import WeightsError
from lifedeploy.model import backbones, checkpoint, weights
from lifedeploy.model.positions import resample
from lifedeploy.model.weights import ModelRequest

SMALL = "test_vit"
SIZE = (64, 144)  # 4x9 patches


def state(mark: float = 0.0, image_size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    vit = backbones.create(SMALL, image_size=image_size, num_classes=3)
    torch.nn.init.constant_(vit.head.bias, mark)
    return vit.state_dict()


def prefixed(content: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in content.items()}


def arguments(**changes: Any) -> argparse.Namespace:
    """Of timm's train.py, as far as they matter here; the rest is there too."""
    usual = {"model": SMALL, "img_size": None, "input_size": None, "mean": None, "std": None, "crop_pct": None}
    return argparse.Namespace(**(usual | {"interpolation": "", "lr": 1e-3, "opt_betas": None} | changes))


def load(path: Path, **changes: Any) -> weights.LoadedModel:
    return weights.load(ModelRequest(**({"backbone": SMALL, "weights": str(path)} | changes)), Workspace(path.parent))


def mark_of(loaded: weights.LoadedModel) -> float:
    return loaded.model.backbone.head.bias[0].item()


def test_a_checkpoint_of_timms_training_is_read_averages_first(tmp_path):
    path = tmp_path / "model_best.pth.tar"
    content = {"epoch": 3, "arch": SMALL, "state_dict": state(1.0), "optimizer": {"state": {}}, "version": 2}
    said = arguments(img_size=64, input_size=(3, *SIZE), mean=(0.1, 0.2, 0.3), crop_pct=0.8, interpolation="bilinear")
    torch.save(content | {"args": said, "metric": 71.5, "state_dict_ema": prefixed(state(2.0), "module.")}, path)
    loaded = load(path)
    assert mark_of(loaded) == 2.0
    assert loaded.notes == ("model_best.pth.tar: timm training checkpoint, state_dict_ema",)
    assert loaded.spec.image_size == SIZE  # what it was trained at, not what the backbone is usually made for
    preprocess = loaded.spec.preprocess
    assert (preprocess.mean, preprocess.crop_pct, preprocess.interpolation) == ((0.1, 0.2, 0.3), 0.8, "bilinear")
    assert preprocess.std == backbones.preprocess_of(loaded.model.backbone).std  # nothing was said about it
    assert (loaded.spec.num_classes, loaded.spec.provenance.weights) == (3, "file")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"img_size": 64}, (64, 64)),
        ({"input_size": [3, 64, 144]}, SIZE),
        ({"input_size": 64}, (64, 64)),  # DeiT's
        ({"img_size": 96, "model_kwargs": {"img_size": [64, 144]}}, SIZE),
        ({}, (160, 160)),  # the backbone's own
    ],
)
def test_the_grid_is_the_one_it_was_trained_at(tmp_path, said, size):
    path = tmp_path / "checkpoint.pth"
    content = state(image_size=size)
    torch.nn.init.normal_(content["pos_embed"])
    torch.save({"model": content, "args": arguments(**said)}, path)
    at_home = load(path)
    assert at_home.spec.image_size == size
    assert torch.equal(at_home.model.backbone.pos_embed, content["pos_embed"])
    elsewhere = load(path, image_size=(96, 96))
    assert elsewhere.model.backbone.pos_embed.shape == (1, 37, 64)
    assert elsewhere.notes == ("checkpoint.pth: timm training checkpoint, model",)  # nothing had to be guessed


@pytest.mark.parametrize(("text", "size"), [("[64, 144]", SIZE), ("96", (96, 96))])
def test_safetensors_may_say_their_image_size(tmp_path, text, size):
    path = tmp_path / "mine.safetensors"
    content = state(image_size=size)
    torch.nn.init.normal_(content["pos_embed"])
    save_file(content, path, metadata={"image_size": text})
    loaded = load(path)
    assert (loaded.spec.image_size, loaded.notes) == (size, ())
    assert torch.equal(loaded.model.backbone.pos_embed, content["pos_embed"])
    assert load(path, image_size=(32, 64)).notes == ()


@pytest.mark.parametrize("text", ["large", "[64]", "0", "[-16, 16]", '"64"'])
def test_an_image_size_that_is_none_is_refused(tmp_path, text):
    save_file(state(), tmp_path / "mine.safetensors", metadata={"image_size": text})
    with pytest.raises(WeightsError, match="image"):
        load(tmp_path / "mine.safetensors")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state(), "args": arguments(model="deit_small_patch16_224.fb_in1k", img_size=224)}, path)
    with pytest.raises(WeightsError, match=r"holds deit_small_patch16_224.fb_in1k, but --backbone is test_vit"):
        load(path)
    torch.save({"model": state(), "args": arguments(model="our_own_vit", input_size=(3, *SIZE))}, path)
    assert load(path).spec.image_size == SIZE  # a name that timm does not know says nothing


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_what_compilation_and_data_parallelism_put_in_front_goes(tmp_path, prefix, form):
    path = tmp_path / f"weights.{form}"
    content = prefixed(state(4.0), prefix)
    if form == "pth":
        torch.save(content, path)
    else:
        save_file(content, path)
    loaded = load(path, image_size=SIZE, weights_image_size=SIZE)
    assert mark_of(loaded) == 4.0
    assert loaded.notes == ()


@pytest.mark.parametrize("attribute", ["model.", "backbone.", "net.encoder.", "model._orig_mod."])
def test_lightning_keeps_the_vit_in_an_attribute(tmp_path, attribute):
    path = tmp_path / "last.ckpt"
    content = prefixed(state(5.0), attribute) | {"criterion.weight": torch.ones(3)}
    torch.save({"pytorch-lightning_version": "2.5.0", "state_dict": content, "hyper_parameters": {"lr": 1e-3}}, path)
    loaded = load(path, image_size=SIZE, weights_image_size=SIZE)
    assert mark_of(loaded) == 5.0
    assert loaded.notes == (
        f"last.ckpt: Lightning checkpoint, state_dict, the ViT in {attribute[:-1]}, "
        "without 1 tensors beside it (criterion.weight)",
    )


def test_two_vits_in_one_file_are_one_too_many(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": prefixed(state(), "student.") | prefixed(state(), "teacher.")}, path)
    with pytest.raises(WeightsError) as refused:
        load(path)
    assert refused.value.message == f"{path} holds 2 ViTs: student, teacher"
    assert refused.value.hint == "save the state dict of the one that is meant"


@pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
def test_a_model_of_transformers_is_named_and_refused(tmp_path, prefix):
    names = ["embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "encoder.layer.0.norm1.weight"]
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: torch.ones(2) for name in names} | {"classifier.weight": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="holds a ViT of the transformers library") as refused:
        load(path)
    assert "docs/weights.md" in (refused.value.hint or "")
    assert (Path(__file__).parents[2] / "docs" / "weights.md").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "a.pth"])
def test_a_git_lfs_pointer_says_that_it_is_one(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88\n")
    for call in (checkpoint.read, checkpoint.read_spec) if name.endswith("safetensors") else (checkpoint.read,):
        with pytest.raises(WeightsError, match="is a Git LFS pointer, not the weights it stands for") as refused:
            call(path)
        assert refused.value.hint == "git lfs pull fetches them"


def test_one_mean_is_that_of_all_channels(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state(), "args": arguments(input_size=(3, *SIZE), mean=[0.5], std=(0.25,))}, path)
    preprocess = load(path).spec.preprocess
    assert (preprocess.mean, preprocess.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("form", ["namespace", "dict"])
def test_a_checkpoint_of_deits_training_says_its_crop(tmp_path, form):
    path = tmp_path / "checkpoint.pth"
    said = arguments(input_size=64, eval_crop_ratio=0.875)
    torch.save({"model": state(image_size=(64, 64)), "args": said if form == "namespace" else vars(said)}, path)
    loaded = load(path)
    assert loaded.spec.preprocess.crop_pct == 0.875
    assert loaded.notes == ("checkpoint.pth: DeiT training checkpoint, model",)


def test_embeddings_that_were_resampled_as_the_model_ran_are_of_its_own_size(tmp_path):
    path = tmp_path / "checkpoint.pth"
    content = state(image_size=(160, 160))
    torch.nn.init.normal_(content["pos_embed"])
    torch.save({"model": content, "args": arguments(img_size=96, model_kwargs={"dynamic_img_size": True})}, path)
    loaded = load(path)
    assert loaded.spec.image_size == (96, 96)
    expected = resample(content["pos_embed"], (10, 10), (6, 6))
    assert torch.equal(loaded.model.backbone.pos_embed, expected)


def test_somebody_may_know_better_than_another_tools_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    content = state()
    torch.save({"model": content, "args": arguments(img_size=96)}, path)
    loaded = load(path, image_size=SIZE, weights_image_size=SIZE)
    assert torch.equal(loaded.model.backbone.pos_embed, content["pos_embed"])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"mean": [0.1, 0.2]}, "mean [0.1, 0.2]"),
        ({"std": (0.1, 0.0, 0.1)}, "std (0.1, 0.0, 0.1)"),
        ({"crop_pct": 7.0}, "crop_pct 7.0"),
        ({"crop_pct": [0.9]}, "crop_pct [0.9]"),
        ({"mean": 0.5}, "mean 0.5"),
        ({"interpolation": 3}, "interpolation 3"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(tmp_path, said, shown):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state(), "args": arguments(input_size=(3, *SIZE), **said)}, path)
    with pytest.raises(WeightsError) as refused:
        load(path)
    assert refused.value.message == f"{path} says that it was trained with {shown}, which cannot be"


@pytest.mark.parametrize("name", ["weights.pth", "weights.SafeTensors", "weights.bin"])
def test_safetensors_are_known_by_their_content(tmp_path, name):
    save_file(state(6.0), tmp_path / name, metadata={"image_size": "[64, 144]", "classes": '["a", "b", "c"]'})
    loaded = load(tmp_path / name)
    assert (mark_of(loaded), loaded.spec.classes, loaded.spec.image_size) == (6.0, ("a", "b", "c"), SIZE)


@pytest.mark.filterwarnings("error")
def test_torchscript_is_named_and_refused(tmp_path):
    path = tmp_path / "traced.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(WeightsError, match="is a TorchScript archive, which holds code") as refused:
        load(path)
    assert "torch.jit.load" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.ones(2)}, "holds no state dict"),
        ({"model": {1: torch.ones(2)}}, "holds no state dict"),
        (
            {"student": {"a": torch.ones(2)}, "teacher": {"a": torch.ones(2)}},
            "holds state dicts as 'student', 'teacher'",
        ),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds a as a sparse, complex or empty tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "holds a as a sparse, complex or empty tensor"),
        ({"a": torch.ones(2, device="meta")}, "holds a as a sparse, complex or empty tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch, of what we refuse
def test_tensors_that_are_no_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        load(path)


def test_no_position_embeddings_do_not_fit(tmp_path):
    path = tmp_path / "odd.pth"
    torch.save(state() | {"pos_embed": torch.ones(1, 0, 64)}, path)
    with pytest.raises(WeightsError, match=r"does not fit this backbone: pos_embed is \(1, 0, 64\)"):
        load(path)


def test_an_archive_of_jax_is_named_and_refused(tmp_path):
    path = tmp_path / "Ti_16.npz"
    np.savez(path, **{"embedding/kernel": np.ones(2)})
    with pytest.raises(WeightsError, match="is a NumPy archive, as JAX and Flax models are kept in") as refused:
        load(path)
    assert "checkpoint_path" in (refused.value.hint or "")


def test_names_of_nobody_are_said_to_be_so(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"encoder.weight": torch.ones(2), "decoder.weight": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match=r"none of its 2 tensors has a name of timm's, the first is encoder\.weight"):
        load(path)
