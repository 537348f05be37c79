"""Backbones by name: what is known is found, what the method does not apply to is refused in plain words."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

from lifedeploy.data.preprocess import normalise, read_image, to_pixels
from lifedeploy.data.samples import PHOTOS, photo_folder
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model import backbones
from lifedeploy.model.blocks import adapted
from tests.model.conftest import DEPTH, FAMILIES, tiny_vit

SMALL = "test_vit"  # timm's own test model: 6 layers, 64 channels, 160 pixels

PAPER = {
    "deit_t": ("deit_tiny_patch16_224", 192, 3),
    "deit_s": ("deit_small_patch16_224", 384, 6),
    "deit_b": ("deit_base_patch16_224", 768, 12),
    "vit_t": ("vit_tiny_patch16_224", 192, 3),
    "vit_s": ("vit_small_patch16_224", 384, 6),
    "vit_b": ("vit_base_patch16_224", 768, 12),
}


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"timm was asked to build {arguments}")

    monkeypatch.setattr(timm, "create_model", refuse)


# --- names ------------------------------------------------------------------------------------------------------


def test_there_are_six_short_names_and_they_are_the_papers_backbones():
    assert {name: full for name, (full, _, _) in PAPER.items()} == backbones.SHORT_NAMES


@pytest.mark.parametrize("name", PAPER)
def test_a_short_name_stands_for_a_timm_model_that_exists(name):
    full, _, _ = PAPER[name]
    assert backbones.timm_name(name) == full
    assert timm.is_model(full)


@pytest.mark.parametrize("name", ["deit_t", "vit_t"])
def test_a_short_name_makes_the_papers_backbone(name):
    _, dim, heads = PAPER[name]
    vit = backbones.create(name)
    assert (vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads) == (dim, 12, heads)
    assert (vit.patch_embed.num_patches, vit.num_prefix_tokens, vit.num_classes) == (196, 1, 1000)


@pytest.mark.parametrize("name", [SMALL, "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224.fb_in22k_ft_in1k"])
def test_a_timm_name_stands_for_itself_with_or_without_a_tag(name):
    assert backbones.timm_name(name) == name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deits", "deit_s"),
        ("deit-s", "deit_s"),
        ("vitb", "vit_b"),
        ("vit_tiny_patch16_242", "vit_tiny_patch16_224"),
        ("deit_smal_patch16_224", "deit_small_patch16_224"),
    ],
)
def test_a_name_that_is_nearly_right_gets_the_right_one_suggested(typed, meant):
    with pytest.raises(UsageError) as refusal:
        backbones.create(typed)
    assert refusal.value.message == f"backbone {typed!r} is unknown"
    assert refusal.value.hint.startswith("did you mean ")
    assert meant in refusal.value.hint


@pytest.mark.parametrize("name", ["", "qqq", "😀"])
def test_a_name_like_nothing_gets_the_short_names(name):
    with pytest.raises(UsageError) as refusal:
        backbones.create(name)
    assert refusal.value.message == f"backbone {name!r} is unknown"
    assert all(short in refusal.value.hint for short in PAPER)
    assert "any timm ViT" in refusal.value.hint


def test_a_tag_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match=f"backbone '{SMALL}.nonsense' is unknown: .*nonsense"):
        backbones.create(f"{SMALL}.nonsense")


# --- what the method does not apply to --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("resnet50", "resnet"),
        ("swin_tiny_patch4_window7_224", "swin_transformer"),
        ("test_vit_relpos", "vision_transformer_relpos"),
        ("eva02_tiny_patch14_224", "eva"),
    ],
)
def test_other_families_are_refused_before_anything_is_built(nothing_is_built, name, module):
    with pytest.raises(UnsupportedModelError) as refusal:
        backbones.create(name)
    assert refusal.value.message.startswith(f"{name} is defined in timm's '{module}' and is no timm VisionTransformer")
    assert "prunes the tokens of plain ViTs" in refusal.value.message
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(("name", "pool"), [("test_vit2", "avg"), ("test_vit3", "map")])
def test_a_vit_without_a_cls_token_is_refused_with_the_reason(name, pool):
    with pytest.raises(UnsupportedModelError) as refusal:
        backbones.create(name)
    assert refusal.value.message == (
        f"{name} has no CLS token (it pools by '{pool}'), and patches are scored against CLS; "
        "choose a backbone with a CLS token"
    )


def test_what_is_no_vision_transformer_is_refused():
    with pytest.raises(UnsupportedModelError, match="mine is a Linear, not a timm VisionTransformer"):
        adapted(nn.Linear(2, 2), "mine")


def test_blocks_without_one_attention_are_refused():
    vit = tiny_vit(block_fn=ParallelThingsBlock)
    with pytest.raises(UnsupportedModelError, match="mine is built of ParallelThingsBlock, which is not supported"):
        adapted(vit).require_supported("mine")


def test_every_kind_of_vit_that_the_method_claims_is_supported(family):
    view = adapted(tiny_vit(family))
    view.require_supported(family)
    assert (view.prefix, view.width, view.depth, view.heads, view.classes) == (FAMILIES[family][2], 24, DEPTH, 3, 5)
    assert (view.patches, view.grid, view.image_size) == {
        "dinov2": (16, (4, 4), (56, 56)),
        "non-square": (18, (3, 6), (24, 48)),
    }.get(family, (16, (4, 4), (32, 32)))


# --- image sizes and classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patches"), [((160, 160), 100), ((64, 96), 24), ((32, 32), 4), ((16, 16), 1)])
def test_an_image_size_is_taken(size, patches):
    vit = backbones.create(SMALL, image_size=size, num_classes=7)
    assert isinstance(vit, VisionTransformer)
    assert (vit.patch_embed.num_patches, vit.num_classes) == (patches, 7)
    assert vit(torch.zeros(1, 3, *size)).shape == (1, 7)


@pytest.mark.parametrize("size", [(100, 100), (160, 168), (168, 160), (8, 8)])
def test_an_image_size_that_patches_do_not_tile_is_refused(size):
    with pytest.raises(UsageError) as refusal:
        backbones.create(SMALL, image_size=size)
    assert refusal.value.message == f"image size {size[0]}x{size[1]} is not a multiple of the 16x16 patches of {SMALL}"


@pytest.mark.parametrize("size", [(0, 0), (-16, 16), (160, 0)])
def test_an_image_size_of_nothing_is_refused(size):
    with pytest.raises(UsageError, match=f"image size {size[0]}x{size[1]}"):
        backbones.create(SMALL, image_size=size)


# --- preprocessing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SMALL, "deit_t", "vit_t"])
def test_the_preprocessing_is_the_one_timm_trained_with(name):
    vit = backbones.create(name)
    spec = backbones.preprocess_of(vit)
    transform = create_transform(**resolve_model_data_config(vit), is_training=False)
    image = read_image(photo_folder() / PHOTOS[0])
    ours = normalise(to_pixels(image, spec)[None], spec)[0]
    assert ours.tobytes() == transform(image).numpy().tobytes()


def test_another_image_size_keeps_the_rest_of_the_preprocessing():
    own = backbones.preprocess_of(backbones.create(SMALL))
    small = backbones.preprocess_of(backbones.create(SMALL, image_size=(64, 96)), (64, 96))
    assert (own.image_size, small.image_size) == ((160, 160), (64, 96))
    assert (small.crop_pct, small.interpolation, small.mean, small.std) == (
        own.crop_pct,
        own.interpolation,
        own.mean,
        own.std,
    )
