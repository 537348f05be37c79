"""ToMe against a walk over lists of tokens, each of which knows its patches, in double precision."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.reducers import BlockAttention, Tokens
from lifedeploy.model.reducers.tome import SEED, SIZE
from lifedeploy.schedule import Schedule
from tests.model.conftest import DEPTH, PRE_NORM, embed, images_for, slim, tiny_vit

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
FAMILY = {1: "plain", 2: "distilled", 5: "registers"}  # prefix tokens → family
TOME = methods.get("tome")


def scheduled(r: str, patches: int = 16, depth: int = DEPTH) -> Schedule:
    return TOME.make_schedule(patches, depth, options={"r": r})


def over_repeated(block: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    """Attention with its residual over a list in which every token stands as often as it has patches: (L, C)."""
    rows = [place for place, size in enumerate(sizes) for _ in range(size)]
    attended = block.ls1(block.attn(block.norm1(x[rows])[None]))[0]
    return x + torch.stack([attended[rows.index(place)] for place in range(len(sizes))])


def mean_keys(block: nn.Module, x: Tensor) -> Tensor:
    """The keys of the tokens, mean over heads, of length 1: (L, D)."""
    attention = block.attn
    rows = attention.qkv(block.norm1(x)).reshape(len(x), 3, attention.num_heads, attention.head_dim)
    keys = attention.k_norm(rows[:, 1]).mean(dim=1)
    return keys / (keys * keys).sum(dim=1, keepdim=True).sqrt()


class Walk:
    """One image through all layers. ``members``: of each patch token the patches in it, by the one it is called by."""

    def __init__(self, vit: VisionTransformer, image: Tensor, merged: Mapping[int, int]) -> None:
        x, self.prefix = embed(vit, image[None])[0], vit.num_prefix_tokens
        self.members = {patch: {patch} for patch in range(len(x) - self.prefix)}
        self.kept: dict[int, list[int]] = {}
        for layer, block in enumerate(vit.blocks, start=1):
            keys = mean_keys(block, x)
            x = over_repeated(block, x, [1] * self.prefix + [len(patches) for patches in self.members.values()])
            if merged.get(layer):
                x = self.merge(x, keys, merged[layer])
                self.kept[layer] = [name if len(patches) == 1 else -1 for name, patches in self.members.items()]
            x = x + block.ls2(block.mlp(block.norm2(x)))
        self.logits, self.tokens = vit.forward_head(vit.norm(x[None]))[0], x

    def merge(self, x: Tensor, keys: Tensor, merged: int) -> Tensor:
        """Tokens at even places, counted from the first of all, are sources, those at odd ones targets; patches alone
        take part."""
        names = dict(enumerate(self.members, start=self.prefix))  # place → name
        sources, targets = ([place for place in names if place % 2 == odd] for odd in (0, 1))
        best = {a: max(targets, key=lambda b: float(keys[a] @ keys[b])) for a in sources}
        ranked = sorted(sources, key=lambda a: -float(keys[a] @ keys[best[a]]))
        gone, stay = ranked[:merged], sorted(ranked[merged:])
        places = [*range(self.prefix), *stay, *targets]
        total = {b: len(self.members[names[b]]) * x[b] for b in targets}
        together = {b: set(self.members[names[b]]) for b in targets}
        for a in gone:
            total[best[a]] = total[best[a]] + len(self.members[names[a]]) * x[a]
            together[best[a]] |= self.members[names[a]]
        rows = [total[place] / len(together[place]) if place in total else x[place] for place in places]
        self.members = {names[a]: self.members[names[a]] for a in stay} | {names[b]: together[b] for b in targets}
        return torch.stack(rows)

    def groups(self) -> list[int]:
        called = {patch: name for name, patches in self.members.items() for patch in patches}
        return [called[patch] for patch in sorted(called)]


# Two a layer, evenly; other numbers in other layers; half of all as long as there are two; in one layer alone.
@pytest.mark.parametrize("r", ["2", "1", "5,0,3,1,0,2", "8,4,2,1", "7", "0,0,6"])
@pytest.mark.parametrize("family", FAMILY.values())
@torch.no_grad()
def test_tokens_that_are_most_alike_are_merged(family, r):
    schedule = scheduled(r if r != "7" else "7,0,4")
    require_same(tiny_vit(family), schedule)


@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
@torch.no_grad()
def test_they_are_merged_in_every_kind_of_backbone(family):
    vit = tiny_vit(family)
    require_same(vit, scheduled("2", vit.patch_embed.num_patches))


@pytest.mark.parametrize("patches", [(3, 5), (1, 7), (3, 3)])
@pytest.mark.parametrize("family", FAMILY.values())
@torch.no_grad()
def test_an_odd_number_of_tokens_is_dealt_too(family, patches):
    vit = tiny_vit(family, img_size=(8 * patches[0], 8 * patches[1]))
    require_same(vit, scheduled("3,1,1", patches[0] * patches[1]))


def require_same(vit: VisionTransformer, schedule: Schedule) -> None:
    """Make sure that each image has the logits, tokens, kept tokens and groups of the walk by hand."""
    vit = vit.double()
    images = images_for(vit, batch=4).double()
    output = slim(vit, "tome", schedule)(images)
    merged = {layer: schedule.tokens[layer - 1] - schedule.after(layer) for layer in schedule.drop_layers}
    assert output.lives is output.scores is None
    for number, image in enumerate(images):
        walk = Walk(vit, image, merged)
        torch.testing.assert_close(output.logits[number], walk.logits, **CLOSE)
        torch.testing.assert_close(output.tokens[number], walk.tokens, **CLOSE)
        kept = {layer: rows[number].tolist() for layer, rows in output.kept.items()}
        assert {layer: kept[layer] for layer in walk.kept} == walk.kept
        assert all(kept[layer] == kept[layer - 1] for layer in kept.keys() - walk.kept.keys())
        assert output.groups[number].tolist() == walk.groups()


@torch.no_grad()
def test_tokens_that_stand_for_many_patches_are_merged_again():
    """The walk above sees sources and targets of more than one patch, and several sources of one target."""
    vit = tiny_vit().double()
    sizes = [
        len(patches)
        for image in images_for(vit, batch=4).double()
        for patches in Walk(vit, image, {1: 5, 2: 4, 3: 3}).members.values()
    ]
    assert max(sizes) > 4 and len(set(sizes)) > 3


@torch.no_grad()
def test_layers_in_which_nothing_is_merged_are_those_of_the_backbone():
    vit = tiny_vit()
    images = images_for(vit)
    model = slim(vit, "tome", scheduled("0"))
    output = model(images)
    assert torch.equal(output.logits, vit(images))
    assert (output.kept, output.groups, model.reducer.inside_layers) == ({}, None, frozenset())
    assert not list(model.reducer.parameters())


# --- attention by sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["plain", "registers", "qk-norm"], indirect=True)
@torch.no_grad()
def test_the_logarithm_of_a_size_makes_a_key_count_as_often(family):
    vit = tiny_vit(family).double()
    block, prefix = vit.blocks[1], vit.num_prefix_tokens
    x = torch.randn(prefix + 4, 24, generator=torch.Generator().manual_seed(3)).double()
    sizes = [1] * prefix + [1, 4, 2, 9]
    bias = torch.tensor(sizes, dtype=torch.float64).log()[None, None, None]
    attended = x + block.ls1(block.attn(block.norm1(x[None]), attn_mask=bias))[0]
    torch.testing.assert_close(attended, over_repeated(block, x, sizes), **CLOSE)
    assert not torch.allclose(attended, over_repeated(block, x, [1] * len(sizes)), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_without_it_the_answer_is_another_one(monkeypatch):
    vit, schedule = tiny_vit().double(), scheduled("2")
    images = images_for(vit).double()
    model = slim(vit, "tome", schedule)
    answer, inside = model(images).logits, model.reducer.inside_block
    monkeypatch.setattr(model.reducer, "inside_block", lambda *given: inside(*given).but(key_bias=None))
    assert not torch.allclose(model(images).logits, answer, rtol=1e-4, atol=1e-4)


# --- what is left as it was -------------------------------------------------------------------------------------


@st.composite
def merging(draw: st.DrawFn) -> list[int]:
    """Patch tokens before and after each of some layers: of each count at most half is merged."""
    counts = [draw(st.integers(2, 40))]
    for _ in range(draw(st.integers(1, 5))):
        counts.append(counts[-1] - draw(st.integers(0, counts[-1] // 2)))
    return counts


@settings(max_examples=100, deadline=None)
@given(counts=merging(), prefix=st.sampled_from([1, 2, 5]), seed=st.integers(0, 2**20), alike=st.booleans())
@torch.no_grad()
def test_no_patch_is_lost_and_no_sum_changes(counts, prefix, seed, alike):
    """Whatever the keys are, also where all of them are the same."""
    depth = len(counts) - 1
    schedule = Schedule.from_counts(counts[0], depth, counts[1:], range(1, depth + 1))
    reducer = slim(tiny_vit(FAMILY[prefix]), "tome", schedule).reducer
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, prefix + counts[0], 24, generator=generator).double()
    tokens = Tokens(x=x, prefix=prefix)
    for layer in schedule.leaving_layers:
        k = torch.randn(2, 3, tokens.x.shape[1], 8, generator=generator).double()
        k = torch.ones_like(k) if alike else k
        tokens = reducer.inside_block(layer, tokens, BlockAttention(q=k, k=k, scale=0.3, key_bias=tokens.key_bias))
        assert tokens.parked is None
        assert tokens.patches == schedule.after(layer)
    if not schedule.prunes:
        return
    sizes = tokens.beside[SIZE]
    assert sizes.sum(dim=1).tolist() == [prefix + counts[0]] * 2
    torch.testing.assert_close((sizes[..., None] * tokens.x).sum(dim=1), x.sum(dim=1), **CLOSE)
    torch.testing.assert_close(tokens.key_bias[:, 0, 0].exp(), sizes, **CLOSE)
    assert torch.equal(tokens.x[:, :prefix], x[:, :prefix]) and (sizes[:, :prefix] == 1).all()
    for image in range(2):
        names, groups = tokens.beside[SEED][image, prefix:].tolist(), tokens.groups[image]
        assert len(set(names)) == len(names)
        alone = [name if size == 1 else -1 for name, size in zip(names, sizes[image, prefix:], strict=True)]
        assert tokens.positions[image].tolist() == alone  # of a token of several, no patch is named
        for place, name in enumerate(names, start=prefix):
            members = (groups == name).nonzero().flatten()
            assert name in members.tolist()
            assert len(members) == sizes[image, place]
            torch.testing.assert_close(tokens.x[image, place], x[image, prefix + members].mean(dim=0), **CLOSE)


def test_a_backbone_without_a_place_between_attention_and_mlp_is_refused():
    with pytest.raises(UnsupportedModelError, match="works between attention and MLP"):
        slim(tiny_vit("post-norm"), "tome", scheduled("2"))
