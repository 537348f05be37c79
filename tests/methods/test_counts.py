"""What the rows say of their methods' token counts and MACs: the published ones, and what PyTorch counts."""

from __future__ import annotations

import pytest
import torch

from lifedeploy import methods
from lifedeploy.errors import ScheduleError
from lifedeploy.schedule import Schedule
from tests.methods.cases import CASES, RATED, asked, counted, shapes_only
from tests.model.conftest import DEPTH, slim, tiny_vit

SHORT = ("deit_t", "deit_s", "deit_b", "vit_t", "vit_s", "vit_b")
DINO = "vit_small_patch14_dinov2"
DISTILLED = "deit_tiny_distilled_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"
# DeiT-S at keep rate 0.7: drop layers, patch tokens that go on after each, GMACs in all, GMACs of choosing.
PUBLISHED = {
    "life": ((4, 7, 10), (137, 96, 67), 3.13, 0.00),
    "evit": ((4, 7, 10), (139, 99, 71), 3.03, 0.00),
    "evit-no-fuse": ((4, 7, 10), (138, 97, 68), 3.00, 0.00),
    "topk": ((4, 7, 10), (137, 96, 67), 2.98, 0.00),
    "dynamicvit": ((3, 6, 9), (137, 96, 67), 2.98, 0.10),
    "random": ((4, 7, 10), (137, 96, 67), 3.13, 0.00),
    "ia-red2": ((4, 7, 10), (137, 96, 67), 3.13, 0.00),
    "avit-ranked": ((4, 7, 10), (137, 96, 67), 3.13, 0.00),
    "evo-vit": ((4, 8), (98, 98), 3.03, 0.00),
    "tome": (tuple(range(1, 13)), tuple(range(183, 39, -13)), 2.71, 0.01),
    "avit": ((), (), 4.60, 0.00),
    "dense": ((4, 7, 10), (137, 96, 67), 4.60, 0.00),  # its schedule is that of what it is the baseline of
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_deit_s_at_keep_rate_07_costs_what_is_published(case):
    """Or by the budget of its own that a method has."""
    model, spec = shapes_only(case, "deit_s", **asked(case))
    layers, counts, gmacs, choosing = PUBLISHED[case]
    assert (spec.schedule.drop_layers, spec.schedule.counts) == (layers, counts)
    cost = model.adapted.cost(spec.image_size)
    work = methods.get(spec.method).count_work(spec.schedule, spec.options, cost)
    assert (round(cost.total(work) / 1e9, 2), round(work.scoring / 1e9, 2)) == (gmacs, choosing)


def test_the_predictors_of_dynamicvit_have_their_published_number_of_parameters():
    model, _ = shapes_only("dynamicvit", "deit_s", keep_rate=0.7)
    assert round(sum(parameter.numel() for parameter in model.reducer.parameters()) / 1e6, 2) == 0.72
    for case in set(CASES) - {"dynamicvit", "ia-red2"}:
        assert not list(shapes_only(case, "deit_s", **asked(case))[0].reducer.parameters())


def test_tome_merges_13_tokens_of_deit_s_in_every_layer():
    """184 to 41 with CLS, in 2.70 GMACs and what it takes to choose and merge them."""
    model, spec = shapes_only("tome", "deit_s")
    assert [1 + count for count in spec.schedule.counts] == [184, 171, 158, 145, 132, 119, 106, 93, 80, 67, 54, 41]
    assert (spec.schedule.tokens, spec.schedule.last) == ((196, *spec.schedule.counts[:-1]), 40)
    cost = model.adapted.cost(spec.image_size)
    work = methods.get("tome").count_work(spec.schedule, spec.options, cost)
    assert (work.attention, work.mlp) == (spec.schedule.tokens, spec.schedule.counts)
    assert round((cost.total(work) - work.scoring) / 1e9, 2) == 2.70
    assert round(work.scoring / 1e9, 3) == 0.007


def test_the_interpreters_of_ia_red2_are_three_of_two_projections_and_a_token():
    model, _ = shapes_only("ia-red2", "deit_s", keep_rate=0.7)
    assert sum(parameter.numel() for parameter in model.reducer.parameters()) == 3 * (2 * 384 * 384 + 3 * 384)


@pytest.mark.parametrize("backbone", [*SHORT, DINO, DISTILLED, REGISTERS])
@pytest.mark.parametrize("case", CASES)
def test_every_backbone_runs_with_the_counts_and_the_macs_that_are_said(case, backbone):
    method, options = CASES[case]
    if "dinov2" in backbone and method == "tome":
        options = {"r": "3"}  # of 64 patches
    model, spec = shapes_only(case, backbone, (112, 112) if "dinov2" in backbone else None, options, **asked(case))
    schedule, prefix = spec.schedule, {DISTILLED: 2, REGISTERS: 5}.get(backbone, 1)
    images = torch.zeros(2, 3, *spec.image_size, device="meta")
    with torch.no_grad():
        output = model(images)
    assert output.logits.shape == (2, 1000)
    assert prefix == spec.prefix_tokens
    left = schedule.patches if case == "evo-vit" else schedule.after(schedule.depth)  # which come back
    assert output.tokens.shape[1] == prefix + left
    shapes = {layer: tuple(kept.shape) for layer, kept in output.kept.items()}
    assert shapes == {layer: (2, schedule.after(layer)) for layer in schedule.drop_layers}
    assert (output.groups is not None) == (method == "tome")
    require_macs(model, spec.method, dict(spec.options), images[:1])


def require_macs(model, method, options, images):
    """Make sure that what a row says of its work is what PyTorch counts.

    PyTorch counts products of matrices, and what is the same for every image. ``random`` scores each patch by a
    direction of its own: N inner products that are no product of matrices. What IA-RED² makes of its policy token is
    the same for every image: three products of a vector or a matrix with what is learned. Where there is a distillation
    token, Evo-ViT does not read it, nor runs its head, which is part of what the backbone costs.
    """
    cost, schedule = model.adapted.cost(tuple(images.shape[2:])), model.schedule
    work = methods.get(method).count_work(schedule, options, cost)
    of_no_matrix = cost.width * schedule.patches if method == "random" and schedule.prunes else 0
    constant = (2 * cost.width + 1) * cost.width * len(schedule.leaving_layers) if method == "ia-red2" else 0
    assert of_no_matrix <= work.scoring
    unread = getattr(model.backbone, "head_dist", None) if method == "evo-vit" else None
    of_head = 0 if unread is None else unread.weight.numel()
    assert cost.total(work) - of_no_matrix - of_head == counted(model, images) - constant


@pytest.mark.parametrize("family", ["plain", "distilled", "registers"])  # 1, 2 and 5 tokens in front
@pytest.mark.parametrize("case", RATED)
def test_macs_are_those_that_pytorch_counts(case, family):
    vit, (method, options) = tiny_vit(family), CASES[case]
    row = methods.get(method)
    schedules = [row.make_schedule(16, DEPTH, keep_rate=rate, options=options) for rate in (1.0, 0.7, 0.5)]
    schedules += [
        row.make_schedule(16, DEPTH, counts=counts, drop_layers=layers, options=options)
        for counts, layers in (((9, 5, 3), (2, 3, 5)), ((16, 7), (1, 4)), ((10, 10, 9), (1, 2, 5)), ((2,), (3,)))
    ]
    for schedule in schedules:
        require_macs(slim(vit, method, schedule, **options), method, options, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("family", ["plain", "distilled", "registers"])
@pytest.mark.parametrize(
    ("method", "words"),
    [
        *(("tome", {"options": {"r": r}}) for r in ("2", "0", "1,0,4,3", "8,4,2,1", "0,0,0,0,0,5")),
        ("tome", {"options": {"r": "2", "inflect": 1.0}}),
        ("tome", {"options": {"r": "3"}, "drop_layers": (2, 5, 6)}),
        *(("tome", {"keep_rate": rate}) for rate in (1.0, 0.9, 0.7, 0.6)),
        *(("evo-vit", {"drop_layers": layers}) for layers in (None, (1,), (5,), (1, 2, 5))),
        ("avit", {}),
    ],
)
def test_macs_by_a_budget_of_its_own_are_those_that_pytorch_counts(method, words, family):
    schedule, options = methods.get(method).make_schedule(16, DEPTH, **words), words.get("options", {})
    require_macs(slim(tiny_vit(family), method, schedule, **options), method, options, torch.zeros(1, 3, 32, 32))


def test_macs_of_an_odd_number_of_tokens_are_too():
    """Behind one prefix token the first patch is a target, behind two a source."""
    for family in ("plain", "distilled"):
        vit = tiny_vit(family, img_size=(24, 40))
        for r in ("3,1,1", "1", "0,7"):
            schedule = methods.get("tome").make_schedule(15, DEPTH, options={"r": r})
            require_macs(slim(vit, "tome", schedule), "tome", {}, torch.zeros(1, 3, 24, 40))


# --- keep rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "patches", "rate", "counts"),
    [
        ("evit", {}, 196, 1.0, (196, 196, 196)),
        ("evit", {"fuse": False}, 196, 1.0, (196, 196, 196)),
        ("dynamicvit", {}, 196, 1.0, (196, 196, 196)),
        ("topk", {}, 196, 1.0, (196, 196, 196)),
        # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996.
        ("evit", {"fuse": False}, 100, 0.07, (7, 1, 1)),
        ("evit", {}, 100, 0.07, (8, 2, 2)),
        ("evit", {"fuse": False}, 100, 0.29, (29, 9, 3)),
        ("dynamicvit", {}, 100, 0.29, (29, 8, 2)),
        ("dynamicvit", {}, 1000, 0.1, (100, 10, 1)),
        ("dynamicvit", {}, 196, 0.9, (176, 158, 142)),  # 176.4, 158.76, 142.884: down, not to the nearest
        ("topk", {}, 196, 0.9, (176, 159, 143)),
        ("evit", {}, 196, 0.5, (99, 51, 27)),  # of 99, the fused one among them, ⌈49.5⌉ and a new one
        # The last one of two would be fused with itself alone: then nothing is dropped.
        ("evit", {}, 10, 0.9, (10, 10, 10)),
        ("evit", {}, 4, 0.5, (3, 3, 3)),
        ("evit", {}, 1, 0.5, (1, 1, 1)),
    ],
)
def test_counts_of_a_keep_rate(method, options, patches, rate, counts):
    schedule = methods.get(method).make_schedule(patches, 12, keep_rate=rate, options=options)
    assert (schedule.counts, schedule.keep_rate) == (counts, rate)


@pytest.mark.parametrize("patches", [1, 2, 9, 16, 100, 196, 256, 729])
def test_no_keep_rate_of_two_digits_is_rounded_by_its_binary_form(patches):
    """⌈ρ n⌉ and ⌊ρ^k N⌋ in whole numbers, for every hundredth."""
    evit, dynamicvit = methods.get("evit"), methods.get("dynamicvit")
    for percent in range(1, 101):
        expected, now = [], patches
        for _ in range(3):
            now = -(-percent * now // 100)
            expected.append(now)
        schedule = evit.make_schedule(patches, 12, keep_rate=percent / 100, options={"fuse": False})
        assert schedule.counts == tuple(expected), percent
        expected = [patches * percent**k // 100**k for k in (1, 2, 3)]
        if expected[-1]:
            assert dynamicvit.make_schedule(patches, 12, keep_rate=percent / 100).counts == tuple(expected), percent
        else:
            with pytest.raises(ScheduleError, match="at least 1 is needed"):
                dynamicvit.make_schedule(patches, 12, keep_rate=percent / 100)


@pytest.mark.parametrize("case", RATED)
def test_counts_and_drop_layers_that_are_given_are_taken_as_they_are(case):
    method, options = CASES[case]
    row = methods.get(method)
    given = row.make_schedule(196, 12, counts=(150, 60), drop_layers=(2, 11), options=options)
    assert given == Schedule.from_counts(196, 12, (150, 60), (2, 11))
    assert row.make_schedule(196, 12, keep_rate=0.7, drop_layers=(6,), options=options).drop_layers == (6,)
    usual = (3, 6, 9) if method == "dynamicvit" else (4, 7, 10)
    assert row.make_schedule(196, 12, keep_rate=0.7, options=options).drop_layers == usual
    assert row.make_schedule(196, 24, keep_rate=0.7, options=options).drop_layers == tuple(2 * t for t in usual)
