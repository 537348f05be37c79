"""Keep rates under which methods cost the same."""

from __future__ import annotations

import pytest

from lifedeploy import methods
from lifedeploy.budget import Sized, at_keep_rate, at_macs, nearer
from lifedeploy.cost import Cost
from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.model import backbones

DEIT_S = backbones.sized("deit_s")
SLIMMED = methods.names(methods.SLIMMED)
FREE = [name for name in SLIMMED if methods.get(name).takes_keep_rate]  # the others have one budget
PRUNING = [name for name in SLIMMED if name not in ("avit", "plain")]


def at(name: str, keep_rate: float) -> int:
    """The work of a method at a keep rate, whatever its own budget is."""
    method = methods.get(name)
    return DEIT_S.macs(method, DEIT_S.schedule(method, keep_rate, {}), {})


def test_a_backbone_is_sized_without_weights():
    assert (DEIT_S.patches, DEIT_S.depth, DEIT_S.cost.prefix, DEIT_S.cost.width) == (196, 12, 1, 384)
    assert backbones.sized("deit_s", image_size=(112, 224), num_classes=2).patches == 98
    with pytest.raises(UsageError, match="deit_x"):
        backbones.sized("deit_x")


@pytest.mark.parametrize(
    ("method", "gmacs"),
    [
        # The last block of prefix tokens alone, but for Evo-ViT and timm's own.
        *(("dense", 4.28), ("life", 3.03), ("evit", 2.92), ("topk", 2.88), ("dynamicvit", 2.88), ("random", 3.03)),
        *(("evo-vit", 3.03), ("tome", 2.64), ("avit", 4.28), ("avit-ranked", 3.03), ("ia-red2", 3.03), ("plain", 4.60)),
    ],
)
def test_keep_07_is_other_work_for_every_method(method, gmacs):
    found = at_keep_rate(methods.get(method), 0.7, DEIT_S)
    assert found.method == method
    assert found.keep_rate == (None if method in ("evo-vit", "tome", "avit", "plain") else 0.7)
    assert round(found.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("like", PRUNING)
def test_a_keep_rate_is_found_for_the_work_of_another_method(name, like):
    macs = at_keep_rate(methods.get(like), 0.7, DEIT_S).macs
    found = at_macs(methods.get(name), macs, DEIT_S)
    assert (found.method, found.macs) == (name, at(name, found.keep_rate))
    assert abs(found.macs / macs - 1) < 0.0025  # a token more in every layer is that much
    if name == like and not methods.get(name).own_budget:
        assert found.keep_rate == 0.7  # the roundest
    for step in (-1e-4, 1e-4):  # nothing beside it comes nearer
        assert abs(at(name, found.keep_rate + step) - macs) >= abs(found.macs - macs)


@pytest.mark.parametrize("name", sorted(set(SLIMMED) - set(FREE)))
@pytest.mark.parametrize("macs", [1e9, 3e9, 1e12])
def test_a_method_that_takes_no_keep_rate_has_its_own_work_alone(name, macs):
    method = methods.get(name)
    assert at_macs(method, macs, DEIT_S) == at_keep_rate(method, 0.3, DEIT_S)
    assert at_macs(method, macs, DEIT_S).keep_rate is None


def test_what_is_out_of_reach_is_the_nearest():
    life = methods.get("life")
    assert at_macs(life, 1e12, DEIT_S).keep_rate == 1.0
    least = at_macs(life, 1.0, DEIT_S)
    assert least.keep_rate == 0.14  # as few tokens as 0.137, whose cube is half a token of 196
    with pytest.raises(ScheduleError):
        at_keep_rate(life, 0.136, DEIT_S)


def test_a_method_with_a_budget_of_its_own_keeps_it():
    own = methods.Method(
        name="own",
        title="its own",
        reducer="a:B",
        takes_keep_rate=False,
        own_budget="half of the patches",
        schedule=lambda patches, depth, rate, layers, options: methods.Schedule.from_counts(
            patches, depth, [98] * len(layers), layers
        ),
        work=lambda schedule, options, cost: methods.Work.of(schedule),
    )
    found = at_macs(own, 1e9, DEIT_S)
    assert found.keep_rate is None
    assert found == at_keep_rate(own, 0.3, DEIT_S)


def test_where_no_token_is_left_at_any_rate_that_is_said():
    cost = Cost(
        embed=1, keys=(1,) * 12, queries=(0,) * 12, pairs=(1,) * 12, mlp=(1,) * 12, head=1, prefix=1, width=4, heads=2
    )
    none = Sized(patches=0, depth=12, cost=cost)
    with pytest.raises(UsageError, match="life leaves no token of 0 at any keep rate"):
        at_macs(methods.get("life"), 1.0, none)


def test_the_way_to_equal_speed():
    """Time = a + b · work: the second guess is exact."""

    def speed(macs: float) -> float:
        return (1 + 2 * 3.0) / (0.5 + 1.5 * macs)

    first = nearer([3.0], [speed(3.0)])
    assert first == pytest.approx(3.0 * speed(3.0))
    second = nearer([3.0, first], [speed(3.0), speed(first)])
    assert speed(second) == pytest.approx(1.0)
    assert nearer([3.0, 3.1], [1.1, 1.2]) == pytest.approx(3.1 * 1.2)  # more work, and faster: noise
