"""The slimmable ViT against timm itself and against slow references that keep explicit lists of token indices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, PreprocessSpec, Provenance
from tests.model.conftest import (
    DEPTH,
    DROPS,
    FAMILIES,
    PRE_NORM,
    embed,
    images_for,
    schedule_for,
    scores_by_hand,
    slim,
    tiny_vit,
)

ORDERINGS = ("order-once", "per-stage")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-10}  # in double precision


@contextmanager
def block_io(vit: VisionTransformer) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of every block that runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach())))
        for block in vit.blocks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


Kept = dict[int, list[int]]  # drop layer → what of one image goes on, in order


def by_lists(model: SlimViT, image: Tensor) -> tuple[Tensor, Kept]:
    """The hard forward of one image: tokens in a dict under their original index, dropped one by one."""
    vit, schedule = model.backbone, model.schedule
    prefix, patches = vit.num_prefix_tokens, schedule.patches
    rows = list(embed(vit, image[None])[0])
    front, alive = rows[:prefix], dict(enumerate(rows[prefix:]))
    assert len(alive) == patches
    importance: list[float] = []
    kept: Kept = {}
    for layer, block in enumerate(vit.blocks, start=1):
        out = list(block(torch.stack([*front, *alive.values()])[None])[0])
        front, alive = out[:prefix], dict(zip(alive, out[prefix:], strict=True))
        if layer == schedule.drop_layers[0]:
            importance = scores_by_hand(model, torch.stack(out)[None])[0].tolist()
        if layer in schedule.drop_layers:
            while len(alive) > schedule.tokens[layer]:
                del alive[min(alive, key=importance.__getitem__)]
            kept[layer] = sorted(alive, key=importance.__getitem__, reverse=True)
    x = torch.stack([*front, *alive.values()])[None]
    return vit.forward_head(vit.norm(x))[0], kept


def require_by_lists(model: SlimViT, images: Tensor) -> None:
    """Make sure that each image gets the logits, and keeps the tokens after every drop, that lists give."""
    output = model(images)
    for index, image in enumerate(images):
        expected_logits, expected_kept = by_lists(model, image)
        assert {layer: kept[index].tolist() for layer, kept in output.kept.items()} == expected_kept
        torch.testing.assert_close(output.logits[index], expected_logits, **EXACT)
    assert output.survivors is output.kept[model.schedule.drop_layers[-1]]


# --- the unpruned model -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_dense_is_timms_own_forward_exactly(family):
    vit = tiny_vit(family)
    images = images_for(vit)
    output = slim(vit, "dense", Schedule.dense(vit.patch_embed.num_patches, DEPTH))(images)
    assert torch.equal(output.logits, vit(images))
    assert output.lives is None and output.scores is None
    assert output.kept == {} and output.survivors is None


@torch.no_grad()
def test_a_keep_rate_of_one_is_dense_exactly(family):
    vit = tiny_vit(family)
    images = images_for(vit)
    dense = vit(images)
    schedule = Schedule.from_keep_rate(vit.patch_embed.num_patches, DEPTH, 1.0, DROPS)
    for method, ordering in (("life", "order-once"), ("life", "per-stage"), ("first-k", "order-once")):
        assert torch.equal(slim(vit, method, schedule, ordering=ordering)(images).logits, dense), (method, ordering)


@torch.no_grad()
def test_a_schedule_without_drop_layers_is_dense_and_predicts_nothing():
    vit = tiny_vit()
    images = images_for(vit)
    model = slim(vit, "life", Schedule.dense(16, DEPTH))
    for output in (model(images), model(images, soft=True)):
        assert torch.equal(output.logits, vit(images))
        assert output.lives is None


# --- the hard forward -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_hard_forward_equals_dropping_tokens_one_by_one(family, ordering):
    model = slim(tiny_vit(family), ordering=ordering).double()
    require_by_lists(model, images_for(model.backbone).double())


@torch.no_grad()
def test_order_once_and_per_stage_are_identical(family):
    vit = tiny_vit(family)
    images = images_for(vit, batch=5)
    once, staged = (slim(vit, ordering=ordering)(images) for ordering in ORDERINGS)
    assert torch.equal(once.logits, staged.logits)
    assert once.kept.keys() == staged.kept.keys() == set(DROPS)
    assert all(torch.equal(once.kept[layer], staged.kept[layer]) for layer in DROPS)
    assert torch.equal(once.lives, staged.lives)


@torch.no_grad()
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_the_patches_of_longest_life_are_kept_in_descending_order(family, ordering):
    model = slim(tiny_vit(family), ordering=ordering)
    output = model(images_for(model.backbone))
    assert output.lives.shape == output.scores.shape == (3, model.schedule.patches)
    assert {layer: kept.shape for layer, kept in output.kept.items()} == {
        layer: (3, model.schedule.after(layer)) for layer in DROPS
    }
    for life, kept in zip(output.lives.tolist(), output.survivors.tolist(), strict=True):
        assert kept == sorted(range(len(life)), key=life.__getitem__, reverse=True)[: len(kept)]


@torch.no_grad()
def test_another_image_keeps_other_patches():
    model = slim(tiny_vit())
    kept = model(images_for(model.backbone, batch=8)).survivors
    assert len({frozenset(row) for row in kept.tolist()}) > 1


@torch.no_grad()
def test_first_k_keeps_the_first_positions(family):
    model = slim(tiny_vit(family), "first-k")
    output = model(images_for(model.backbone))
    assert {layer: kept.tolist() for layer, kept in output.kept.items()} == {
        layer: [list(range(model.schedule.after(layer)))] * 3 for layer in DROPS
    }
    assert output.lives is None and output.scores is None


@torch.no_grad()
def test_first_k_equals_cutting_by_hand(family):
    model = slim(tiny_vit(family), "first-k")
    vit, prefix = model.backbone, model.backbone.num_prefix_tokens
    images = images_for(vit)
    x = embed(vit, images)
    for tokens, block in zip(model.schedule.tokens, vit.blocks, strict=True):
        x = block(x[:, : prefix + tokens])
    torch.testing.assert_close(model(images).logits, vit.forward_head(vit.norm(x)), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
def test_first_k_inside_equals_cutting_by_hand_between_attention_and_mlp(family):
    model = slim(tiny_vit(family), "first-k", inside=True)
    vit, prefix = model.backbone, model.backbone.num_prefix_tokens
    images = images_for(vit)
    x = embed(vit, images)
    for layer, block in enumerate(vit.blocks, start=1):
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = x[:, : prefix + model.schedule.after(layer)]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    output = model(images)
    torch.testing.assert_close(output.logits, vit.forward_head(vit.norm(x)), **CLOSE)
    assert {layer: kept.tolist() for layer, kept in output.kept.items()} == {
        layer: [list(range(model.schedule.after(layer)))] * 3 for layer in DROPS
    }


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "ordering"), [("life", "order-once"), ("life", "per-stage"), ("first-k", "order-once")]
)
def test_every_layer_has_its_tokens_and_the_prefix_goes_on_untouched(family, method, ordering):
    model = slim(tiny_vit(family), method, ordering=ordering)
    prefix = FAMILIES[family][2]
    assert model.backbone.num_prefix_tokens == prefix
    with block_io(model.backbone) as seen:
        model(images_for(model.backbone))
    assert tuple(x.shape[1] - prefix for x, _ in seen) == model.schedule.tokens
    for (_, before), (after, _) in pairwise(seen):
        assert torch.equal(after[:, :prefix], before[:, :prefix])
        # Survivors are among the tokens that were there, each once.
        for left, right in zip(before[:, prefix:], after[:, prefix:], strict=True):
            same = (right[:, None] == left[None]).all(-1)
            assert (same.sum(dim=1) == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize(
    "counts", [(16, 8, 8), (8, 8, 8), (16, 16, 1), (1, 1, 1)], ids=lambda counts: ".".join(map(str, counts))
)
def test_schedules_with_drop_layers_that_drop_nothing(counts, ordering):
    vit = tiny_vit()
    model = slim(vit, schedule=Schedule.from_counts(16, DEPTH, counts, DROPS), ordering=ordering).double()
    require_by_lists(model, images_for(vit).double())


@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_in_its_batch(family):
    model = slim(tiny_vit(family)).double()
    images = images_for(model.backbone, batch=4).double()
    together = model(images)
    for index in range(4):
        alone = model(images[index : index + 1])
        assert all(torch.equal(alone.kept[layer][0], together.kept[layer][index]) for layer in DROPS)
        torch.testing.assert_close(alone.logits[0], together.logits[index], **EXACT)


@torch.no_grad()
def test_life_has_the_mean_and_deviation_of_the_schedule(family):
    model = slim(tiny_vit(family))
    for output in (model(images_for(model.backbone)), model(images_for(model.backbone), soft=True)):
        mean, deviation = output.lives.mean(dim=1), output.lives.std(dim=1, correction=0)
        assert mean.tolist() == pytest.approx([model.schedule.mean_life] * 3, abs=1e-4)
        assert deviation.tolist() == pytest.approx([model.schedule.std_life] * 3, abs=1e-4)


# --- the soft forward -------------------------------------------------------------------------------------------


def with_weighted_softmax(model: SlimViT, images: Tensor, temperature: float) -> Tensor:
    """Eq. 6 as printed: β multiplies exp(h) in numerator and denominator. Pre-norm blocks only."""
    vit, schedule, prefix = model.backbone, model.schedule, model.backbone.num_prefix_tokens
    x = embed(vit, images)
    batch, length, _ = x.shape
    life: Tensor | None = None
    for layer, block in enumerate(vit.blocks, start=1):
        keep = torch.ones(batch, length, dtype=x.dtype)
        if life is not None:
            keep[:, prefix:] = 1 / (1 + torch.exp(-temperature * (life - layer)))
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(batch, length, 3, attention.num_heads, attention.head_dim)
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        h = attention.q_norm(q) @ attention.k_norm(k).transpose(-2, -1) / attention.head_dim**0.5
        weights = torch.exp(h) * keep[:, None, None, :]
        weights = weights / weights.sum(dim=-1, keepdim=True)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = x + block.ls1(attention.proj(mixed))
        x = x + block.ls2(block.mlp(block.norm2(x)))
        if layer == schedule.base_layer:
            scores = scores_by_hand(model, x)
            mean, deviation = scores.mean(1, keepdim=True), scores.std(1, keepdim=True, correction=0)
            life = (scores - mean) / deviation * schedule.std_life + schedule.mean_life
    return vit.forward_head(vit.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("family", PRE_NORM, indirect=True)
def test_soft_forward_is_the_weighted_softmax_of_eq_6(family, temperature):
    model = slim(tiny_vit(family), temperature=temperature).double()
    images = images_for(model.backbone).double()
    expected = with_weighted_softmax(model, images, temperature)
    torch.testing.assert_close(model(images, soft=True).logits, expected, rtol=1e-5, atol=1e-6)  # lives are float32
    assert not torch.allclose(expected, model.backbone(images), rtol=1e-3)


def without_the_dead(model: SlimViT, image: Tensor, life: list[float]) -> Tensor:
    """One image in which, in every layer t, the patches whose life is below t are gone."""
    vit, prefix = model.backbone, model.backbone.num_prefix_tokens
    x = embed(vit, image[None])
    places = list(range(len(life)))  # original index of each patch still there
    for layer, block in enumerate(vit.blocks, start=1):
        if layer > model.schedule.base_layer:
            alive = [place for place, index in enumerate(places) if life[index] >= layer]
            x = x[:, [*range(prefix), *(prefix + place for place in alive)]]
            places = [places[place] for place in alive]
        x = block(x)
    return vit.forward_head(vit.norm(x))[0]


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mean-pooled"], indirect=True)
def test_soft_forward_approaches_leaving_out_the_dead_as_the_temperature_grows(family):
    # Mean pooling reads tokens that are only weak as keys, and so has no such limit.
    model = slim(tiny_vit(family), temperature=1e7).double()
    images = images_for(model.backbone).double()
    output = model(images, soft=True)
    dropped = 0
    for image, logits, life in zip(images, output.logits, output.lives.tolist(), strict=True):
        dropped += sum(value < DEPTH for value in life)
        torch.testing.assert_close(logits, without_the_dead(model, image, life), rtol=1e-6, atol=1e-7)
    assert dropped > 0


@torch.no_grad()
def test_soft_forward_leaves_no_token_out(family):
    model = slim(tiny_vit(family))
    with block_io(model.backbone) as seen:
        output = model(images_for(model.backbone), soft=True)
    assert output.kept == {} and output.survivors is None
    assert {x.shape[1] for x, _ in seen} == {model.backbone.num_prefix_tokens + model.schedule.patches}


@torch.no_grad()
def test_soft_forward_leaves_the_layers_up_to_the_base_untouched(family):
    model = slim(tiny_vit(family))
    images = images_for(model.backbone)
    with block_io(model.backbone) as soft:
        model(images, soft=True)
    with block_io(model.backbone) as dense:
        model.backbone(images)
    base = model.schedule.base_layer
    for (_, ours), (_, theirs) in zip(soft[:base], dense[:base], strict=True):
        assert torch.equal(ours, theirs)
    for (_, ours), (_, theirs) in zip(soft[base:], dense[base:], strict=True):
        assert not torch.equal(ours, theirs)


@torch.no_grad()
def test_soft_and_hard_forward_predict_the_same_lives(family):
    model = slim(tiny_vit(family))
    images = images_for(model.backbone)
    assert torch.equal(model(images, soft=True).lives, model(images).lives)


def test_gradients_of_the_soft_forward_reach_predictor_and_backbone(family):
    model = slim(tiny_vit(family)).train()
    labels = torch.tensor([0, 3, 4])
    nn.functional.cross_entropy(model(images_for(model.backbone), soft=True).logits, labels).backward()
    predictor = dict(model.reducer.predictor.named_parameters())
    assert set(predictor) == {"norm.weight", "norm.bias", "weight"}
    for name, parameter in [*predictor.items(), *model.backbone.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_frozen_backbone_trains_the_predictor_alone():
    model = slim(tiny_vit()).train()
    model.backbone.requires_grad_(False)
    model(images_for(model.backbone), soft=True).logits.square().sum().backward()
    assert model.reducer.predictor.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_a_step_along_the_gradient_lowers_the_loss():
    model = slim(tiny_vit()).double()
    model.backbone.requires_grad_(False)
    images, labels = images_for(model.backbone, batch=8).double(), torch.arange(8) % 5
    losses = []
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(images, soft=True).logits, labels)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            weight = model.reducer.predictor.weight
            weight -= 1e-3 * weight.grad / weight.grad.norm()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("method", ["dense", "first-k"])
@torch.no_grad()
def test_methods_without_decisions_are_their_own_soft_form(method):
    model = slim(tiny_vit(), method)
    images = images_for(model.backbone)
    assert torch.equal(model(images, soft=True).logits, model(images).logits)


# --- lower precision --------------------------------------------------------------------------------------------


def test_soft_forward_and_backward_run_under_autocast(family):
    model = slim(tiny_vit(family)).train()
    images = images_for(model.backbone)
    with torch.no_grad():
        exact = model(images, soft=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, soft=True)
        loss = nn.functional.cross_entropy(output.logits.float(), torch.tensor([0, 3, 4]))
    loss.backward()
    assert output.lives.dtype == torch.float32
    torch.testing.assert_close(output.logits.detach().float(), exact.logits, rtol=0.1, atol=0.1)
    gradient = model.reducer.predictor.weight.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_hard_forward_runs_under_autocast(family, ordering):
    model = slim(tiny_vit(family), ordering=ordering)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images_for(model.backbone))
    assert output.logits.isfinite().all()
    assert output.lives.dtype == torch.float32
    for row in output.survivors.tolist():
        assert len(row) == len(set(row)) == model.schedule.tokens[-1]
        assert all(0 <= index < model.schedule.patches for index in row)


@torch.no_grad()
def test_a_model_in_half_precision_runs_in_both_forms(family):
    model = slim(tiny_vit(family))
    images = images_for(model.backbone)
    exact = model(images, soft=True).logits
    model = model.to(torch.bfloat16)
    soft = model(images.to(torch.bfloat16), soft=True).logits
    assert soft.dtype == torch.bfloat16
    torch.testing.assert_close(soft.float(), exact, rtol=0.1, atol=0.15)
    assert model(images.to(torch.bfloat16)).logits.isfinite().all()


# --- making one from a spec -------------------------------------------------------------------------------------


def spec_for(vit: VisionTransformer, **changes: object) -> ModelSpec:
    spec = ModelSpec(
        backbone="tiny",
        timm_name="tiny",
        method="life",
        schedule=schedule_for(vit),
        preprocess=PreprocessSpec(image_size=tuple(vit.patch_embed.img_size)),
        num_classes=5,
        prefix_tokens=vit.num_prefix_tokens,
        provenance=Provenance(weights="random"),
    )
    return replace(spec, **changes)


@torch.no_grad()
def test_a_model_is_built_as_its_spec_says(family):
    vit = tiny_vit(family)
    images = images_for(vit)
    model = build_model(vit.train(), spec_for(vit, options={"temperature": 3.0}), ordering="per-stage")
    assert not model.training and not vit.training
    assert model.schedule == schedule_for(vit)
    expected = slim(vit, temperature=3.0)
    expected.reducer.load_state_dict(model.reducer.state_dict())
    assert torch.equal(model(images, soft=True).logits, expected(images, soft=True).logits)
    assert torch.equal(model(images).logits, expected(images).logits)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "nowhere"}, f"method 'nowhere' is unknown; there are: {', '.join(methods.names())}"),
        ({"options": {"temperature": 0.0}}, "temperature is 0.0: expected float >= 0.001"),
        ({"method": "dense", "options": {"temperature": 1.5}}, "'temperature' is no option of dense; it has none"),
    ],
)
def test_a_spec_that_no_model_is_of_is_refused(changes, said):
    vit = tiny_vit()
    with pytest.raises(UsageError) as refusal:
        build_model(vit, spec_for(vit, **changes))
    assert refusal.value.message == said


def test_a_method_that_protects_fewer_prefix_tokens_than_there_are_is_refused(monkeypatch):
    few = replace(methods.get("life"), prefix=1)
    monkeypatch.setattr(methods, "_TABLE", {"life": few})
    vit = tiny_vit("registers")
    with pytest.raises(UnsupportedModelError, match=r"^life protects 1 token in front of the patches, and tiny has 5 "):
        build_model(vit, spec_for(vit))
    assert build_model(tiny_vit(), spec_for(tiny_vit())).adapted.prefix == 1
