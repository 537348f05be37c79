"""The four reducers against walks over lists of tokens, written from the methods' descriptions, in double precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lifedeploy.model.reducers import BlockAttention, Tokens
from lifedeploy.model.reducers.dynamicvit import ScorePredictor
from lifedeploy.model.reducers.random import RandomReducer
from lifedeploy.schedule import Schedule
from tests.model.conftest import DEPTH, PRE_NORM, embed, images_for, slim, tiny_vit
from tests.model.test_reducers import cls_row_by_hand, rows_of

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
KEEP = {2: 12, 3: 9, 5: 5}  # drop layer → tokens that go on


def counted(keep: Mapping[int, int], patches: int = 16) -> Schedule:
    return Schedule.from_counts(patches, DEPTH, tuple(keep.values()), tuple(keep))


Kept = dict[int, list[int]]


def with_cls_attention(
    vit: VisionTransformer, image: Tensor, keep: Mapping[int, int], *, fuse: bool
) -> tuple[Tensor, Kept]:
    """EViT, section 3: a token is a number and a vector, the number of a fused one is -1."""
    prefix = vit.num_prefix_tokens
    x = embed(vit, image[None])
    numbers, kept = list(range(x.shape[1] - prefix)), {}
    for layer, block in enumerate(vit.blocks, start=1):
        attended = cls_row_by_hand(block, x)[0, prefix:].tolist()
        x = x + block.ls1(block.attn(block.norm1(x)))
        if keep.get(layer, len(numbers)) < len(numbers):
            tokens = sorted(zip(attended, numbers, x[0, prefix:], strict=True), key=lambda token: -token[0])
            stay = tokens[: keep[layer] - fuse]
            numbers, rows = [token[1] for token in stay], [token[2] for token in stay]
            if fuse:
                numbers.append(-1)
                rows.append(sum(weight * row for weight, _, row in tokens[len(stay) :]))
            x = torch.stack([*x[0, :prefix], *rows])[None]
        if layer in keep:
            kept[layer] = numbers
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x))[0], kept


def behind_blocks(
    vit: VisionTransformer,
    image: Tensor,
    keep: Mapping[int, int],
    scores: Callable[[int, Tensor], list[float] | None],
) -> tuple[Tensor, Kept]:
    """After each drop layer ``scores(layer, patches)``, from high to low; None: the order stays as it is."""
    prefix = vit.num_prefix_tokens
    x = embed(vit, image[None])[0]
    numbers, kept = list(range(len(x) - prefix)), {}
    for layer, block in enumerate(vit.blocks, start=1):
        x = block(x[None])[0]
        if layer in keep:
            found = scores(layer, x[prefix:])
            order = range(len(numbers)) if found is None else sorted(range(len(numbers)), key=lambda i: -found[i])
            stay = list(order)[: keep[layer]]
            numbers = kept[layer] = [numbers[place] for place in stay]
            x = torch.stack([*x[:prefix], *(x[prefix + place] for place in stay)])
    return vit.forward_head(vit.norm(x[None]))[0], kept


def require_same(vit, images, output, by_hand):
    """Make sure that each image has the logits and the kept tokens, in their order, of the walk by hand."""
    for number, image in enumerate(images):
        logits, kept = by_hand(image)
        torch.testing.assert_close(output.logits[number], logits, **CLOSE)
        assert rows_of(output.kept, number) == kept


# --- by CLS attention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@pytest.mark.parametrize(("method", "fuse"), [("evit", True), ("evit", False), ("topk", False)])
@torch.no_grad()
def test_what_cls_attends_to_goes_on(family, method, fuse):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    options = {"fuse": fuse} if method == "evit" else {}
    output = slim(vit, method, counted(KEEP, vit.patch_embed.num_patches), **options)(images)
    assert output.lives is output.scores is None
    require_same(vit, images, output, lambda image: with_cls_attention(vit, image, KEEP, fuse=fuse))


@torch.no_grad()
def test_a_fused_token_is_kept_as_a_fused_one_or_fused_again():
    """Both happen, and both are as they are by hand."""
    vit, keep = tiny_vit().double(), {1: 12, 2: 9, 3: 6, 4: 4}
    images = images_for(vit, batch=12).double()
    output = slim(vit, "evit", counted(keep))(images)
    require_same(vit, images, output, lambda image: with_cls_attention(vit, image, keep, fuse=True))
    fused = Counter(int((row == -1).sum()) for layer in (2, 3, 4) for row in output.kept[layer])
    assert fused[1] and sum(count for several, count in fused.items() if several > 1), fused
    assert all((kept[:, -1] == -1).all() for kept in output.kept.values())


@torch.no_grad()
def test_a_fused_token_is_the_sum_of_what_is_dropped_weighted_by_attention():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 18, 24, generator=generator, dtype=torch.float64)
    q, k = torch.randn(2, 3, 4, 18, 8, generator=generator, dtype=torch.float64)
    reducer = slim(tiny_vit("distilled"), "evit", counted(KEEP)).reducer
    seen = reducer.inside_block(2, Tokens(x=x, prefix=2), BlockAttention(q=q, k=k, scale=0.3, key_bias=None))
    for image in range(3):
        weights = sum((0.3 * k[image, head] @ q[image, head, 0]).softmax(0) for head in range(4)) / 4
        dropped = weights[2:].argsort(descending=True)[11:]
        expected = sum(weights[2 + patch] * x[image, 2 + patch] for patch in dropped)
        torch.testing.assert_close(seen.x[image, -1], expected, **CLOSE)
        assert 0 < sum(weights[2 + patch] for patch in dropped) < 0.5  # as they are: they do not add up to 1


# --- by a predictor ---------------------------------------------------------------------------------------------


def keep_log_odds(predictor: nn.Module, patches: Tensor) -> list[float]:
    """DynamicViT, eq. 1 to 4, of the tensors alone: patches (n, C) → log of the probability that each is kept."""
    of = {name: tensor.double() for name, tensor in predictor.state_dict().items()}
    gelu = nn.GELU()
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True, unbiased=False)
    z = (patches - mean) / (variance + 1e-5).sqrt() * of["in_conv.0.weight"] + of["in_conv.0.bias"]
    z = gelu(z @ of["in_conv.1.weight"].T + of["in_conv.1.bias"])
    half = patches.shape[1] // 2
    whole = z[:, half:].sum(0) / len(patches)
    z = torch.stack([torch.cat((row[:half], whole)) for row in z])
    for layer in ("0", "2", "4"):
        z = z @ of[f"out_conv.{layer}.weight"].T + of[f"out_conv.{layer}.bias"]
        z = gelu(z) if layer != "4" else z
    return z.log_softmax(dim=-1)[:, 0].tolist()


@torch.no_grad()
def test_the_predictors_of_dynamicvit_decide_what_goes_on(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    model = slim(vit, "dynamicvit", counted(KEEP, vit.patch_embed.num_patches)).double()
    names = {name.partition("score_predictor.")[2] for name in model.state_dict() if "score_predictor" in name}
    parts = ("in_conv.0", "in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")  # as in the authors' weights
    assert names == {f"{n}.{part}.{kind}" for n in range(3) for part in parts for kind in ("weight", "bias")}
    predictors = dict(zip(KEEP, model.reducer.score_predictor, strict=True))
    require_same(
        vit,
        images,
        model(images),
        lambda image: behind_blocks(vit, image, KEEP, lambda layer, patches: keep_log_odds(predictors[layer], patches)),
    )


def test_channels_of_a_predictor_are_halved_twice():
    shapes = {name: tuple(tensor.shape) for name, tensor in ScorePredictor(24).named_parameters() if "weight" in name}
    assert shapes == {
        "in_conv.0.weight": (24,),
        "in_conv.1.weight": (24, 24),
        "out_conv.0.weight": (12, 24),
        "out_conv.2.weight": (6, 12),
        "out_conv.4.weight": (2, 6),
    }


# --- by chance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [0, 7])
@torch.no_grad()
def test_chance_ranks_once_and_then_only_cuts(family, draw):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    patches = vit.patch_embed.num_patches
    directions = np.random.default_rng(draw).standard_normal((patches, 24), dtype=np.float32)

    def scores(layer: int, tokens: Tensor) -> list[float] | None:
        if layer != 2:
            return None
        rows = tokens.numpy() - tokens.numpy().mean(axis=0)
        return [float(row @ own / np.linalg.norm(row)) for row, own in zip(rows, directions, strict=True)]

    model = slim(vit, "random", counted(KEEP, patches), draw=draw).double()
    require_same(vit, images, model(images), lambda image: behind_blocks(vit, image, KEEP, scores))


def orders(patches: Tensor, draws: range) -> Tensor:
    """In which order one image's patches (N, C) come under each of some draws: (draws, N)."""
    schedule = Schedule.from_counts(len(patches), 2, (len(patches) - 1,), (1,))
    reducers = (RandomReducer(schedule, patches.shape[1], draw) for draw in draws)
    scores = torch.cat([reducer._scores(patches[None]) for reducer in reducers])
    return scores.argsort(dim=1, descending=True)


@pytest.mark.parametrize("kind", ["noise", "far from zero", "two alike", "of one channel"])
def test_each_order_is_as_likely_as_any_other_whatever_the_image(kind):
    patches = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    if kind == "far from zero":
        patches = patches * torch.tensor([[0.01], [1.0], [100.0]]) + 50
    elif kind == "two alike":
        patches[1] = patches[0]
    elif kind == "of one channel":
        patches[:, 1:] = 0
    draws = range(3000)
    found = Counter(map(tuple, orders(patches, draws).tolist()))
    assert len(found) == 6
    expected, deviation = len(draws) / 6, (len(draws) * 1 / 6 * 5 / 6) ** 0.5
    assert all(abs(count - expected) < 4 * deviation for count in found.values()), found


def test_every_patch_is_kept_as_often_as_any_other():
    patches, draws = torch.randn(16, 24, generator=torch.Generator().manual_seed(2)), range(1000)
    kept = orders(patches, draws)[:, :4]
    often = torch.bincount(kept.flatten(), minlength=16)
    deviation = (len(draws) * 1 / 4 * 3 / 4) ** 0.5
    assert (often - len(draws) / 4).abs().max() < 4 * deviation


@torch.no_grad()
def test_an_order_is_fixed_for_a_draw_and_another_one_for_another_image_or_draw():
    vit = tiny_vit()
    images = images_for(vit)
    models = {(draw, again): slim(vit, "random", counted(KEEP), draw=draw) for draw in (0, 1) for again in (1, 2)}
    kept = {key: model(images).kept[2] for key, model in models.items()}
    assert torch.equal(kept[0, 1], kept[0, 2]) and torch.equal(kept[1, 1], kept[1, 2])
    assert not torch.equal(kept[0, 1], kept[1, 1])
    assert len({tuple(row) for row in kept[0, 1].tolist()}) == len(images)
    alone = torch.cat([models[0, 1](image[None]).kept[2] for image in images])
    assert torch.equal(alone, kept[0, 1])  # whatever else is in the batch
    assert not [name for name in models[0, 1].state_dict() if "reducer" in name]


@torch.no_grad()
def test_an_image_of_one_colour_is_ordered_too():
    """Its patches differ by their positions; and where tokens are all the same, their scores are numbers still."""
    output = slim(tiny_vit(), "random", counted(KEEP))(torch.zeros(1, 3, 32, 32))
    assert len(set(output.kept[2][0].tolist())) == 12
    same = RandomReducer(counted(KEEP), 24, 0)._scores(torch.ones(1, 16, 24))
    assert same.isfinite().all()
