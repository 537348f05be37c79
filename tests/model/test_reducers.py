"""Reducers and their seam: the life predictor by hand, and three methods of other people that fit in between."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model.blocks import Backbone, adapted
from lifedeploy.model.lives import lives
from lifedeploy.model.reducers import BlockAttention, Plan, Reducer, TakeOrdered, Tokens, build_reducer
from lifedeploy.model.reducers.life import LifePredictor, RelaxedLife
from lifedeploy.model.tokens import gather_tokens
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from tests.model.conftest import DEPTH, PRE_NORM, embed, images_for, scores_by_hand, slim, tiny_vit
from tests.model.other_methods import DynamicVit, Evit, Tome

CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # in double precision
SCHEDULE = Schedule.from_keep_rate(16, 6, 0.7, (2, 3, 5))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the life predictor -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [1, 2, 5])
@torch.no_grad()
def test_at_the_start_scores_are_inner_products_of_normed_tokens_with_cls(prefix):
    x = noise(3, prefix + 16, 24) * 5 + 2
    scores = LifePredictor(24)(x, prefix)
    normed = F.layer_norm(x, (24,))
    expected = (normed[:, :1] * normed[:, prefix:]).sum(-1)
    assert scores.shape == (3, 16)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("prefix", [1, 2, 5])
@torch.no_grad()
def test_scores_are_the_bilinear_form_and_not_its_transpose(prefix):
    vit = tiny_vit({1: "plain", 2: "distilled", 5: "registers"}[prefix])
    model = slim(vit).double()
    x = noise(3, prefix + 16, 24).double()
    torch.testing.assert_close(model.reducer.predictor(x, prefix), scores_by_hand(model, x), **CLOSE)
    model.reducer.predictor.weight.copy_(model.reducer.predictor.weight.t().clone())
    assert not torch.allclose(model.reducer.predictor(x, prefix), scores_by_hand(slim(vit).double(), x))


def test_the_only_new_parameters_are_a_layernorm_and_a_matrix():
    shapes = {name: tuple(parameter.shape) for name, parameter in LifePredictor(24).named_parameters()}
    assert shapes == {"norm.weight": (24,), "norm.bias": (24,), "weight": (24, 24)}


# --- lives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_lives_have_the_schedules_mean_and_deviation_image_by_image(scale):
    schedule = Schedule.from_keep_rate(196, 12, 0.7)
    tau = lives(noise(4, 196) * scale + 7 * scale, schedule)
    assert tau.mean(dim=1).tolist() == pytest.approx([schedule.mean_life] * 4, abs=1e-4)
    assert tau.std(dim=1, correction=0).tolist() == pytest.approx([schedule.std_life] * 4, abs=1e-4)


def test_lives_rank_patches_as_scores_do():
    scores = noise(4, 16)
    assert torch.equal(lives(scores, SCHEDULE).argsort(dim=1), scores.argsort(dim=1))


def test_equal_scores_give_every_patch_the_mean_life():
    scores = torch.tensor([[3.25], [0.0], [-7e3]]).expand(3, 16).clone()
    tau = lives(scores, SCHEDULE)
    assert tau.tolist() == [pytest.approx([SCHEDULE.mean_life] * 16, abs=1e-6)] * 3


def test_equal_scores_give_finite_gradients():
    scores = torch.full((2, 16), 1.5, requires_grad=True)
    lives(scores, SCHEDULE).square().sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_one_image_of_equal_scores_does_not_disturb_the_others():
    scores = noise(3, 16)
    alone = lives(scores[[0, 2]], SCHEDULE)
    scores[1] = 4.0
    torch.testing.assert_close(lives(scores, SCHEDULE)[[0, 2]], alone)


# --- moving tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [(), (4,), (2, 3)])
def test_gather_tokens_is_indexing_image_by_image(rest):
    x, index = noise(3, 7, *rest), torch.tensor([[6, 0], [1, 1], [3, 5]])
    expected = torch.stack([x[image, index[image]] for image in range(3)])
    assert torch.equal(gather_tokens(x, index), expected)


def some_tokens(prefix: int, **changes: Any) -> Tokens:
    """Nine of sixteen patches of two images, with something of everything beside them."""
    positions = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(s))[:9] for s in (5, 6)])
    length = prefix + 9
    tokens = Tokens(
        x=noise(2, length, 4),
        prefix=prefix,
        positions=positions,
        scores=noise(2, 16, seed=1),
        key_bias=noise(2, 1, 1, length, seed=2),
        beside={"size": noise(2, length, seed=3), "seen": noise(2, length, 3, 2, seed=4)},
        carry={"x": noise(2, 5)},
    )
    return tokens.but(**changes)


def require_rows(found: Tokens, start: Tokens, rows: list[list[int]], added: Mapping[str, Any] | None = None) -> None:
    """Make sure that patches are those at ``rows`` (one list an image) of ``start``, then those ``added``."""
    prefix, count = start.prefix, len(added["x"][0]) if added else 0
    assert (found.prefix, found.patches) == (prefix, len(rows[0]) + count)
    assert found.scores is start.scores and found.carry is start.carry
    for image, row in enumerate(rows):
        places = [*range(prefix), *(prefix + patch for patch in row)]

        def along(before: Tensor, new: Tensor | None, image: int = image, places: list[int] = places) -> Tensor:
            lines = [before[image, place] for place in places]
            return torch.stack(lines if new is None else [*lines, *new[image]])

        assert torch.equal(found.x[image], along(start.x, added and added["x"]))
        assert set(found.beside) == set(start.beside)
        for name, value in start.beside.items():
            assert torch.equal(found.beside[name][image], along(value, added and added[name])), name
        ranks = row if start.positions is None else [start.positions[image, patch].item() for patch in row]
        assert found.positions[image].tolist() == [*ranks, *[-1] * count]
        if start.key_bias is None:
            assert found.key_bias is None
        else:
            bias = [start.key_bias[image, 0, 0, place].item() for place in places]
            assert found.key_bias[image, 0, 0].tolist() == [*bias, *[0.0] * count]


PREFIXES = [1, 2, 5]  # of all families
TAKEN = [[6, 0, 3, 8], [1, 7, 2, 5]]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("changes", [{}, {"positions": None}, {"key_bias": None}, {"beside": {}}], ids=str)
def test_taking_tokens_takes_along_all_that_is_of_each_of_them(prefix, changes):
    start = some_tokens(prefix, **changes)
    require_rows(start.take(torch.tensor(TAKEN)), start, TAKEN)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_first_tokens_keep_all_that_is_of_each_of_them(prefix, count):
    start = some_tokens(prefix)
    require_rows(start.first(count), start, [list(range(count))] * 2)


@pytest.mark.parametrize("changes", [{}, {"key_bias": None, "beside": {}}], ids=str)
def test_the_first_tokens_of_all_in_order_stay_in_order(changes):
    start = some_tokens(2, positions=None, **changes)
    cut = start.first(4)
    assert cut.positions.tolist() == [[0, 1, 2, 3]] * len(cut.x)
    assert start.positions is None and start.original.shape == (len(start.x), start.patches)
    require_rows(cut.take(torch.tensor([[3, 0], [1, 2]])), start, [[3, 0], [1, 2]])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
def test_tokens_that_are_appended_are_no_single_patch_and_bring_all_that_is_of_each(prefix, bare):
    start = some_tokens(prefix, **({"key_bias": None, "beside": {}} if bare else {}))
    beside = {} if bare else {"size": noise(2, 2, seed=8), "seen": noise(2, 2, 3, 2, seed=9)}
    added = noise(2, 2, 4, seed=7)
    taken = start.take(torch.tensor(TAKEN))
    more = taken.append(added, **beside)
    require_rows(more, start, TAKEN, {"x": added, **beside})
    # And move like all others from then on: 4 and 5 are the new ones.
    again = more.take(torch.tensor([[5, 1], [4, 5]])).first(1)
    require_rows(again, more, [[5], [4]])
    assert again.positions.tolist() == [[-1], [-1]]


def test_tokens_are_changed_by_copy():
    tokens = Tokens(x=noise(1, 5, 2), prefix=2)
    shorter = tokens.but(x=tokens.x[:, :4])
    assert (tokens.patches, shorter.patches, shorter.prefix) == (3, 2, 2)
    with pytest.raises(AttributeError):
        tokens.prefix = 1  # type: ignore[misc]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_take_ordered_keeps_the_prefix_then_the_best_in_order(prefix):
    start, scores = some_tokens(prefix), noise(2, 9, seed=1)
    taken, values = TakeOrdered(4)(start, scores)
    best = [sorted(range(9), key=row.__getitem__, reverse=True)[:4] for row in scores.tolist()]
    require_rows(taken, start, best)
    assert torch.equal(values, torch.stack([scores[image, row] for image, row in enumerate(best)]))


def life(ordering: str = "order-once") -> Any:
    row = methods.get("life")
    return build_reducer(
        row,
        Plan(
            schedule=SCHEDULE, width=24, heads=3, prefix=1, ordering=ordering, options=row.settle({"temperature": 2.5})
        ),
    )


def test_per_stage_orders_at_every_drop_and_order_once_only_at_the_first():
    once, staged = life(), life("per-stage")
    assert (list(once.order), list(once.keep), once.sorts) == (["2"], ["3", "5"], 1)
    assert (list(staged.order), list(staged.keep), staged.sorts) == (["2", "3", "5"], [], 3)
    assert [staged.order[layer].kept for layer in staged.order] == list(SCHEDULE.counts)
    assert once.temperature == staged.temperature == 2.5


# --- the soft mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [1, 2, 5])
@torch.no_grad()
def test_the_soft_mask_is_the_log_of_beta_on_patches_and_never_on_the_prefix(prefix):
    temperature = 1.5
    reducer = RelaxedLife(SCHEDULE, LifePredictor(24), temperature)
    tokens = Tokens(x=noise(3, prefix + 16, 24), prefix=prefix)
    for layer in range(1, SCHEDULE.depth + 1):
        tokens = reducer.before_block(layer, tokens)
        if layer <= SCHEDULE.base_layer:
            assert tokens.key_bias is None
        else:
            assert tokens.key_bias is not None and tokens.key_bias.shape == (3, 1, 1, prefix + 16)
            assert (tokens.key_bias[..., :prefix] == 0).all()
            tau = lives(tokens.scores, SCHEDULE)
            beta = 1 / (1 + torch.exp(-temperature * (tau - layer)))  # 1 long before death, 0 long after
            torch.testing.assert_close(tokens.key_bias[:, 0, 0, prefix:].exp(), beta)
        tokens = reducer.after_block(layer, tokens)


@torch.no_grad()
def test_a_patch_fades_as_layers_pass_and_fades_later_the_longer_it_lives():
    reducer = RelaxedLife(SCHEDULE, LifePredictor(24), 1.5)
    tokens = reducer.after_block(2, Tokens(x=noise(1, 17, 24), prefix=1))
    weights = torch.stack([reducer.before_block(t, tokens).key_bias[0, 0, 0, 1:] for t in (3, 4, 5, 6)])
    assert (weights.diff(dim=0) < 0).all()
    assert torch.equal(weights[0].argsort(), tokens.scores[0].argsort())


@torch.no_grad()
def test_a_life_far_past_or_far_ahead_gives_a_finite_mask():
    reducer = RelaxedLife(SCHEDULE, LifePredictor(24), 1e6)
    tokens = reducer.after_block(2, Tokens(x=noise(1, 17, 24), prefix=1))
    bias = reducer.before_block(6, tokens).key_bias
    assert bias.isfinite().all() and bias.min() < -1e5 and bias.max() == 0


# --- building one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_every_method_of_the_table_can_be_built_in_every_form_of_it(name):
    row = methods.get(name)
    kinds = {
        type(
            build_reducer(
                row, Plan(schedule=SCHEDULE, width=24, heads=3, prefix=1, ordering=ordering, options=row.settle({}))
            )
        )
        for ordering in row.orderings
    }
    assert [f"{kind.__module__}:{kind.__name__}" for kind in kinds] == [row.reducer]


def test_a_form_that_a_method_cannot_have_is_refused():
    row = methods.get("life")
    with pytest.raises(UsageError, match=re.escape("graph form 'twice' is unknown; there are: order-once, per-stage")):
        build_reducer(
            row, Plan(schedule=SCHEDULE, width=24, heads=3, prefix=1, ordering="twice", options=row.settle({}))
        )
    row = replace(row, selection="every drop", derives=False)
    with pytest.raises(UsageError) as refusal:
        build_reducer(
            row, Plan(schedule=SCHEDULE, width=24, heads=3, prefix=1, ordering="order-once", options=row.settle({}))
        )
    assert refusal.value.message == (
        "life chooses anew at every drop, so its graph cannot be order-once; expected per-stage"
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere.at.all:X", "its reducer nowhere.at.all:X cannot be imported: No module named 'nowhere'"),
        (
            "lifedeploy.cost:X",
            "its reducer lifedeploy.cost:X cannot be imported: module 'lifedeploy.cost' has no attri",
        ),
        ("lifedeploy.cost:Cost", "lifedeploy.cost:Cost is no Reducer"),
        ("lifedeploy.methods:names", "lifedeploy.methods:names is no Reducer"),
    ],
)
def test_a_reducer_that_cannot_be_had_is_said_with_whose_it_is(place, said):
    row = replace(methods.get("dense"), reducer=place, package="other 1.2")
    with pytest.raises(UsageError) as refusal:
        build_reducer(row, Plan(schedule=SCHEDULE, width=24, heads=3, prefix=1))
    assert refusal.value.message.startswith(f"method dense of other 1.2 cannot be used: {said}")
    assert "\n" not in refusal.value.message


# --- another schedule -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_reducer_that_cannot_change_its_schedule_refuses_another_one():
    vit, other = tiny_vit(), Schedule.from_keep_rate(16, DEPTH, 0.5, (2, 3, 5))
    model, images = SlimViT(vit, Evit(SCHEDULE)), images_for(vit)
    assert model.reducer.at(SCHEDULE) is model.reducer is model.reducer.relaxed(SCHEDULE)
    assert torch.equal(model(images, schedule=SCHEDULE).logits, model(images).logits)
    for ask in (
        lambda: model.reducer.at(other),
        lambda: model.reducer.relaxed(other),
        lambda: model(images, schedule=other),
        lambda: model(images, soft=True, schedule=other),
    ):
        with pytest.raises(UnsupportedModelError) as refusal:
            ask()
        assert refusal.value.message == "Evit is built for one schedule and cannot change it"
        assert refusal.value.hint == "train it without --elastic or --keep-ramp"


@torch.no_grad()
def test_built_in_methods_run_under_another_schedule_with_what_they_have_learned():
    vit, other = tiny_vit(), Schedule.from_keep_rate(16, DEPTH, 0.5, (2, 3, 5))
    images = images_for(vit)
    further = (("first-k", {"inside": True}), ("evit", {"fuse": False}), ("random", {"draw": 3}))
    for name, options in (*((name, {}) for name in methods.names()), *further):
        model = slim(vit, name, **options)
        moved, made = model(images, schedule=other), slim(vit, name, other, **options)(images)
        assert torch.equal(moved.logits, made.logits), name
        assert {layer: kept.tolist() for layer, kept in moved.kept.items()} == {
            layer: kept.tolist() for layer, kept in made.kept.items()
        }, name


# --- the seam: what attention saw -------------------------------------------------------------------------------


class Probe(Reducer):
    """Changes nothing, keeps what it is shown."""

    def __init__(self, schedule: Schedule, layers: tuple[int, ...], key_bias: Tensor | None = None) -> None:
        super().__init__(schedule)
        self.layers = frozenset(layers)
        self.key_bias = key_bias
        self.calls: list[tuple[str, int]] = []
        self.inputs: dict[int, Tensor] = {}
        self.rows: dict[int, Tensor] = {}

    @property
    def inside_layers(self) -> frozenset[int]:
        return self.layers

    def begin(self, tokens: Tokens) -> Tokens:
        self.calls.append(("begin", 0))
        return tokens.but(key_bias=self.key_bias)

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        self.calls.append(("before", layer))
        self.inputs[layer] = tokens.x
        return tokens

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        self.calls.append(("inside", layer))
        self.rows[layer] = attention.cls_row()
        return tokens

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        self.calls.append(("after", layer))
        return tokens

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        self.calls.append(("logits", 0))
        return super().logits(backbone, tokens)


def dense_schedule(vit: VisionTransformer) -> Schedule:
    return Schedule.dense(vit.patch_embed.num_patches, DEPTH)


def cls_row_by_hand(block: nn.Module, x: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """Attention of token 0 to every token, head by head, image by image: (B, L)."""
    attention = block.attn
    heads, dim = attention.num_heads, attention.head_dim
    rows = []
    for image, normed in enumerate(block.norm1(x)):
        qkv = attention.qkv(normed)  # (L, 3·H·D)
        total = torch.zeros(x.shape[1], dtype=x.dtype)
        for head in range(heads):
            q = attention.q_norm(qkv[0, head * dim : (head + 1) * dim])
            k = attention.k_norm(qkv[:, (heads + head) * dim : (heads + head + 1) * dim])
            h = torch.stack([q.dot(key) for key in k]) / math.sqrt(dim)
            if key_bias is not None:
                h = h + key_bias[image, 0, 0]
            total += h.exp() / h.exp().sum()
        rows.append(total / heads)
    return torch.stack(rows)


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@torch.no_grad()
def test_cls_row_is_the_softmax_of_the_first_query(family, biased):
    vit = tiny_vit(family).double()
    images = images_for(vit, batch=2).double()
    length = vit.num_prefix_tokens + vit.patch_embed.num_patches
    bias = noise(2, 1, 1, length).double() if biased else None
    probe = Probe(dense_schedule(vit), (1, 4), bias)
    SlimViT(vit, probe)(images)
    assert set(probe.rows) == {1, 4}
    for layer, row in probe.rows.items():
        assert row.shape == (2, length)
        torch.testing.assert_close(row.sum(dim=1), torch.ones(2).double(), **CLOSE)
        torch.testing.assert_close(row, cls_row_by_hand(vit.blocks[layer - 1], probe.inputs[layer], bias), **CLOSE)


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_a_block_taken_apart_computes_what_it_computes_whole(family):
    vit = tiny_vit(family)
    images = images_for(vit)
    probe = Probe(dense_schedule(vit), tuple(range(1, DEPTH + 1)))
    assert torch.equal(SlimViT(vit, probe)(images).logits, vit(images))
    assert not any(module._forward_hooks for module in vit.modules())


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_a_key_bias_weighs_alike_in_whole_blocks_and_in_those_taken_apart(family):
    vit = tiny_vit(family)
    images = images_for(vit)
    bias = noise(3, 1, 1, vit.num_prefix_tokens + vit.patch_embed.num_patches)
    whole = SlimViT(vit, Probe(dense_schedule(vit), (), bias))(images).logits
    apart = SlimViT(vit, Probe(dense_schedule(vit), tuple(range(1, DEPTH + 1)), bias))(images).logits
    assert torch.equal(whole, apart)
    assert not torch.allclose(whole, vit(images), rtol=1e-3)


def test_a_block_taken_apart_trains_with_stochastic_depth_as_a_whole_one_does():
    vit = tiny_vit(drop_path_rate=0.5, proj_drop_rate=0.2).train()
    images = images_for(vit)
    results = []
    for layers in ((), tuple(range(1, DEPTH + 1))):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(5)
            results.append(SlimViT(vit, Probe(dense_schedule(vit), layers))(images).logits)
    assert torch.equal(*results)


@torch.no_grad()
def test_seams_are_offered_in_order_and_the_inner_one_only_where_asked_for():
    vit = tiny_vit()
    probe = Probe(dense_schedule(vit), (2, 5))
    scoped: list[str] = []
    probe.register_forward_pre_hook(lambda module, inputs: scoped.append(inputs[0]))
    SlimViT(vit, probe)(images_for(vit))
    expected = [("begin", 0)]
    for layer in range(1, DEPTH + 1):
        inside = [("inside", layer)] if layer in (2, 5) else []
        expected += [("before", layer), *inside, ("after", layer)]
    assert probe.calls == [*expected, ("logits", 0)]
    # Called as a module: that is what puts it into the reducer's scope in a graph.
    words = {"before": "before_block", "inside": "inside_block", "after": "after_block"}
    assert scoped == [*(words.get(seam, seam) for seam, _ in expected), "lives"]


@pytest.mark.parametrize(
    ("family", "options", "block"),
    [("post-norm", {}, "ResPostBlock"), ("plain", {"block_fn": ParallelScalingBlock}, "ParallelScalingBlock")],
)
@torch.no_grad()
def test_the_inner_seam_of_a_block_without_one_is_refused(family, options, block):
    vit = tiny_vit(family, **options)
    with pytest.raises(UnsupportedModelError) as refusal:
        SlimViT(vit, Probe(dense_schedule(vit), (3,)))
    assert refusal.value.message == f"Probe works between attention and MLP, and {block} has no such place"
    tokens = Tokens(x=embed(vit, images_for(vit)), prefix=vit.num_prefix_tokens)
    with pytest.raises(UnsupportedModelError, match=f"^{block} has no place between attention and MLP$"):
        adapted(vit).run_block(3, tokens, lambda tokens, attention: tokens)
    assert [adapted(vit).has_inside(layer) for layer in (1, DEPTH)] == [False, False]
    assert SlimViT(vit, Probe(dense_schedule(vit), ()))(images_for(vit)).logits.shape == (3, 5)


@torch.no_grad()
def test_listing_a_layer_and_not_saying_why_is_an_error():
    class Forgetful(Reducer):
        @property
        def inside_layers(self) -> frozenset[int]:
            return frozenset({2})

    vit = tiny_vit()
    with pytest.raises(NotImplementedError, match="Forgetful lists layer 2 in inside_layers"):
        SlimViT(vit, Forgetful(dense_schedule(vit)))(images_for(vit))
    assert not any(module._forward_hooks for module in vit.modules())


@torch.no_grad()
def test_run_block_without_the_inner_seam_is_the_block_itself(family):
    vit = tiny_vit(family)
    tokens = Tokens(x=embed(vit, images_for(vit)), prefix=vit.num_prefix_tokens)
    for layer in (1, DEPTH):
        assert torch.equal(adapted(vit).run_block(layer, tokens).x, vit.blocks[layer - 1](tokens.x))


# --- the seam: EViT ---------------------------------------------------------------------------------------------
# Here and in the next two, ``keep`` says by drop layer how many tokens go on; what is kept is compared after each drop.


def rows_of(kept: Mapping[int, Tensor], image: int) -> dict[int, list[int]]:
    return {layer: positions[image].tolist() for layer, positions in kept.items()}


def counted(vit: VisionTransformer, keep: Mapping[int, int]) -> Schedule:
    return Schedule.from_counts(vit.patch_embed.num_patches, DEPTH, tuple(keep.values()), tuple(keep))


def evit_by_lists(
    vit: VisionTransformer, image: Tensor, keep: Mapping[int, int]
) -> tuple[Tensor, dict[int, list[int]]]:
    prefix = vit.num_prefix_tokens
    x = embed(vit, image[None])
    names, kept = list(range(x.shape[1] - prefix)), {}
    for layer, block in enumerate(vit.blocks, start=1):
        row = cls_row_by_hand(block, x)[0, prefix:].tolist()
        x = x + block.ls1(block.attn(block.norm1(x)))
        if layer in keep:
            ranking = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            stay, leave = ranking[: keep[layer] - 1], ranking[keep[layer] - 1 :]
            fused = sum(row[index] * x[0, prefix + index] for index in leave)
            x = torch.stack([*x[0, :prefix], *(x[0, prefix + index] for index in stay), fused])[None]
            names = kept[layer] = [*(names[index] for index in stay), -1]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x))[0], kept


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_the_seam_carries_evit(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    keep = {2: 12, 3: 10, 5: 8}
    output = SlimViT(vit, Evit(counted(vit, keep)))(images)
    assert output.lives is None and output.scores is None
    assert output.tokens.shape[1] == vit.num_prefix_tokens + 8
    assert output.survivors is output.kept[5]
    for index, image in enumerate(images):
        expected_logits, expected_kept = evit_by_lists(vit, image, keep)
        torch.testing.assert_close(output.logits[index], expected_logits, **CLOSE)
        assert rows_of(output.kept, index) == expected_kept


# --- the seam: DynamicViT ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_seam_carries_dynamicvit(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    keep = {1: 11, 2: 8, 4: 5}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        reducer = DynamicVit(counted(vit, keep), vit.embed_dim).double()
    model = SlimViT(vit, reducer)
    assert sum(name.startswith("reducer.predictors.") for name in model.state_dict()) == 3 * 8
    output = model(images)
    assert output.lives is None
    for index, image in enumerate(images):
        prefix, x = vit.num_prefix_tokens, embed(vit, image[None])[0]
        front, alive, kept = x[:prefix], dict(enumerate(x[prefix:])), {}
        for layer, block in enumerate(vit.blocks, start=1):
            if layer - 1 in keep:
                patches = torch.stack(list(alive.values()))[None]
                scores = dict(zip(alive, reducer.predictors[str(layer - 1)](patches)[0].tolist(), strict=True))
                ranking = sorted(alive, key=scores.__getitem__, reverse=True)
                kept[layer - 1] = ranking[: keep[layer - 1]]
                alive = {name: alive[name] for name in kept[layer - 1]}
            out = block(torch.cat((front, torch.stack(list(alive.values()))))[None])[0]
            front, alive = out[:prefix], dict(zip(alive, out[prefix:], strict=True))
        expected = torch.cat((front, torch.stack(list(alive.values()))))[None]
        torch.testing.assert_close(output.logits[index], vit.forward_head(vit.norm(expected))[0], **CLOSE)
        assert rows_of(output.kept, index) == kept


# --- the seam: ToMe ---------------------------------------------------------------------------------------------


def vit_and_images_of_twins() -> tuple[VisionTransformer, Tensor]:
    """Patches 2i and 2i + 1 are the same, and no position tells them apart."""
    vit = tiny_vit().double()
    with torch.no_grad():
        vit.pos_embed[:, 2::2] = vit.pos_embed[:, 1:-1:2]
    strips = images_for(vit).double().unflatten(3, (4, 8))  # (B, 3, H, 4, 8)
    strips[:, :, :, 1::2] = strips[:, :, :, 0::2]
    return vit, strips.flatten(3)


def merging(vit: VisionTransformer, merged: int, layers: tuple[int, ...], **options: Any) -> Tome:
    """What is merged in the last block goes on to no other: no schedule speaks of it."""
    patches = vit.patch_embed.num_patches
    keep = {layer: patches - merged * number for number, layer in enumerate(layers, start=1) if layer < DEPTH}
    return Tome(counted(vit, keep), merged, layers, **options)


def tome_by_lists(
    vit: VisionTransformer, image: Tensor, merged: int, layers: tuple[int, ...]
) -> tuple[Tensor, dict[int, list[int]]]:
    """A token is a sum and the patches that are in it."""
    prefix, x = vit.num_prefix_tokens, embed(vit, image[None])[0]
    members: list[list[int]] = [[name] for name in range(-prefix, len(x) - prefix)]
    kept = {}
    for layer, block in enumerate(vit.blocks, start=1):
        sizes = torch.tensor([len(found) for found in members], dtype=x.dtype)
        attention, normed = block.attn, block.norm1(x)
        keys = attention.qkv(normed).view(len(x), 3, attention.num_heads, attention.head_dim)[:, 1]
        keys = attention.k_norm(keys).mean(dim=1)
        x = x + block.ls1(attention(normed[None], attn_mask=sizes.log()[None, None, None]))[0]
        if layer in layers:
            sources, targets = range(prefix, len(x), 2), range(prefix + 1, len(x), 2)
            alike = {(a, b): F.cosine_similarity(keys[a], keys[b], dim=0).item() for a in sources for b in targets}
            best = {a: max(targets, key=lambda b, a=a: alike[a, b]) for a in sources}
            gone = sorted(sources, key=lambda a: alike[a, best[a]], reverse=True)[:merged]
            sums = [len(found) * row for found, row in zip(members, x, strict=True)]
            for a in gone:
                sums[best[a]], members[best[a]] = sums[best[a]] + sums[a], members[best[a]] + members[a]
            order = [*range(prefix), *(a for a in sources if a not in gone), *targets]
            members = [members[place] for place in order]
            x = torch.stack([sums[place] / len(found) for place, found in zip(order, members, strict=True)])
            if layer < DEPTH:
                kept[layer] = [found[0] if len(found) == 1 else -1 for found in members[prefix:]]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x[None]))[0], kept


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_the_seam_carries_tome(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    layers = (1, 3, 4, 6)
    reducer = merging(vit, 2, layers)
    output = SlimViT(vit, reducer)(images)
    assert output.lives is None
    torch.testing.assert_close(reducer.sizes.sum(dim=1), torch.full((3,), reducer.sizes.shape[1] + 8.0).double())
    for index, image in enumerate(images):
        expected_logits, expected_kept = tome_by_lists(vit, image, 2, layers)
        torch.testing.assert_close(output.logits[index], expected_logits, **CLOSE)
        assert rows_of(output.kept, index) == expected_kept


@pytest.mark.parametrize("layers", [(1,), (3,), (6,)])
@torch.no_grad()
def test_the_seam_carries_tome_merging_twins_changes_nothing(layers):
    vit, images = vit_and_images_of_twins()
    x = embed(vit, images)
    assert torch.equal(x[:, 1::2], x[:, 2::2])
    reducer = merging(vit, 8, layers)
    output = SlimViT(vit, reducer)(images)
    assert reducer.sizes.tolist() == [[1.0] + [2.0] * 8] * 3
    assert {layer: kept.tolist() for layer, kept in output.kept.items()} == {
        layer: [[-1] * 8] * 3 for layer in layers if layer < DEPTH
    }
    torch.testing.assert_close(output.logits, vit(images), **CLOSE)


@torch.no_grad()
def test_the_seam_carries_tome_and_without_its_sizes_the_answer_is_another():
    vit, images = vit_and_images_of_twins()
    output = SlimViT(vit, merging(vit, 8, (1,), weigh=False))(images)
    assert not torch.allclose(output.logits, vit(images), rtol=1e-3, atol=1e-3)


# --- the seam: parking, and classes from something else than CLS ------------------------------------------------


class Parking(Reducer):
    """The second half of the patches waits from after layer 2 until after layer 4; classes from the patches' mean."""

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer == 2:
            half = tokens.first(tokens.patches // 2)
            return half.but(carry={"parked": tokens.x[:, half.x.shape[1] :]})
        if layer == 4:
            return tokens.but(x=torch.cat((tokens.x, tokens.carry["parked"]), dim=1), carry={})
        return tokens

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        return backbone.model.head(backbone.final_norm(tokens.x[:, tokens.prefix :].mean(dim=1)))


@torch.no_grad()
def test_the_seam_carries_parked_tokens_and_another_head():
    vit = tiny_vit()
    images = images_for(vit)
    x = embed(vit, images)
    for block in vit.blocks[:2]:
        x = block(x)
    x, parked = x[:, :9], x[:, 9:]
    for block in vit.blocks[2:4]:
        x = block(x)
    x = torch.cat((x, parked), dim=1)
    for block in vit.blocks[4:]:
        x = block(x)
    expected = vit.head(vit.norm(x[:, 1:].mean(dim=1)))
    torch.testing.assert_close(SlimViT(vit, Parking(dense_schedule(vit)))(images).logits, expected)
