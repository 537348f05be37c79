"""Evo-ViT against a walk over lists of tokens, in double precision; and tokens that wait."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.reducers import Tokens
from lifedeploy.schedule import Schedule
from tests.methods.test_by_hand import CLOSE, Kept
from tests.model.conftest import PRE_NORM, embed, images_for, slim, tiny_vit
from tests.model.test_reducers import cls_row_by_hand, rows_of

EVO_VIT = methods.get("evo-vit")


class Walk:
    """One image through all layers: of each patch a vector, and what CLS paid to it so far."""

    def __init__(self, vit: VisionTransformer, image: Tensor, schedule: Schedule) -> None:
        prefix, first = vit.num_prefix_tokens, schedule.drop_layers[0]
        x = embed(vit, image[None])[0]
        front, patches = x[:prefix], dict(enumerate(x[prefix:]))
        paid = dict.fromkeys(patches, 0.0)
        self.kept: Kept = {}
        order = taking_part = list(patches)
        for layer, block in enumerate(vit.blocks, start=1):
            behind = layer - 1
            if behind in schedule.drop_layers:
                order = sorted(order, key=lambda patch: -paid[patch])
                taking_part = self.kept[behind] = order[: schedule.after(behind)]
            x = torch.stack([*front, *(patches[patch] for patch in taking_part)])
            row = cls_row_by_hand(block, x[None])[0, prefix:].tolist()
            for patch, now in zip(taking_part, row, strict=True):
                paid[patch] = now if layer <= first else 0.5 * paid[patch] + 0.5 * now
            x = block(x[None])[0]
            front = x[:prefix]
            patches |= dict(zip(taking_part, x[prefix:], strict=True))
        self.tokens = torch.stack([*front, *(patches[patch] for patch in order)])
        self.logits = classes_of_mean(vit, self.tokens[prefix:])


def classes_of_mean(vit: VisionTransformer, patches: Tensor) -> Tensor:
    """The backbone's norm and head, of the mean of all patches."""
    norm = vit.fc_norm if vit.global_pool == "avg" else vit.norm
    mean = patches.sum(dim=0) / len(patches)
    spread = ((mean - mean.mean()) ** 2).mean()
    return vit.head((mean - mean.mean()) / (spread + norm.eps).sqrt() * norm.weight + norm.bias)


def require_same(vit: VisionTransformer, schedule: Schedule) -> list[Walk]:
    """Make sure that each image has the logits, tokens and kept tokens of the walk by hand."""
    vit = vit.double()
    images = images_for(vit, batch=4).double()
    output = slim(vit, "evo-vit", schedule)(images)
    assert output.lives is output.scores is output.groups is None
    walks = [Walk(vit, image, schedule) for image in images]
    for number, walk in enumerate(walks):
        torch.testing.assert_close(output.logits[number], walk.logits, **CLOSE)
        torch.testing.assert_close(output.tokens[number], walk.tokens, **CLOSE)  # those that waited, behind the others
        kept: Kept = rows_of(output.kept, number)
        assert kept == walk.kept
    return walks


@pytest.mark.parametrize("family", ["plain", "distilled", "registers"])
@torch.no_grad()
def test_half_of_the_patches_goes_on_after_layers_4_and_8_of_12(family):
    schedule = EVO_VIT.make_schedule(16, 12)
    assert (schedule.drop_layers, schedule.counts) == ((4, 8), (8, 8))
    require_same(tiny_vit(family, depth=12), schedule)


@torch.no_grad()
def test_some_that_waited_take_part_later():
    """Where attention is sharp: it is decided anew."""
    vit = tiny_vit(depth=12)
    for block in vit.blocks:
        block.attn.qkv.weight.mul_(5)
    walks = require_same(vit, EVO_VIT.make_schedule(16, 12))
    assert any(set(walk.kept[4]) != set(walk.kept[8]) for walk in walks)


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_in_every_kind_of_backbone_those_that_wait_come_back_as_they_were(family):
    vit = tiny_vit(family)
    schedule = EVO_VIT.make_schedule(vit.patch_embed.num_patches, 6)
    assert schedule.drop_layers == (2, 4)
    require_same(vit, schedule)


@pytest.mark.parametrize("layers", [(1,), (5,), (1, 2, 3, 4, 5), (3, 4)])
@pytest.mark.parametrize("img_size", [(8, 24), (24, 24), (32, 32)])
@torch.no_grad()
def test_at_any_layers_and_of_any_number_of_patches(layers, img_size):
    vit = tiny_vit(img_size=img_size)
    schedule = EVO_VIT.make_schedule(vit.patch_embed.num_patches, 6, drop_layers=layers)
    assert set(schedule.counts) == {vit.patch_embed.num_patches // 2}
    require_same(vit, schedule)


@torch.no_grad()
def test_what_was_attended_to_before_counts_half():
    """With the latest layer's attention alone, others would come first."""
    vit, schedule = tiny_vit(depth=12).double(), EVO_VIT.make_schedule(16, 12)
    images = images_for(vit, batch=12).double()
    output, differs = slim(vit, "evo-vit", schedule)(images), 0
    for number, image in enumerate(images):
        kept = rows_of(output.kept, number)
        x = embed(vit, image[None])
        for block in vit.blocks[:4]:
            x = block(x)
        x = x[:, [0, *(1 + patch for patch in kept[4])]]
        for block in vit.blocks[4:7]:
            x = block(x)
        latest = cls_row_by_hand(vit.blocks[7], x)[0, 1:].argsort(descending=True)
        differs += [kept[4][place] for place in latest] != [patch for patch in kept[8] if patch in kept[4]]
    assert differs > 6


@torch.no_grad()
def test_where_half_is_all_nothing_is_chosen_and_classes_are_read_from_the_mean_still():
    vit = tiny_vit().double()
    images = images_for(vit).double()
    model = slim(vit, "evo-vit", Schedule.from_counts(16, 6, (16, 16), (2, 4)))
    output = model(images)
    assert (output.kept, model.reducer.sorts, model.reducer.inside_layers) == ({}, 0, frozenset())
    tokens = vit.forward_features(images)  # normed, so not those
    assert output.tokens.shape == tokens.shape
    for logits, patches in zip(output.logits, output.tokens[:, 1:], strict=True):
        torch.testing.assert_close(logits, classes_of_mean(vit, patches), **CLOSE)


def test_a_backbone_without_a_place_between_attention_and_mlp_is_refused():
    with pytest.raises(UnsupportedModelError, match="works between attention and MLP"):
        slim(tiny_vit("post-norm"), "evo-vit", EVO_VIT.make_schedule(16, 6))


# --- tokens that wait -------------------------------------------------------------------------------------------


@st.composite
def any_tokens(draw: st.DrawFn) -> Tokens:
    """Tokens with and without positions, a bias, and things beside them."""
    batch, prefix, patches = draw(st.integers(1, 3)), draw(st.sampled_from([0, 1, 2, 5])), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    places, beside = prefix + patches, {}
    if draw(st.booleans()):
        beside["size"] = torch.randn(batch, places, generator=generator)
    if draw(st.booleans()):
        beside["pair"] = torch.randn(batch, places, 2, generator=generator)
    return Tokens(
        x=torch.randn(batch, places, 4, generator=generator),
        prefix=prefix,
        positions=torch.rand(batch, patches, generator=generator).argsort(dim=1) if draw(st.booleans()) else None,
        key_bias=torch.randn(batch, 1, 1, places, generator=generator) if draw(st.booleans()) else None,
        beside=beside,
        carry={"whatever": torch.ones(3)},
    )


def require_equal(found: Tokens, wanted: Tokens) -> None:
    assert torch.equal(found.x, wanted.x)
    assert torch.equal(found.original, wanted.original)
    assert (found.prefix, found.parked) == (wanted.prefix, None)
    assert (found.key_bias is None) == (wanted.key_bias is None)
    assert found.key_bias is None or torch.equal(found.key_bias, wanted.key_bias)
    assert found.beside.keys() == wanted.beside.keys() and found.carry == wanted.carry
    assert all(torch.equal(found.beside[name], wanted.beside[name]) for name in wanted.beside)


@settings(max_examples=200, deadline=None)
@given(tokens=any_tokens(), share=st.floats(0, 1))
def test_tokens_that_wait_and_come_back_are_the_same_in_the_same_places(tokens, share):
    count = round(share * tokens.patches)
    going = tokens.park(count)
    assert going.patches == count and going.parked.patches == tokens.patches - count
    assert (going.prefix, going.parked.prefix) == (tokens.prefix, 0)
    assert torch.equal(going.original, tokens.original[:, :count])
    require_equal(going.unpark(), tokens)
    require_equal(going.but(parked=None), tokens.first(count))


@settings(max_examples=50, deadline=None)
@given(tokens=any_tokens(), share=st.floats(0, 1))
def test_what_happens_meanwhile_to_those_that_go_on_does_not_touch_those_that_wait(tokens, share):
    count = round(share * tokens.patches)
    going = tokens.park(count)
    back = going.but(x=going.x + 1).unpark()
    places = tokens.prefix + count
    assert torch.equal(back.x[:, :places], tokens.x[:, :places] + 1)
    assert torch.equal(back.x[:, places:], tokens.x[:, places:])


def test_a_bias_that_only_some_of_them_have_is_none_of_the_others():
    tokens = Tokens(x=torch.zeros(2, 6, 4), prefix=1)
    going = tokens.park(3)
    back = going.but(key_bias=torch.ones(2, 1, 1, 4)).unpark()
    assert back.key_bias[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0]
    biased = tokens.but(key_bias=torch.ones(2, 1, 1, 6)).park(3)
    assert biased.but(key_bias=None).unpark().key_bias[1, 0, 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_something_beside_some_of_them_alone_is_refused():
    going = Tokens(x=torch.zeros(2, 6, 4), prefix=1).park(3)
    with pytest.raises(ValueError, match=r"tokens come back with \[\], and the others have \['size'\]"):
        going.but(beside={"size": torch.ones(2, 4)}).unpark()


def test_where_none_wait_none_come_back():
    with pytest.raises(ValueError, match="no tokens wait"):
        Tokens(x=torch.zeros(2, 6, 4), prefix=1).unpark()
