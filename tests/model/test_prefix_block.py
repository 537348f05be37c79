"""The last block of prefix tokens alone: the same logits for less, wherever nobody reads patches behind it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError
from lifedeploy.last_block import last_block_of
from lifedeploy.model import backbones
from lifedeploy.model.blocks import adapted, plain_attention
from lifedeploy.model.prefix_block import PrefixBlock
from lifedeploy.schedule import Schedule
from tests.foundation.test_cost import counted
from tests.model.conftest import DEPTH, FAMILIES, images_for, schedule_for, slim, tiny_vit

TAKEN = [family for family in FAMILIES if family not in ("mean-pooled", "post-norm")]
PREFIX_ALONE = [name for name in methods.names() if methods.get(name).last_block == "prefix"]


def merging(patches: int) -> Schedule:
    """Three tokens are merged in every layer, the last one among them."""
    counts = [patches - 2 * layer for layer in range(1, DEPTH + 1)]
    return Schedule.from_counts(patches, DEPTH, counts, range(1, DEPTH + 1))


def schedules(method: str, patches: int, usual: Schedule) -> Schedule:
    """A schedule that a method takes; with a drop in the last layer, if it may have one."""
    row = methods.get(method)
    if row.fate == "merged":
        return merging(patches)
    if row.inside:
        return Schedule.from_counts(patches, DEPTH, (12, 10, 8), (2, 3, DEPTH))
    return usual if row.takes_keep_rate else Schedule.dense(patches, DEPTH)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "products"])
@pytest.mark.parametrize("family", TAKEN)
def test_logits_are_those_of_the_whole_block(family, fused):
    vit = tiny_vit(family)
    if not fused:
        for block in vit.blocks:
            block.attn.fused_attn = False
    for method in ("dense", "life"):
        model, images = slim(vit, method), images_for(vit)
        with torch.no_grad():
            whole, alone = model(images), model.with_prefix_block()(images)
        torch.testing.assert_close(alone.logits, whole.logits, rtol=1e-5, atol=1e-6)
        assert alone.tokens.shape == (len(images), vit.num_prefix_tokens, vit.embed_dim)
        torch.testing.assert_close(alone.tokens, whole.tokens[:, : vit.num_prefix_tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", PREFIX_ALONE)
@torch.no_grad()
def test_every_method_that_says_so_gives_the_same_with_it(method):
    vit = tiny_vit()
    patches = vit.patch_embed.num_patches
    options = {"gate_scale": 3.0, "gate_center": 1.0} if "gate_scale" in methods.get(method).usual_options else {}
    model = slim(vit, method, schedules(method, patches, schedule_for(vit)), **options)
    images = images_for(vit)
    whole, alone = model(images), model.with_prefix_block()(images)
    torch.testing.assert_close(alone.logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert set(alone.kept) == set(whole.kept) - {DEPTH}  # there is nothing to choose for in the last layer
    assert all(torch.equal(alone.kept[layer], whole.kept[layer]) for layer in alone.kept)
    for told in ("scores", "lives"):
        of_alone, of_whole = getattr(alone, told), getattr(whole, told)
        assert (of_alone is None) == (of_whole is None) and (of_alone is None or torch.equal(of_alone, of_whole))


@pytest.mark.parametrize("method", PREFIX_ALONE)
def test_macs_are_those_that_torch_counts_as_it_runs(method):
    vit = tiny_vit()
    schedule = schedules(method, vit.patch_embed.num_patches, schedule_for(vit))
    model = slim(vit, method, schedule)
    view, row = model.adapted, methods.get(method)
    cost = view.cost(view.image_size)
    _, whole = counted(model)
    _, alone = counted(model.with_prefix_block())
    of_whole, of_alone = (row.count_work(schedule, {}, cost, form) for form in ("full", "prefix"))
    # A-ViT's mean over layers, and IA-RED²'s product of constants, are counted elsewhere: the difference is exact.
    assert cost.total(of_whole) - cost.total(of_alone) == whole - alone > 0
    assert (of_alone.attending[-1], of_alone.mlp[-1]) == (0, 0)
    assert of_alone.attention == of_whole.attention


def test_of_deit_s_seven_percent_of_all_work_is_in_patches_of_the_last_block():
    backbone = backbones.sized("deit_s")
    full, prefix = (
        backbone.cost.total(methods.baseline().count_work(Schedule.dense(196, 12), {}, backbone.cost, form))
        for form in ("full", "prefix")
    )
    width, tokens, mlp = 384, 196, 1536  # by hand: Q and proj, QKᵀ and AV over 197 keys, both layers of the MLP
    assert full - prefix == tokens * (2 * width * width + 2 * width * 197 + 2 * width * mlp)
    assert (full, prefix) == (4_598_882_304, 4_280_214_528)


def test_the_original_is_left_alone_and_weights_are_shared():
    model = slim(tiny_vit())
    before = model(images_for(model.backbone)).tokens.shape
    twin = model.with_prefix_block()
    assert isinstance(twin.backbone.blocks[-1], PrefixBlock) and not isinstance(model.backbone.blocks[-1], PrefixBlock)
    assert model(images_for(model.backbone)).tokens.shape == before
    qkv, attention = model.backbone.blocks[-1].attn.qkv, twin.backbone.blocks[-1].attn
    for part, rows in ((attention.q, slice(0, 24)), (attention.kv, slice(24, 72))):
        assert part.weight.data_ptr() == qkv.weight[rows].data_ptr()
        assert torch.equal(part.weight, qkv.weight[rows]) and torch.equal(part.bias, qkv.bias[rows])
    assert twin.reducer is model.reducer  # its form of the graph too


@pytest.mark.parametrize("setting", ["gate", "norm"])
@torch.no_grad()
def test_what_else_timm_puts_into_its_attention_is_there(setting):
    vit = tiny_vit()
    attention = vit.blocks[-1].attn
    torch.manual_seed(3)
    setattr(attention, setting, nn.Linear(24, 24) if setting == "gate" else nn.LayerNorm(24))
    if setting == "norm":
        nn.init.normal_(attention.norm.weight)
    model, images = slim(vit), images_for(vit)
    plain = slim(tiny_vit())
    assert not torch.allclose(model(images).logits, plain(images).logits, atol=1e-4)
    torch.testing.assert_close(model.with_prefix_block()(images).logits, model(images).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_bias_on_keys_is_heard():
    vit = tiny_vit()
    model = slim(vit, "tome", merging(16))
    with plain_attention(model):
        whole, alone = (form(images_for(vit)).logits for form in (model, model.with_prefix_block()))
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mean-pooled", "its head reads patch tokens (pool 'avg')"),
        ("post-norm", "its last block is no plain timm Block (ResPostBlock)"),
    ],
)
def test_where_all_tokens_are_read_that_is_said(family, reason):
    vit = tiny_vit(family)
    assert adapted(vit).no_prefix_block == reason
    with pytest.raises(UnsupportedModelError) as refusal:
        slim(vit).with_prefix_block()
    assert refusal.value.message == f"the last block has to compute all tokens: {reason}"


def test_what_is_asked_for_decides_then_head_and_method():
    life, plain, evo_vit = methods.get("life"), methods.get("plain"), methods.get("evo-vit")
    assert [last_block_of(method, "deit_s", "") for method in (life, plain, evo_vit)] == ["prefix", "full", "full"]
    assert [last_block_of(life, "deit_s", "", asked) for asked in ("full", "prefix")] == ["full", "prefix"]
    assert last_block_of(life, "vit", "its head reads patch tokens") == "full"
    for method, obstacle, why in (
        (life, "its head reads patch tokens", "its head reads patch tokens"),
        (evo_vit, "", "evo-vit computes all tokens there"),
    ):
        with pytest.raises(UnsupportedModelError) as refusal:
            last_block_of(method, "vit_x", obstacle, "prefix")
        assert refusal.value.message == (
            f"the last block of vit_x under {method.name} cannot be of prefix tokens alone: {why}"
        )
        assert refusal.value.hint == "--last-block full"
