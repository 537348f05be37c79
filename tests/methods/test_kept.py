"""What goes on after every drop: with tokens gone the answer is that of a model in which they are only not seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.method import Method
from lifedeploy.model.vit import SlimOutput
from lifedeploy.schedule import Schedule
from tests.methods.cases import CASES, DROPPING, UNFUSED
from tests.model.conftest import DEPTH, embed, images_for, slim, tiny_vit
from tests.model.test_reducers import cls_row_by_hand

FAMILY = {1: "plain", 2: "distilled", 5: "registers"}  # prefix tokens → family
SOME = settings(max_examples=20, deadline=None)
prefixes = st.sampled_from(list(FAMILY))
drops = st.sets(st.integers(1, DEPTH - 1), min_size=1, max_size=4).map(sorted)


@st.composite
def schedules(draw: st.DrawFn, patches: int = 16) -> Schedule:
    """Any counts that do not grow, after any layers."""
    layers = draw(drops)
    counts = draw(st.lists(st.integers(1, patches), min_size=len(layers), max_size=len(layers)))
    return Schedule.from_counts(patches, DEPTH, sorted(counts, reverse=True), layers)


def masked(vit: VisionTransformer, images: Tensor, output: SlimOutput) -> tuple[Tensor, dict[int, Tensor]]:
    """The whole forward pass; what was dropped stays, and is no key to any query any more.

    Returns:
        Logits, and by layer what goes into it.
    """
    x, prefix, inputs = embed(vit, images), vit.num_prefix_tokens, {}
    bias = torch.zeros(len(x), 1, 1, x.shape[1], dtype=x.dtype)
    for layer, block in enumerate(vit.blocks, start=1):
        if layer - 1 in output.kept:
            bias = torch.full_like(bias, -torch.inf)
            bias[..., :prefix] = 0
            bias[:, 0, 0].scatter_(1, output.kept[layer - 1] + prefix, 0.0)
        inputs[layer] = x, bias
        x = x + block.ls1(block.attn(block.norm1(x), attn_mask=bias))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x)), inputs


@pytest.mark.parametrize("family", FAMILY.values())
@pytest.mark.parametrize("case", UNFUSED)
@torch.no_grad()
def test_dropping_tokens_is_not_seeing_them(case, family):
    vit, (method, options) = tiny_vit(family), CASES[case]
    images = images_for(vit)
    for rate in (0.7, 0.4):
        model = slim(vit, method, methods.get(method).make_schedule(16, DEPTH, keep_rate=rate), **options)
        output = model(images)
        assert set(output.kept) == set(model.schedule.drop_layers)
        torch.testing.assert_close(output.logits, masked(vit, images, output)[0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(output.logits, vit(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILY.values())
@pytest.mark.parametrize("case", ["evit-no-fuse", "topk"])
@torch.no_grad()
def test_in_the_masked_model_cls_attends_most_to_what_is_kept(case, family):
    vit, (method, options) = tiny_vit(family).double(), CASES[case]
    images = images_for(vit).double()
    output = slim(vit, method, **options)(images)
    _, inputs = masked(vit, images, output)
    for layer, kept in output.kept.items():
        row = cls_row_by_hand(vit.blocks[layer - 1], *inputs[layer])[:, vit.num_prefix_tokens :]
        assert torch.equal(row.topk(kept.shape[1], dim=1).indices, kept)


def require_sound(output: SlimOutput, schedule: Schedule, *, fuses: bool) -> None:
    """Make sure that kept tokens are as many as are said, different ones, and of those that were there before."""
    before = [set(range(schedule.patches))] * len(output.logits)
    for number, layer in enumerate(schedule.leaving_layers, start=1):
        kept = output.kept[layer]
        assert kept.shape == (len(output.logits), schedule.after(layer))
        for image, row in enumerate(kept.tolist()):
            patches = [place for place in row if place != -1]
            assert len(set(patches)) == len(patches)
            assert set(patches) <= before[image]
            fused = len(row) - len(patches)
            assert 1 <= fused <= number if fuses else fused == 0
            assert row[-1] == -1 or not fuses
            before[image] = set(patches)


@pytest.mark.parametrize("case", DROPPING)
@SOME
@given(prefix=prefixes, schedule=schedules())
@torch.no_grad()
def test_kept_tokens_of_any_counts_are_different_ones_of_those_before(case, prefix, schedule):
    vit, (method, options) = tiny_vit(FAMILY[prefix]), CASES[case]
    fuses = case == "evit"
    if fuses and any(schedule.after(layer) < 2 for layer in schedule.leaving_layers):
        with pytest.raises(UsageError, match="which would stand for all others"):
            slim(vit, method, schedule, **options)
        return
    output = slim(vit, method, schedule, **options)(images_for(vit))
    assert output.logits.isfinite().all()
    assert output.tokens.shape[1] == prefix + schedule.tokens[-1]
    require_sound(output, schedule, fuses=fuses)


def made(row: Method, rate: float, layers: list[int], options: dict[str, methods.Option]) -> Schedule | None:
    """None: too little is left."""
    try:
        return row.make_schedule(16, DEPTH, keep_rate=rate, drop_layers=layers, options=options)
    except ScheduleError as error:
        assert "at least 1 is needed" in error.message
        return None


@pytest.mark.parametrize("case", DROPPING)
@SOME
@given(prefix=prefixes, rate=st.floats(0.01, 1.0), layers=drops)
@torch.no_grad()
def test_any_keep_rate_gives_counts_that_its_method_can_keep(case, prefix, rate, layers):
    """What a schedule makes of a rate, the reducer takes: for EViT, never a fused token alone."""
    vit, (method, options) = tiny_vit(FAMILY[prefix]), CASES[case]
    schedule = made(methods.get(method), rate, layers, options)
    if schedule is None:
        assert case not in ("evit", "evit-no-fuse")  # ⌈ρ n⌉ of something is something
        return
    model = slim(vit, method, schedule, **options)
    output = model(images_for(vit))
    require_sound(output, schedule, fuses=case == "evit")
    assert model.reducer.sorts == (
        min(1, len(schedule.leaving_layers)) if case == "random" else len(schedule.leaving_layers)
    )


# --- at the edges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY.values())
@pytest.mark.parametrize("case", DROPPING)
@torch.no_grad()
def test_keep_rate_1_is_the_backbone_itself(case, family):
    vit, (method, options) = tiny_vit(family), CASES[case]
    model = slim(vit, method, methods.get(method).make_schedule(16, DEPTH, keep_rate=1.0), **options)
    output = model(images_for(vit))
    assert torch.equal(output.logits, vit(images_for(vit)))
    assert (output.kept, model.reducer.sorts) == ({}, 0)
    assert not model.reducer.inside_layers


@pytest.mark.parametrize("case", UNFUSED)
@torch.no_grad()
def test_one_patch_may_be_all_that_is_left(case):
    vit, (method, options) = tiny_vit(), CASES[case]
    images = images_for(vit)
    output = slim(vit, method, Schedule.from_counts(16, DEPTH, (1,), (2,)), **options)(images)
    assert output.kept[2].shape == (3, 1)
    torch.testing.assert_close(output.logits, masked(vit, images, output)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_patch_beside_a_fused_token_is_the_least_that_evit_keeps():
    vit = tiny_vit()
    schedule = Schedule.from_counts(16, DEPTH, (2, 2), (2, 4))
    output = slim(vit, "evit", schedule)(images_for(vit))
    assert [row[1] for row in output.kept[2].tolist()] == [-1] * 3
    assert torch.equal(output.kept[2], output.kept[4])  # nothing leaves there, so nothing is fused either
    with pytest.raises(UsageError) as refused:
        slim(vit, "evit", replace(schedule, tokens=(16, 16, 2, 2, 1, 1)))
    assert refused.value.message == "evit keeps 1 patch token after layer 4, which would stand for all others"
    assert refused.value.hint == "a larger keep rate, or --no-fuse"


@torch.no_grad()
def test_evit_refuses_a_fused_token_alone_under_another_schedule_too():
    model = slim(tiny_vit(), "evit", Schedule.from_counts(16, DEPTH, (9, 5), (2, 4)))
    alone = Schedule.from_counts(16, DEPTH, (9, 1), (2, 4))
    for form in (model.reducer.at, model.reducer.relaxed):
        with pytest.raises(UsageError, match="which would stand for all others"):
            form(alone)
    assert slim(tiny_vit(), "evit", fuse=False).reducer.at(alone).sorts == 2


@torch.no_grad()
def test_a_drop_layer_after_which_nothing_leaves_scores_nothing():
    vit, schedule = tiny_vit(), Schedule.from_counts(16, DEPTH, (16, 9, 9, 5), (1, 2, 3, 5))
    for case, sorts in (
        ("evit", 2),
        ("evit-no-fuse", 2),
        ("topk", 2),
        ("dynamicvit", 2),
        ("random", 1),
        ("ia-red2", 2),
    ):
        method, options = CASES[case]
        model = slim(vit, method, schedule, **options)
        output = model(images_for(vit))
        assert model.reducer.sorts == sorts
        assert torch.equal(output.kept[2], output.kept[3]), case
        require_sound(output, schedule, fuses=case == "evit")


def test_a_width_that_cannot_be_halved_twice_has_no_dynamicvit():
    vit = tiny_vit(embed_dim=18)
    with pytest.raises(UsageError, match="halves the channels of a token twice, and this backbone has 18"):
        slim(vit, "dynamicvit")
