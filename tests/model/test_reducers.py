"""Reducers and their seam: the life predictor by hand, and three methods of other people that fit in between."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model.reducers import BlockAttention, LifePredictor, Reducer, Tokens, build_reducer, lives, run_block
from lifedeploy.model.reducers.base import gather_tokens
from lifedeploy.model.reducers.first_k import FirstKReducer
from lifedeploy.model.reducers.life import RelaxedLife, TakeOrdered
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import GRAPHS, METHODS
from tests.model.conftest import DEPTH, PRE_NORM, embed, images_for, scores_by_hand, slim, tiny_vit

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


# --- ordering and gathering -------------------------------------------------------------------------------------


def test_gather_tokens_is_indexing_image_by_image():
    x, index = noise(3, 7, 4), torch.tensor([[6, 0], [1, 1], [3, 5]])
    expected = torch.stack([x[image, index[image]] for image in range(3)])
    assert torch.equal(gather_tokens(x, index), expected)


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_take_ordered_keeps_the_prefix_then_the_best_in_order(prefix):
    x, scores = noise(3, prefix + 9, 4), noise(3, 9, seed=1)
    taken, values, index = TakeOrdered(4, prefix)(x, scores)
    for image in range(3):
        best = sorted(range(9), key=scores[image].tolist().__getitem__, reverse=True)[:4]
        assert index[image].tolist() == best
        assert torch.equal(values[image], scores[image, best])
        assert torch.equal(taken[image], x[image, [*range(prefix), *(prefix + patch for patch in best)]])


def test_per_stage_orders_at_every_drop_and_order_once_only_at_the_first():
    once = build_reducer("life", SCHEDULE, 24, 1)
    staged = build_reducer("life", SCHEDULE, 24, 1, graph="per-stage")
    assert (list(once.order), list(once.keep)) == (["2"], ["3", "5"])
    assert (list(staged.order), list(staged.keep)) == (["2", "3", "5"], [])


# --- the soft mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [1, 2, 5])
@torch.no_grad()
def test_the_soft_mask_is_the_log_of_beta_on_patches_and_never_on_the_prefix(prefix):
    temperature = 1.5
    reducer = RelaxedLife(SCHEDULE, LifePredictor(24), temperature)
    tokens = Tokens(noise(3, prefix + 16, 24), prefix)
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
    tokens = reducer.after_block(2, Tokens(noise(1, 17, 24), 1))
    weights = torch.stack([reducer.before_block(t, tokens).key_bias[0, 0, 0, 1:] for t in (3, 4, 5, 6)])
    assert (weights.diff(dim=0) < 0).all()
    assert torch.equal(weights[0].argsort(), tokens.scores[0].argsort())


@torch.no_grad()
def test_a_life_far_past_or_far_ahead_gives_a_finite_mask():
    reducer = RelaxedLife(SCHEDULE, LifePredictor(24), 1e6)
    tokens = reducer.after_block(2, Tokens(noise(1, 17, 24), 1))
    bias = reducer.before_block(6, tokens).key_bias
    assert bias.isfinite().all() and bias.min() < -1e5 and bias.max() == 0


# --- the table of methods ---------------------------------------------------------------------------------------


def test_every_method_of_the_spec_can_be_built():
    for method in METHODS:
        for graph in GRAPHS:
            assert build_reducer(method, SCHEDULE, 24, 1, graph=graph).method == method


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(UsageError) as refusal:
        build_reducer("evit", SCHEDULE, 24, 1)
    assert refusal.value.message == "method 'evit' is unknown; there are: dense, first-k, life"


def test_an_unknown_graph_form_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=re.escape("graph 'twice' is unknown; there are: order-once, per-stage")):
        build_reducer("life", SCHEDULE, 24, 1, graph="twice")


# --- the seam: what attention saw -------------------------------------------------------------------------------


class Probe(Reducer):
    """Changes nothing, keeps what it is shown."""

    method = "probe"

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

    def logits(self, vit: VisionTransformer, tokens: Tokens) -> Tensor:
        self.calls.append(("logits", 0))
        return super().logits(vit, tokens)


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
    SlimViT(vit, probe)(images_for(vit))
    expected = [("begin", 0)]
    for layer in range(1, DEPTH + 1):
        inside = [("inside", layer)] if layer in (2, 5) else []
        expected += [("before", layer), *inside, ("after", layer)]
    assert probe.calls == [*expected, ("logits", 0)]


@pytest.mark.parametrize(
    ("family", "options", "block"),
    [("post-norm", {}, "ResPostBlock"), ("plain", {"block_fn": ParallelScalingBlock}, "ParallelScalingBlock")],
)
@torch.no_grad()
def test_the_inner_seam_of_a_block_without_one_is_refused(family, options, block):
    vit = tiny_vit(family, **options)
    model = SlimViT(vit, Probe(dense_schedule(vit), (3,)))
    with pytest.raises(UnsupportedModelError) as refusal:
        model(images_for(vit))
    assert refusal.value.message == f"method probe works between attention and MLP, and {block} has no such place"


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
    tokens = Tokens(embed(vit, images_for(vit)), vit.num_prefix_tokens)
    reducer = FirstKReducer(dense_schedule(vit), vit.num_prefix_tokens)
    assert torch.equal(run_block(vit.blocks[0], 1, tokens, reducer).x, vit.blocks[0](tokens.x))


# --- the seam: EViT ---------------------------------------------------------------------------------------------


class Evit(Reducer):
    """Between attention and MLP keep what CLS attends to, and fuse the rest, weighted as attended to."""

    method = "evit"

    def __init__(self, schedule: Schedule, keep: dict[int, int]) -> None:
        super().__init__(schedule)
        self.keep = keep  # layer → patches kept, the fused one not counted

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(self.keep)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        scores = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        patches = tokens.x[:, tokens.prefix :]
        best = scores.topk(self.keep[layer], dim=1)
        kept = gather_tokens(patches, best.indices)
        # What is dropped is all less what is kept: no complement of the indices is needed.
        fused = scores.unsqueeze(1) @ patches - best.values.unsqueeze(1) @ kept  # (B, 1, C)
        positions = best.indices if tokens.positions is None else tokens.positions.gather(1, best.indices)
        return tokens.but(
            x=torch.cat((tokens.x[:, : tokens.prefix], kept, fused), dim=1),
            positions=F.pad(positions, (0, 1), value=-1),
        )


def evit_by_lists(vit: VisionTransformer, image: Tensor, keep: dict[int, int]) -> tuple[Tensor, list[int]]:
    prefix = vit.num_prefix_tokens
    x = embed(vit, image[None])
    names = list(range(x.shape[1] - prefix))
    for layer, block in enumerate(vit.blocks, start=1):
        row = cls_row_by_hand(block, x)[0, prefix:].tolist()
        x = x + block.ls1(block.attn(block.norm1(x)))
        if layer in keep:
            ranking = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            stay, leave = ranking[: keep[layer]], ranking[keep[layer] :]
            fused = sum(row[index] * x[0, prefix + index] for index in leave)
            x = torch.stack([*x[0, :prefix], *(x[0, prefix + index] for index in stay), fused])[None]
            names = [*(names[index] for index in stay), -1]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return vit.forward_head(vit.norm(x))[0], names


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_the_seam_carries_evit(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    keep = {2: 11, 3: 9, 5: 7}
    output = SlimViT(vit, Evit(dense_schedule(vit), keep))(images)
    assert output.kept.shape == (3, 8)
    for image, logits, kept in zip(images, output.logits, output.kept, strict=True):
        expected_logits, expected_kept = evit_by_lists(vit, image, keep)
        torch.testing.assert_close(logits, expected_logits, **CLOSE)
        assert kept.tolist() == expected_kept


# --- the seam: DynamicViT ---------------------------------------------------------------------------------------


class KeepScore(nn.Module):
    """DynamicViT's predictor: half of the channels local, half averaged over the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.decide = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 2))

    def forward(self, patches: Tensor) -> Tensor:
        local, whole = self.embed(patches).chunk(2, dim=-1)
        logits = self.decide(torch.cat((local, whole.mean(dim=1, keepdim=True).expand_as(whole)), dim=-1))
        return logits[..., 0] - logits[..., 1]  # (B, n)


class DynamicVit(Reducer):
    """Score the survivors before some blocks, each with a predictor of its own."""

    method = "dynamicvit"

    def __init__(self, schedule: Schedule, dim: int, keep: dict[int, int]) -> None:
        super().__init__(schedule)
        self.keep = keep
        self.predictors = nn.ModuleDict({str(layer): KeepScore(dim) for layer in keep})

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer not in self.keep:
            return tokens
        patches = tokens.x[:, tokens.prefix :]
        index = self.predictors[str(layer)](patches).topk(self.keep[layer], dim=1).indices
        kept = gather_tokens(patches, index)
        positions = index if tokens.positions is None else tokens.positions.gather(1, index)
        return tokens.but(x=torch.cat((tokens.x[:, : tokens.prefix], kept), dim=1), positions=positions)


@torch.no_grad()
def test_the_seam_carries_dynamicvit(family):
    vit = tiny_vit(family).double()
    images = images_for(vit).double()
    keep = {2: 11, 3: 8, 5: 5}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        reducer = DynamicVit(dense_schedule(vit), vit.embed_dim, keep).double()
    model = SlimViT(vit, reducer)
    assert sum(name.startswith("reducer.predictors.") for name in model.state_dict()) == 3 * 8
    output = model(images)
    for image, logits, kept in zip(images, output.logits, output.kept, strict=True):
        prefix, x = vit.num_prefix_tokens, embed(vit, image[None])[0]
        front, alive = x[:prefix], dict(enumerate(x[prefix:]))
        for layer, block in enumerate(vit.blocks, start=1):
            if layer in keep:
                patches = torch.stack(list(alive.values()))[None]
                scores = dict(zip(alive, reducer.predictors[str(layer)](patches)[0].tolist(), strict=True))
                while len(alive) > keep[layer]:
                    del alive[min(alive, key=scores.__getitem__)]
            out = block(torch.cat((front, torch.stack(list(alive.values()))))[None])[0]
            front, alive = out[:prefix], dict(zip(alive, out[prefix:], strict=True))
        expected = torch.cat((front, torch.stack(list(alive.values()))))[None]
        torch.testing.assert_close(logits, vit.forward_head(vit.norm(expected))[0], **CLOSE)
        assert set(kept.tolist()) == set(alive)


# --- the seam: ToMe ---------------------------------------------------------------------------------------------


class Tome(Reducer):
    """Merge the ``merged`` most alike pairs between attention and MLP; sizes weigh the keys of later attention."""

    method = "tome"

    def __init__(self, schedule: Schedule, merged: int, layers: tuple[int, ...], *, weigh: bool = True) -> None:
        super().__init__(schedule)
        self.merged = merged
        self.layers = frozenset(layers)
        self.weigh = weigh
        self.sizes: Tensor | None = None

    @property
    def inside_layers(self) -> frozenset[int]:
        return self.layers

    def begin(self, tokens: Tokens) -> Tokens:
        return tokens.but(carry={"size": torch.ones_like(tokens.x[..., 0])})

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        metric = F.normalize(attention.k.mean(dim=1), dim=-1)[:, tokens.prefix :]
        alike = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)  # (B, n/2, n/2)
        value, partner = alike.max(dim=-1)
        order = value.argsort(dim=1, descending=True)
        leave, stay = order[:, : self.merged], order[:, self.merged :].sort(dim=1).values
        into = F.one_hot(partner.gather(1, leave), alike.shape[2]).to(metric.dtype).transpose(1, 2)  # (B, n/2, r)

        def merge(values: Tensor) -> Tensor:
            front, patches = values[:, : tokens.prefix], values[:, tokens.prefix :]
            sources, targets = patches[:, 0::2], patches[:, 1::2]
            targets = targets + into @ gather_tokens(sources, leave)
            return torch.cat((front, gather_tokens(sources, stay), targets), dim=1)

        size = tokens.carry["size"].unsqueeze(-1)
        total = merge(size)
        x = merge(tokens.x * size) / total
        self.sizes = total.squeeze(-1)
        bias = self.sizes.log()[:, None, None, :] if self.weigh else None
        return tokens.but(x=x, key_bias=bias, carry={"size": self.sizes})


def vit_and_images_of_twins() -> tuple[VisionTransformer, Tensor]:
    """Patches 2i and 2i + 1 are the same, and no position tells them apart."""
    vit = tiny_vit().double()
    with torch.no_grad():
        vit.pos_embed[:, 2::2] = vit.pos_embed[:, 1:-1:2]
    strips = images_for(vit).double().unflatten(3, (4, 8))  # (B, 3, H, 4, 8)
    strips[:, :, :, 1::2] = strips[:, :, :, 0::2]
    return vit, strips.flatten(3)


@pytest.mark.parametrize("layers", [(1,), (3,), (6,)])
@torch.no_grad()
def test_the_seam_carries_tome_merging_twins_changes_nothing(layers):
    vit, images = vit_and_images_of_twins()
    x = embed(vit, images)
    assert torch.equal(x[:, 1::2], x[:, 2::2])
    reducer = Tome(dense_schedule(vit), 8, layers)
    output = SlimViT(vit, reducer)(images)
    assert reducer.sizes.tolist() == [[1.0] + [2.0] * 8] * 3
    torch.testing.assert_close(output.logits, vit(images), **CLOSE)


@torch.no_grad()
def test_the_seam_carries_tome_and_without_its_sizes_the_answer_is_another():
    vit, images = vit_and_images_of_twins()
    output = SlimViT(vit, Tome(dense_schedule(vit), 8, (1,), weigh=False))(images)
    assert not torch.allclose(output.logits, vit(images), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_seam_carries_tome_through_block_after_block():
    vit = tiny_vit("qk-norm").double()
    reducer = Tome(dense_schedule(vit), 2, (1, 2, 3, 4, 5))
    images = images_for(vit).double()
    output = SlimViT(vit, reducer)(images)
    assert reducer.sizes.shape == (3, 1 + 16 - 5 * 2)
    torch.testing.assert_close(reducer.sizes.sum(dim=1), torch.full((3,), 17.0).double(), **CLOSE)
    assert (reducer.sizes[:, 0] == 1).all()
    assert output.logits.isfinite().all()
    assert not torch.allclose(output.logits, vit(images), rtol=1e-3)


# --- the seam: parking, and classes from something else than CLS ------------------------------------------------


class Parking(Reducer):
    """The second half of the patches waits from after layer 2 until after layer 4; classes from the patches' mean."""

    method = "parking"

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer == 2:
            cut = tokens.prefix + tokens.patches // 2
            return tokens.but(x=tokens.x[:, :cut], carry={"parked": tokens.x[:, cut:]})
        if layer == 4:
            return tokens.but(x=torch.cat((tokens.x, tokens.carry["parked"]), dim=1), carry={})
        return tokens

    def logits(self, vit: VisionTransformer, tokens: Tokens) -> Tensor:
        return vit.head(vit.norm(tokens.x[:, tokens.prefix :].mean(dim=1)))


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


# --- tokens -----------------------------------------------------------------------------------------------------


def test_tokens_are_changed_by_copy():
    tokens = Tokens(noise(1, 5, 2), prefix=2)
    shorter = tokens.but(x=tokens.x[:, :4])
    assert (tokens.patches, shorter.patches, shorter.prefix) == (3, 2, 2)
    with pytest.raises(AttributeError):
        tokens.prefix = 1  # type: ignore[misc]
