"""What methods are trained in, and by: masks that stand for dropping, draws, and what is added to the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lifedeploy.model.reducers import Tokens, scorers
from lifedeploy.model.reducers.base import TakeOrdered
from lifedeploy.model.reducers.dynamicvit import RelaxedDynamicVit
from lifedeploy.model.reducers.ia_red2 import RelaxedIaRed2
from lifedeploy.schedule import Schedule
from tests.methods.test_avit import CENTER, SCALE, Halted, halting
from tests.methods.test_by_hand import KEEP, counted
from tests.methods.test_evo_vit import Walk, classes_of_mean
from tests.model.conftest import DEPTH, images_for, slim, tiny_vit

RIGHT = torch.tensor([True, False, True, False])


def best(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    """1 for the ``count`` best of those alive, else 0."""
    chosen = scores.masked_fill(alive == 0, -math.inf).topk(count, dim=1).indices
    return torch.zeros_like(alive).scatter(1, chosen, 1.0)


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dynamicvit", "ia-red2"])
@pytest.mark.parametrize("family", ["plain", "distilled", "registers"])
@torch.no_grad()
def test_what_is_masked_might_as_well_have_left(monkeypatch, method, family):
    """Where the same patches are decided against, CLS answers what it does when these are gone."""
    vit = tiny_vit(family)
    model, images = slim(vit, method, counted(KEEP)), images_for(vit)

    def decide(self, drop, patches, alive, carry):
        scorer = model.reducer.scorers[drop]
        scores = scorer(patches, alive) if method == "dynamicvit" else scorer(patches)
        return best(scores, alive, self.schedule.after(self.schedule.drop_layers[drop]))

    monkeypatch.setattr(scorers, "_MASKED", 1e-30)
    monkeypatch.setattr(RelaxedDynamicVit if method == "dynamicvit" else RelaxedIaRed2, "decide", decide)
    masked, gone = model(images, soft=True), model(images)
    torch.testing.assert_close(masked.logits, gone.logits, rtol=1e-4, atol=1e-4)
    for image in range(len(images)):
        assert masked.alive[image].nonzero().flatten().tolist() == sorted(gone.survivors[image].tolist())
    assert masked.survivors is None and masked.tokens.shape[1] == vit.num_prefix_tokens + 16


class Given(scorers.Masking):
    """What the first drop decides is given; the others drop nothing."""

    def __init__(self, schedule: Schedule, weights: Tensor) -> None:
        super().__init__(schedule)
        self.weights = weights

    def decide(self, drop: int, patches: Tensor, alive: Tensor, carry: dict[str, Tensor]) -> Tensor:
        return torch.ones_like(alive) if drop else self.weights


def test_a_masked_patch_still_learns_that_it_should_not_have_been():
    """The gradient of its weight as a key: that of a small weight, over that small weight."""
    torch.manual_seed(0)
    vit = tiny_vit()
    model, images = slim(vit, "dynamicvit", counted(KEEP)), images_for(vit)
    weights = torch.full((3, 16), 1.0)
    weights[:, ::2] = 0.0
    weights.requires_grad_(True)
    relaxed = Given(model.schedule, weights)
    model._walk(images, relaxed).logits.square().sum().backward()
    assert weights.grad is not None and bool((weights.grad != 0).all())
    step = 1e-2  # of one masked patch, by the difference that it makes
    with torch.no_grad():
        at = []
        for value in (0.0, step):
            changed = weights.detach().clone()
            changed[0, 2] = value
            output = model._walk(images, Given(model.schedule, changed))
            at.append(float(output.logits[0].square().sum()))
    assert float(weights.grad[0, 2]) == pytest.approx((at[1] - at[0]) / step, rel=0.1)


# --- DynamicViT -------------------------------------------------------------------------------------------------


class Scores(torch.nn.Module):
    """A predictor that finds in a patch's one channel what to say."""

    def forward(self, patches: Tensor, alive: Tensor) -> Tensor:
        return patches[..., 0]


def test_a_draw_keeps_a_patch_as_often_as_its_predictor_says():
    model = slim(tiny_vit(), "dynamicvit", counted(KEEP))
    scores = torch.linspace(-3, 3, 16).repeat(4000, 1)
    relaxed = RelaxedDynamicVit(model.schedule, torch.nn.ModuleList([Scores()]))
    torch.manual_seed(0)
    drawn = relaxed.decide(0, scores[..., None], torch.ones_like(scores), {})
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(dim=0), scores[0].sigmoid(), rtol=0, atol=0.03)


def test_the_ratio_loss_is_the_mean_square_by_which_shares_miss_the_schedule():
    model = slim(tiny_vit(), "dynamicvit", counted(KEEP), ratio_weight=3.0)
    images = images_for(model.backbone, batch=4)
    torch.manual_seed(1)
    with torch.no_grad():
        output = model(images, soft=True)
    assert output.alive is not None
    wanted = [count / 16 for count in KEEP.values()]
    # After the last drop, those that are alive are what all drops have kept.
    last = output.alive.mean(dim=1) - wanted[-1]
    torch.testing.assert_close(output.loss_inputs["off 2"], last)
    by_hand = sum(output.loss_inputs[f"off {drop}"].square().mean() for drop in range(3)) / 3
    assert float(model.reducer.penalty(output.loss_inputs, RIGHT)) == pytest.approx(3 * float(by_hand), rel=1e-6)
    hard = model(images)
    assert hard.loss_inputs == {} and model.reducer.penalty(hard.loss_inputs, RIGHT) is None


# --- IA-RED² ----------------------------------------------------------------------------------------------------


def test_groups_learn_one_after_the_other():
    model = slim(tiny_vit(), "ia-red2", counted(KEEP))
    relaxed = model.reducer.relaxed(model.schedule)
    assert [relaxed.during(share).learning for share in (0.0, 0.32, 0.34, 0.67, 0.999)] == [0, 0, 1, 2, 2]
    images = images_for(model.backbone, batch=4)
    for learning, progress in enumerate((0.0, 0.5, 0.9)):
        model.zero_grad()
        output = model(images, soft=True, progress=progress)
        penalty = model.reducer.penalty(output.loss_inputs, RIGHT)
        assert penalty is not None
        penalty.backward()
        moved = [bool(part.policy.grad.any()) for part in model.reducer.interpreters]
        assert moved == [drop == learning for drop in range(3)]  # and every gradient is there


def test_what_was_drawn_becomes_likelier_where_it_was_rewarded_above_the_mean():
    model = slim(tiny_vit(), "ia-red2", counted(KEEP))
    likelihood = torch.tensor([-0.5, -0.6, -0.7, -0.8], requires_grad=True)
    gone = torch.tensor([0.5, 0.25, 0.0, 0.25])
    loss = model.reducer.penalty({"likelihood": likelihood, "gone": gone}, RIGHT)
    rewards = [1.5, 0.25, 1.0, 0.25]
    mean = sum(rewards) / 4
    by_hand = -sum((reward - mean) * value for reward, value in zip(rewards, likelihood.tolist(), strict=True)) / 4
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    loss.backward()
    assert (likelihood.grad < 0).tolist() == [True, False, True, False]  # descent raises the first and the third


@torch.no_grad()
def test_the_likelihood_is_that_of_the_draw():
    model = slim(tiny_vit(), "ia-red2", counted(KEEP))
    patches = torch.randn(3, 16, 24)
    alive = torch.ones(3, 16)
    alive[:, 5:] = 0  # of what is gone nothing is decided
    carry: dict[str, Tensor] = {}
    torch.manual_seed(3)
    drawn = model.reducer.relaxed(model.schedule).decide(0, patches, alive, carry)
    stay = model.reducer.interpreters[0](patches)
    for image in range(3):
        logs = [
            math.log(float(p if keep else 1 - p)) for p, keep in zip(stay[image, :5], drawn[image, :5], strict=True)
        ]
        assert float(carry["likelihood"][image]) == pytest.approx(sum(logs) / 5, rel=1e-5)
        assert float(carry["gone"][image]) == pytest.approx(1 - float(drawn[image, :5].sum()) / 16, rel=1e-5)


# --- A-ViT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["avit", "avit-ranked"])
@torch.no_grad()
def test_tokens_ponder_for_as_many_layers_as_they_take_and_what_is_left_of_one(method):
    vit = tiny_vit().double()
    images = images_for(vit, batch=4).double()
    budget = Schedule.dense(16, DEPTH) if method == "avit" else counted(KEEP)
    model = slim(vit, method, budget, gate_scale=SCALE, gate_center=CENTER)
    output = model(images, soft=True)
    for number, image in enumerate(images):
        walk = Halted(vit, image, SCALE, CENTER)
        torch.testing.assert_close(output.logits[number], walk.logits, rtol=1e-6, atol=1e-6)
        layers = [*walk.of_prefix, *walk.lives]
        assert math.floor(float(output.loss_inputs["ponder"][number])) >= math.floor(sum(layers) / len(layers))
        assert output.alive[number].tolist() == [float(life == DEPTH) for life in walk.lives]
    ponder = float(output.loss_inputs["ponder"].mean())
    lives = sum(sum(walk.of_prefix) + sum(walk.lives) for walk in (Halted(vit, i, SCALE, CENTER) for i in images)) / 68
    assert lives < ponder <= lives + 1  # what is left of 1 is more than nothing


@torch.no_grad()
def test_layers_in_which_tokens_halt_are_held_against_a_normal_distribution():
    model = slim(tiny_vit(), "avit", Schedule.dense(16, DEPTH), ponder_weight=0.0, prior_weight=2.0, halting_depth=0.5)
    depths = torch.tensor([0.05, 0.1, 0.5, 0.2, 0.1, 0.05])
    wanted = [math.exp(-0.5 * (layer - 3) ** 2) for layer in range(1, 7)]
    wanted = [value / sum(wanted) for value in wanted]
    by_hand = sum(p * math.log(p / q) for p, q in zip(wanted, depths.tolist(), strict=True))
    loss = model.reducer.penalty({"ponder": torch.tensor([3.0]), "log depths": (2 * depths).log()}, RIGHT)
    assert float(loss) == pytest.approx(2 * by_hand, rel=1e-5)


def test_far_from_halting_there_is_a_way_to_it():
    """As published, β is 75, and probabilities are smaller than numbers are: the prior has a gradient all the same."""
    vit = tiny_vit()
    model = slim(vit, "avit", Schedule.dense(16, DEPTH), halting_depth=0.3)
    output = model(images_for(vit), soft=True)
    assert float(output.loss_inputs["ponder"].detach().min()) == DEPTH + 1
    model.reducer.penalty(output.loss_inputs, RIGHT).backward()
    gradient = vit.blocks[0].mlp.fc2.weight.grad[0]
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 1e-6


@torch.no_grad()
def test_a_token_that_has_halted_does_not_halt_again():
    model = slim(tiny_vit(), "avit", Schedule.dense(16, DEPTH), gate_scale=1.0, gate_center=0.0)
    first = torch.full((1, 3), -20.0)  # one token of three halts in the first layer
    first[0, 0] = 20.0
    carry = {f"halted {layer}": first if layer == 1 else torch.full((1, 3), 20.0) for layer in range(1, DEPTH + 1)}
    relaxed = model.reducer.relaxed(model.schedule)
    inputs = relaxed.loss_inputs(Tokens(x=torch.zeros(1, 3, 24), prefix=1, carry=carry))
    shares = inputs["log depths"].exp().tolist()
    assert shares == pytest.approx([1.0, 2.0, 0.0, 0.0, 0.0, 0.0], abs=1e-6)
    assert float(inputs["ponder"]) == pytest.approx((1 + 2 + 2) / 3 + (1 + 1 + 1) / 3, abs=1e-5)


def test_halting_is_what_the_ponder_loss_teaches():
    vit = tiny_vit()
    model = slim(vit, "avit", Schedule.dense(16, DEPTH), gate_scale=SCALE, gate_center=CENTER, prior_weight=0.0)
    output = model(images_for(vit), soft=True)
    model.reducer.penalty(output.loss_inputs, RIGHT).backward()
    assert bool(vit.blocks[0].mlp.fc2.weight.grad[0].any())  # the first channel, of patches too
    assert halting(torch.tensor([0.0]), DEPTH, DEPTH, SCALE, CENTER) == 1.0


# --- Evo-ViT ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_patches_are_chosen_block_by_block_then_stage_by_stage():
    vit = tiny_vit(depth=12).double()
    images = images_for(vit, batch=4).double()
    schedule = Schedule.from_counts(16, 12, (8, 8), (4, 8))
    model = slim(vit, "evo-vit", schedule)
    every = Schedule.from_counts(16, 12, (8,) * 8, tuple(range(4, 12)))
    for progress, like in ((0.0, every), (0.66, every), (0.67, schedule), (0.99, schedule)):
        output = model(images, soft=True, progress=progress)
        for number, image in enumerate(images):
            torch.testing.assert_close(output.logits[number], Walk(vit, image, like).logits, rtol=1e-6, atol=1e-6)
    takes = model.reducer.relaxed(schedule).during(0.1).take
    assert [layer for layer in takes if isinstance(takes[layer], TakeOrdered)] == [str(t) for t in range(4, 12)]


def test_cls_and_the_mean_of_patches_each_have_a_head_and_half_of_the_loss():
    vit = tiny_vit(depth=12)
    model = slim(vit, "evo-vit", Schedule.from_counts(16, 12, (8, 8), (4, 8)))
    names = set(model.state_dict())
    model.reducer.equip(model.adapted)
    added = set(model.state_dict()) - names
    assert added == {f"reducer.train_only.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")}
    with torch.no_grad():
        model.reducer.train_only["head"].bias += 1.0
    output = model(images_for(vit, batch=4), soft=True)
    cls = vit.head(vit.norm(output.tokens[:, 0])) + 1.0
    torch.testing.assert_close(output.loss_inputs["cls"], cls)
    torch.testing.assert_close(output.logits[0], classes_of_mean(vit, output.tokens[0, 1:]), rtol=1e-4, atol=1e-5)
    loss = model.reducer.labelled(output.logits, output.loss_inputs, lambda logits: logits.mean())
    assert loss.item() == pytest.approx(((output.logits.mean() + cls.mean()) / 2).item(), rel=1e-5)
    assert set(dict(model(images_for(vit)).loss_inputs)) == set()  # the hard form has no use for it
