"""Stages, batches and losses, each by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lifedeploy.data.images import read_split
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model.vit import SlimOutput
from lifedeploy.processes import Processes
from lifedeploy.training import loader
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.distillation import Teacher, ranking_loss, require_watchable
from lifedeploy.training.losses import classification_loss
from lifedeploy.training.stages import Stage, freeze, parameter_groups, plan
from tests.conftest import make_tiny
from tests.plugins import entry


def test_the_plan_is_algorithm_1():
    assert [(stage.name, stage.reducer, stage.backbone) for stage in plan(TrainConfig())] == [
        ("predictor", True, False),
        ("backbone", False, True),
    ]


def test_other_plans():
    assert [(s.name, s.epochs) for s in plan(TrainConfig(single_stage=True, stage1_epochs=2))] == [("single", 3)]
    taught = TrainConfig(single_stage=True, hard=True, distill=True)
    assert [(s.reducer, s.backbone, s.soft) for s in plan(taught)] == [(True, True, False)]
    assert [(s.name, s.epochs) for s in plan(TrainConfig(dense=True, epochs=4))] == [("dense", 4)]
    assert [s.name for s in plan(TrainConfig(stage1_epochs=0))] == ["backbone"]
    assert [s.elastic for s in plan(TrainConfig(elastic=True))] == [False, True]
    assert [(s.name, s.soft) for s in plan(TrainConfig(hard=True))] == [("predictor", True), ("backbone", False)]
    assert plan(TrainConfig(method="dense", epochs=4)) == plan(TrainConfig(dense=True, epochs=4))


def test_the_stages_are_those_that_the_method_says(plugged):
    plugged(entry("tests.plugins:OTHER"))
    (stage,) = plan(TrainConfig(method="other", epochs=5, elastic=True))
    assert stage == Stage(name="other", epochs=5, reducer=True, backbone=True, elastic=True)
    # What it learns it learns through the soft form, unless the backbone alone does.
    assert [s.soft for s in plan(TrainConfig(method="other", hard=True))] == [True]


def test_a_frozen_part_is_in_evaluation_mode_and_takes_no_gradient(tiny):
    model, _ = tiny
    freeze(model, Stage(name="predictor", epochs=1, reducer=True, backbone=False))
    assert not model.backbone.training and model.reducer.training
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.reducer.parameters())


def test_every_trained_parameter_is_in_one_group_at_its_rate_and_biases_do_not_decay(tiny):
    model, _ = tiny
    config = TrainConfig(single_stage=True, predictor_lr=3.0, backbone_lr=1.0, head_lr=2.0, weight_decay=0.1)
    freeze(model, plan(config)[0])
    groups = parameter_groups(model, config)
    place = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) == len(place)
    assert place[id(model.backbone.head.weight)] == (2.0, 0.1)
    assert place[id(model.backbone.head.bias)] == (2.0, 0.0)
    assert place[id(model.backbone.blocks[0].attn.qkv.weight)] == (1.0, 0.1)
    assert place[id(model.backbone.pos_embed)] == (1.0, 0.0)
    assert place[id(model.reducer.predictor.weight)] == (3.0, 0.1)
    assert place[id(model.reducer.predictor.norm.weight)] == (3.0, 0.0)


def test_stochastic_depth_rises_from_block_to_block(tiny):
    model, _ = tiny
    model.adapted.set_drop_path(0.3)
    assert [block.drop_path1.drop_prob for block in model.backbone.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_processes_and_micro_batches_share_the_same_batch(world, accumulate):
    config = TrainConfig(batch=8, accumulate=accumulate)
    whole = loader.micro_batches(37, TrainConfig(batch=8), Processes(), epoch=3)
    parts = [loader.micro_batches(37, config, Processes(rank, world), epoch=3) for rank in range(world)]
    assert len(whole) == 4 == len(parts[0]) // accumulate
    for step, batch in enumerate(whole):
        found = [key for part in parts for micro in part[step * accumulate : (step + 1) * accumulate] for key in micro]
        assert sorted(found) == sorted(batch)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    config = TrainConfig(batch=5)
    first, second = (
        [key for batch in loader.micro_batches(25, config, Processes(), epoch) for key in batch] for epoch in (0, 1)
    )
    assert sorted(index for _, index in first) == list(range(25))
    assert [index for _, index in first] != [index for _, index in second]
    assert (
        loader.micro_batches(25, config, Processes(), 0, first_step=3)
        == loader.micro_batches(25, config, Processes(), 0)[3:]
    )


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="7 training images do not fill one batch of 8"):
        loader.steps_per_epoch(7, TrainConfig(batch=8), 1)
    with pytest.raises(UsageError, match="batch 8 cannot be divided among 3 processes of 1 micro-batches each"):
        loader.steps_per_epoch(70, TrainConfig(batch=8), 3)


def test_augmentation_depends_on_seed_epoch_and_image_alone(settings, tiny):
    config = settings(scale=(0.3, 1.0), color_jitter=0.4, auto_augment="rand-m9-mstd0.5", random_erasing=0.5)
    split = read_split(config.data, val_share=0.2)
    images = loader.TrainingImages(split.train, tiny[1].preprocess, config)
    once = images[0, 5][0]
    random.random(), np.random.random(), torch.rand(3)
    assert torch.equal(images[0, 5][0], once)
    assert not torch.equal(images[1, 5][0], once)
    other = loader.TrainingImages(split.train, tiny[1].preprocess, config.but(seed=1))
    assert not torch.equal(other[0, 5][0], once)


def test_drawing_an_image_leaves_the_generators_as_they_were(settings, tiny):
    config = settings(auto_augment="rand-m9-mstd0.5")
    images = loader.TrainingImages(read_split(config.data).train, tiny[1].preprocess, config)
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(1), random.random())
    torch.manual_seed(5)
    random.seed(5)
    _ = images[0, 0]
    assert (torch.rand(1), random.random()) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(settings, tiny, workers):
    config = settings(scale=(0.3, 1.0), workers=workers)
    images = loader.TrainingImages(read_split(config.data).train, tiny[1].preprocess, config)
    order = loader.micro_batches(24, config, Processes(), 0)
    batches = list(loader.batches(images, order, config, torch.device("cpu")))
    assert [batch.indices for batch in batches] == [tuple(index for _, index in keys) for keys in order]
    assert torch.equal(batches[1].images[3], images[order[1][3]][0])


def test_validation_sees_every_image_once_as_a_deployed_engine_does(settings, tiny):
    from lifedeploy.data.preprocess import normalise, to_pixels

    config = settings()
    val = read_split(config.data, val_share=0.2).val
    seen = {}
    for rank in range(2):
        for batch in loader.validation_batches(
            val, tiny[1].preprocess, config, Processes(rank, 2), torch.device("cpu")
        ):
            seen |= dict(zip(batch.indices, batch.images, strict=True))
    assert sorted(seen) == list(range(len(val)))
    expected = normalise(to_pixels(val.image(2), tiny[1].preprocess)[None], tiny[1].preprocess)[0]
    assert np.array_equal(seen[2].numpy(), expected)


def test_smoothing_is_left_to_mixtures_that_bring_their_own():
    logits = torch.randn(4, 3)
    hard = torch.tensor([0, 1, 2, 0])
    soft = torch.nn.functional.one_hot(hard, 3).float()
    assert torch.allclose(classification_loss(logits, hard, 0.0), classification_loss(logits, soft, 0.3))
    assert not torch.allclose(classification_loss(logits, hard, 0.3), classification_loss(logits, soft, 0.3))


def output(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    alive: torch.Tensor | None = None,
    survivors: torch.Tensor | None = None,
) -> SlimOutput:
    return SlimOutput(logits, {}, None, None, None, tokens, survivors, alive, {})


def test_distillation_counts_surviving_tokens_and_logits():
    torch.manual_seed(0)
    tokens, logits = torch.randn(2, 6, 8), torch.randn(2, 3)
    alive = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0]])
    teacher = output(tokens, logits)
    norm = torch.nn.Identity()
    loss = Teacher(make_tiny()[0], TrainConfig(distill_logits=1.0, distill_tokens=1.0)).loss
    assert loss(output(tokens, logits, alive), teacher, norm) == pytest.approx(0, abs=1e-6)
    dead = tokens.clone()
    dead[0, 2] += 5  # patch 1 of image 0 is not among the two that survive
    assert loss(output(dead, logits, alive), teacher, norm) == pytest.approx(0, abs=1e-6)
    moved_token = tokens.clone()
    moved_token[0, 3] += 1  # patch 2 is
    # 1 of 6 counted tokens (prefix and two patches of two images) is off by 1 in every channel.
    assert loss(output(moved_token, logits, alive), teacher, norm) == pytest.approx(1 / 6, rel=1e-5)
    moved = loss(output(tokens, logits + torch.tensor([1.0, 0, 0]), alive), teacher, norm)
    expected = torch.nn.functional.kl_div(
        (logits + torch.tensor([1.0, 0, 0])).log_softmax(1), logits.softmax(1), reduction="batchmean"
    )
    assert moved == pytest.approx(expected.item(), rel=1e-5)


def test_distillation_compares_a_token_that_is_left_with_its_own_and_a_fused_one_with_none():
    torch.manual_seed(0)
    dense, logits = torch.randn(2, 6, 8), torch.randn(2, 3)
    kept = torch.tensor([[3, 0, -1], [4, 2, -1]])  # the last of each is of several patches
    places = torch.tensor([[0, 4, 1, 1], [0, 5, 3, 1]])
    tokens = torch.stack([dense[image, places[image]] for image in range(2)])
    loss = Teacher(make_tiny()[0], TrainConfig(distill_logits=1.0, distill_tokens=1.0)).loss
    teacher, norm = output(dense, logits), torch.nn.Identity()

    def of(student: torch.Tensor) -> torch.Tensor:
        return loss(output(student, logits, survivors=kept), teacher, norm)

    tokens[:, 3] += torch.randn(2, 8)
    assert of(tokens) == pytest.approx(0, abs=1e-6)
    off = tokens.clone()
    off[1, 2] += 2  # patch 2 of the second image: 1 of 6 counted tokens (prefix and two patches of two images)
    assert of(off) == pytest.approx(4 / 6, rel=1e-5)
    off[0, 0] += 1  # the prefix counts too
    assert of(off) == pytest.approx(5 / 6, rel=1e-5)


def test_the_teacher_is_the_dense_model_and_shows_where_its_later_layers_look():
    model, _ = make_tiny()
    images = torch.randn(3, 3, 32, 32)
    wanted = Teacher(model, TrainConfig(distill=True))(images)
    dense, _ = make_tiny(method="dense")
    assert torch.allclose(wanted.logits, dense(images).logits, atol=1e-5)
    assert wanted.tokens.shape == (3, 17, 32)

    # Tokens leave after layers 2 and 3: layer 3 counts once, layer 4 twice.
    rows = []
    for layer in (3, 4):
        attn = dense.backbone.blocks[layer - 1].attn
        attn.qkv.register_forward_hook(
            lambda module, inputs, qkv, attn=attn: rows.append(attention_of_cls(qkv, attn.num_heads))
        )
    dense(images)
    expected = (rows[0] + 2 * rows[1]) / 3
    assert torch.allclose(wanted.scores, expected, atol=1e-5)
    assert torch.allclose(wanted.scores.sum(dim=1), torch.ones(3))
    assert Teacher(model, TrainConfig(distill=True, distill_lives=0.0))(images).scores is None


def test_a_teacher_whose_attention_cannot_be_seen_is_refused():
    from timm.models.vision_transformer import ParallelScalingBlock

    model, _ = make_tiny(block_fn=ParallelScalingBlock)
    with pytest.raises(UnsupportedModelError, match="attention of pre-norm blocks, and the backbone has a Parallel"):
        require_watchable(model, TrainConfig(distill=True))
    require_watchable(model, TrainConfig())
    settings = TrainConfig(distill=True, distill_lives=0.0)
    require_watchable(model, settings)
    assert Teacher(model, settings)(torch.randn(1, 3, 32, 32)).logits.shape == (1, 5)


def attention_of_cls(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Written out: qkv (B, L, 3C) → (B, N), over the patches."""
    batch, length, width = qkv.shape
    q, k, _ = qkv.reshape(batch, length, 3, heads, width // 3 // heads).unbind(2)
    weights = torch.einsum("bhd,blhd->bhl", q[:, 0], k) / (width // 3 // heads) ** 0.5
    patches = weights.softmax(dim=2).mean(dim=1)[:, 1:]
    return patches / patches.sum(dim=1, keepdim=True)


def test_a_ranking_is_compared_as_eq_3_sees_it():
    attention = torch.rand(4, 9).softmax(dim=1)
    same = 3 * attention.log() + torch.randn(4, 1)
    assert ranking_loss(same, attention) == pytest.approx(0, abs=1e-5)
    assert ranking_loss(-same, attention) == pytest.approx(2, abs=1e-5)
    assert ranking_loss(torch.ones(4, 9), attention) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(ranking_loss(same, torch.eye(9)[:4]))  # softmax may underflow


def test_a_predictor_learns_where_its_teacher_looks():
    """The third term alone, through the soft forward: the ranking comes close to the teacher's."""
    model, _ = make_tiny()
    settings = TrainConfig(distill=True, distill_logits=0.0, distill_tokens=0.0)
    teacher = Teacher(model, settings)
    freeze(model, plan(settings)[0])
    images = torch.randn(8, 3, 32, 32)
    wanted = teacher(images)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.but(predictor_lr=1e-2)))
    losses = []
    for _ in range(60):
        loss = teacher.loss(model(images, soft=True), wanted, model.backbone.norm)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_another_schedule_can_be_asked_of_the_soft_forward():
    from lifedeploy.schedule import Schedule

    model, spec = make_tiny()
    images = torch.randn(2, 3, 32, 32)
    harder = Schedule.from_keep_rate(16, 4, 0.3, spec.schedule.drop_layers)
    assert not torch.allclose(model(images, soft=True).logits, model(images, soft=True, schedule=harder).logits)
    assert torch.equal(model(images, soft=True).logits, model(images, soft=True, schedule=spec.schedule).logits)
    assert model(images, soft=True, schedule=harder).lives.mean().item() == pytest.approx(harder.mean_life, abs=1e-3)
