"""A-ViT against a walk that really removes what has halted, image by image; and its scores under a fixed budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import ScheduleError, UnsupportedModelError
from lifedeploy.model.reducers import Plan, Tokens, build_reducer
from lifedeploy.model.reducers.avit import EPSILON, act_weights
from lifedeploy.schedule import Schedule
from tests.model.conftest import DEPTH, embed, images_for, slim, tiny_vit
from tests.model.test_reducers import rows_of

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
FROM_CLS = ["plain", "distilled", "registers", "deit3", "qk-norm", "norm-first", "post-norm", "non-square"]
SCALE, CENTER = 3.0, 1.0  # under which tokens of the tiny models halt in different layers


def halting(token: Tensor, layer: int, depth: int, scale: float, center: float) -> float:
    """h of a token after a layer, eq. 4; at the last one 1."""
    return 1.0 if layer == depth else 1 / (1 + math.exp(center - scale * float(token[0])))


class Halted:
    """One image through all layers: a token that has halted is there no more."""

    def __init__(self, vit: VisionTransformer, image: Tensor, scale: float, center: float) -> None:
        x, prefix, depth = embed(vit, image[None])[0], vit.num_prefix_tokens, len(vit.blocks)
        there, tokens = list(range(len(x))), list(x)
        so_far = [0.0] * len(x)
        outputs = [torch.zeros_like(token) for token in x]
        layers = [0] * len(x)
        for layer, block in enumerate(vit.blocks, start=1):
            if not there:
                break
            for place, row in zip(there, block(torch.stack([tokens[place] for place in there])[None])[0], strict=True):
                h = halting(row, layer, depth, scale, center)
                halts = so_far[place] + h >= 1 - EPSILON
                outputs[place] = outputs[place] + (1 - so_far[place] if halts else h) * row
                so_far[place] += h
                layers[place] += 1
                tokens[place] = row
            there = [place for place in there if so_far[place] < 1 - EPSILON]
        self.lives = layers[prefix:]
        self.of_prefix = layers[:prefix]
        self.logits = vit.forward_head(vit.norm(torch.stack(outputs[:prefix])[None]))[0]


@pytest.mark.parametrize("family", FROM_CLS, indirect=True)
@torch.no_grad()
def test_what_is_masked_might_as_well_not_be_there(family):
    vit = tiny_vit(family).double()
    patches = vit.patch_embed.num_patches
    images = images_for(vit, batch=4).double()
    output = slim(vit, "avit", Schedule.dense(patches, DEPTH), gate_scale=SCALE, gate_center=CENTER)(images)
    assert (output.kept, output.groups) == ({}, None)
    assert output.lives.dtype == torch.float32 and torch.equal(output.lives, output.scores.float())
    for number, image in enumerate(images):
        walk = Halted(vit, image, SCALE, CENTER)
        assert output.lives[number].tolist() == walk.lives
        torch.testing.assert_close(output.logits[number], walk.logits, **CLOSE)
    assert len(set(output.lives.flatten().tolist())) >= 3  # really in different layers
    assert not torch.allclose(output.logits, vit(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["plain", "distilled", "registers"])
@torch.no_grad()
def test_a_prefix_token_halts_too_and_patches_go_on_without_it(family):
    vit = tiny_vit(family).double()
    vit.cls_token[..., 0] += 2
    images = images_for(vit, batch=4).double()
    output = slim(vit, "avit", Schedule.dense(16, DEPTH), gate_scale=SCALE, gate_center=CENTER)(images)
    for number, image in enumerate(images):
        walk = Halted(vit, image, SCALE, CENTER)
        assert walk.of_prefix[0] < max(walk.lives)
        assert output.lives[number].tolist() == walk.lives
        torch.testing.assert_close(output.logits[number], walk.logits, **CLOSE)


@torch.no_grad()
def test_as_published_the_center_is_far_and_nothing_halts_in_a_model_that_was_not_trained_for_it():
    vit = tiny_vit()
    images = images_for(vit)
    output = slim(vit, "avit", Schedule.dense(16, DEPTH))(images)
    assert torch.equal(output.lives, torch.full((3, 16), float(DEPTH)))
    torch.testing.assert_close(output.logits, vit(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["avit", "avit-ranked"])
@pytest.mark.parametrize(
    ("width", "given", "center"), [(192, -1.0, 30.0), (384, -1.0, 75.0), (768, -1.0, 75.0), (192, 75.0, 75.0)]
)
def test_the_center_is_that_of_the_authors_models_unless_told(method, width, given, center):
    row = methods.get(method)
    plan = Plan(
        schedule=Schedule.dense(196, 12),
        width=width,
        heads=3,
        prefix=1,
        ordering=row.orderings[0],
        options=row.options(gate_center=given),
    )
    reducer = build_reducer(row, plan)
    assert (reducer.scale, reducer.center) == (10.0, center)
    none = build_reducer(row, replace(plan, options=row.options(gate_center=0.0)))
    assert none.center == 0.0  # is a center too
    halting = reducer.logit(torch.tensor([0.0, center / 10, center / 5])).sigmoid()
    assert halting.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(probabilities=st.lists(st.floats(0, 1), max_size=30))
def test_weights_of_all_layers_add_up_to_one(probabilities):
    """Whatever the probabilities are; and each is h, but for the layer that halts the token and those behind it."""
    halting = [*probabilities, 1.0]
    weights = act_weights(torch.tensor([halting, halting], dtype=torch.float64))
    assert torch.equal(*weights) and weights.shape == (2, len(halting))
    before = 0.0
    for h, weight in zip(halting, weights[0].tolist(), strict=True):
        if before + h < 1 - EPSILON:
            assert weight == h
        elif before >= 1 - EPSILON:
            assert weight == 0
        before += h
    assert float(weights[0].sum()) == pytest.approx(1, abs=1e-12)
    assert float(weights.min()) >= 0


@pytest.mark.parametrize("method", ["avit", "avit-ranked"])
def test_a_backbone_that_pools_patches_is_refused(method):
    vit = tiny_vit("mean-pooled")
    schedule = Schedule.dense(16, DEPTH) if method == "avit" else None
    with pytest.raises(UnsupportedModelError, match="A-ViT reads classes from CLS, and this backbone pools patches"):
        slim(vit, method, schedule)(images_for(vit))


def test_it_drops_nothing_and_so_has_no_drop_layers():
    row = methods.get("avit")
    assert row.make_schedule(196, 12) == Schedule.dense(196, 12)
    with pytest.raises(ScheduleError, match="avit drops nothing, so it has no drop layers") as refused:
        row.make_schedule(196, 12, drop_layers=(4,))
    assert refused.value.hint == "--method avit-ranked"


# --- its scores under a fixed budget ----------------------------------------------------------------------------


def ranked(
    vit: VisionTransformer, image: Tensor, schedule: Schedule, scale: float, center: float
) -> tuple[Tensor, dict[int, list[int]]]:
    """After each drop layer the patches of the least probability so far; prefix tokens are never dropped."""
    x, prefix, depth = embed(vit, image[None])[0], vit.num_prefix_tokens, len(vit.blocks)
    numbers, kept = list(range(len(x) - prefix)), {}
    so_far = dict.fromkeys([*range(-prefix, 0), *numbers], 0.0)  # prefix tokens are below zero
    outputs = torch.zeros_like(x[:prefix])
    for layer, block in enumerate(vit.blocks, start=1):
        x = block(x[None])[0]
        for place, token in enumerate([*range(-prefix, 0), *numbers]):
            h = halting(x[place], layer, depth, scale, center)
            if token < 0 and so_far[token] < 1 - EPSILON:
                outputs[place] += (h if so_far[token] + h < 1 - EPSILON else 1 - so_far[token]) * x[place]
            so_far[token] += h
        if layer in schedule.drop_layers:
            rows = dict(zip(numbers, x[prefix:], strict=True))
            numbers = kept[layer] = sorted(numbers, key=so_far.__getitem__)[: schedule.after(layer)]
            x = torch.stack([*x[:prefix], *(rows[patch] for patch in numbers)])
    return vit.forward_head(vit.norm(outputs[None]))[0], kept


@pytest.mark.parametrize("family", FROM_CLS, indirect=True)
@pytest.mark.parametrize(("scale", "center"), [(SCALE, CENTER), (10.0, 75.0), (0.5, 0.1)])
@torch.no_grad()
def test_what_is_least_likely_to_have_halted_goes_on(family, scale, center):
    vit = tiny_vit(family).double()
    images = images_for(vit, batch=4).double()
    patches = vit.patch_embed.num_patches
    schedule = Schedule.from_counts(patches, DEPTH, (12, 9, 5), (2, 3, 5))
    output = slim(vit, "avit-ranked", schedule, gate_scale=scale, gate_center=center)(images)
    assert output.lives is output.scores is output.groups is None
    for number, image in enumerate(images):
        logits, kept = ranked(vit, image, schedule, scale, center)
        assert rows_of(output.kept, number) == kept
        torch.testing.assert_close(output.logits[number], logits, **CLOSE)


@torch.no_grad()
def test_its_answer_is_the_weighted_mean_of_all_layers_also_where_nothing_is_dropped():
    vit = tiny_vit().double()
    images = images_for(vit).double()
    schedule = Schedule.from_counts(16, DEPTH, (16, 16), (2, 4))
    model = slim(vit, "avit-ranked", schedule, gate_scale=SCALE, gate_center=CENTER)
    output = model(images)
    assert (output.kept, model.reducer.sorts) == ({}, 0)
    for number, image in enumerate(images):
        torch.testing.assert_close(output.logits[number], ranked(vit, image, schedule, SCALE, CENTER)[0], **CLOSE)
    assert not torch.allclose(output.logits, vit(images), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_probabilities_that_are_too_small_for_a_number_are_told_apart():
    """As in a trained DeiT-S: γ 10, β 75, and a first channel around -2 to -5, whose h is less than 1e-41."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 17, 24, generator=generator) * 0.5 - mean for mean in (2.0, 3.0, 5.0)]
    for x in layers:
        assert (x[..., 0] * 10 - 75).sigmoid().lt(1e-30).all()  # nothing is left of the smallest
    assert (layers[2][..., 0] * 10 - 75).sigmoid().eq(0).all()
    schedule = Schedule.from_counts(16, DEPTH, (7,), (3,))
    reducer = slim(tiny_vit(), "avit-ranked", schedule, gate_scale=10.0, gate_center=75.0).reducer
    tokens = Tokens(x=layers[0], prefix=1)
    for layer, x in enumerate(layers, start=1):
        tokens = reducer.after_block(layer, tokens.but(x=x))
    exact = sum((10.0 * x[..., 0].double() - 75.0).sigmoid() for x in layers)[:, 1:]
    assert exact.gt(0).all()
    assert torch.equal(tokens.positions, exact.argsort(dim=1)[:, :7])


@pytest.mark.parametrize("x", [-1e4, 1e4])
@torch.no_grad()
def test_sums_stay_numbers_however_far_a_channel_goes(x):
    reducer = slim(tiny_vit(), "avit-ranked", Schedule.from_counts(16, DEPTH, (7,), (3,))).reducer
    tokens = Tokens(x=torch.full((1, 17, 24), x), prefix=1)
    for layer in (1, 2, 3):
        tokens = reducer.after_block(layer, tokens)
    assert all(value.isfinite().all() for value in (*tokens.beside.values(), *tokens.carry.values()))
    assert len(set(tokens.positions[0].tolist())) == 7
