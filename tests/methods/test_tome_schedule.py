"""How many tokens ToMe merges where: by r and its inflection as its authors have them, by a list, by a keep rate."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from lifedeploy import methods
from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.model.request import ModelRequest
from lifedeploy.schedule import Schedule

TOME = methods.get("tome")


def merged(schedule: Schedule) -> list[int]:
    """Tokens merged in each layer."""
    return [schedule.tokens[layer - 1] - schedule.after(layer) for layer in range(1, schedule.depth + 1)]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [13] * 12),
        ({"r": "13"}, [13] * 12),
        ({"r": "8"}, [8] * 12),
        ({"r": "0"}, [0] * 12),
        # From 2r to 0, and from 0 to 2r: 26 / 11 a layer, cut down to whole tokens.
        ({"inflect": -1.0}, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]),
        ({"r": "11", "inflect": -1.0}, [22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]),
        ({"r": "11", "inflect": 1.0}, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        # Half of the way: from 16.5, cut down, to what is then as far on the other side of 11.
        ({"r": "11", "inflect": -0.5}, [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 6]),
        ({"r": "20,10"}, [20, 10, *[0] * 10]),
        ({"r": "1,2,3,4,5,6,7,8,9,10,11,12"}, list(range(1, 13))),
        ({"r": "0,0,7"}, [0, 0, 7, *[0] * 9]),
    ],
)
def test_numbers_are_those_that_the_authors_make_of_r(options, numbers):
    schedule = TOME.make_schedule(196, 12, options=options)
    assert merged(schedule) == numbers
    assert (schedule.keep_rate, schedule.drop_layers) == (None, tuple(range(1, 13)))
    assert schedule.after(12) == 196 - sum(numbers)


@pytest.mark.parametrize("rate", [1.0, 0.9, 0.7, 0.5, 0.48])
@pytest.mark.parametrize("patches", [196, 64, 729])
@pytest.mark.parametrize("depth", [6, 12, 24])
def test_at_a_keep_rate_as_much_is_left_as_of_methods_that_drop_three_times(rate, patches, depth):
    """ρ³ N, and as many go in each layer as in any other."""
    try:
        schedule = TOME.make_schedule(patches, depth, keep_rate=rate)
    except ScheduleError as error:  # half of what is left is the most there can be
        assert "can be merged" in error.message and rate < 0.6
        return
    numbers = merged(schedule)
    assert schedule.after(depth) == round(patches * rate**3)
    assert max(numbers) - min(numbers) <= 1
    assert schedule.keep_rate == rate


def test_deit_s_at_keep_rate_07():
    schedule = TOME.make_schedule(196, 12, keep_rate=0.7)
    assert (schedule.tokens[0], schedule.after(12)) == (196, 67)  # as of the others, after their last drop
    assert sum(merged(schedule)) == 129 and set(merged(schedule)) == {10, 11}


def test_drop_layers_are_those_that_merge():
    schedule = TOME.make_schedule(196, 12, drop_layers=(4, 7, 12), options={"r": "30"})
    assert (schedule.drop_layers, schedule.counts, schedule.last) == ((4, 7, 12), (166, 136, 106), 106)
    schedule = TOME.make_schedule(196, 12, drop_layers=(4, 7, 10), options={"r": "30,5"})
    assert (schedule.counts, schedule.last) == ((166, 161, 161), None)
    evenly = TOME.make_schedule(196, 12, drop_layers=(4, 7, 10), keep_rate=0.7)
    assert evenly.counts == (153, 110, 67)


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (
            {"options": {"r": "200"}},
            "r 200 merges 2400 tokens in 12 layers, and there are 196",
            "--r 16 at most, in every layer",
        ),
        (
            {"options": {"r": "17"}},
            "r 17 merges 204 tokens in 12 layers, and there are 196",
            "--r 16 at most, in every layer",
        ),
        (
            {"options": {"r": ",".join(["16"] * 12)}},
            "layer 12 has 20 patch tokens, of which at most 10 can be merged, and 16 are asked for",
            "a smaller --r",
        ),
        (
            {"options": {"r": ",".join(["1"] * 13)}},
            "r has 13 numbers, for 12 layers that merge",
            "a single number, or 12 at most, the first layer's first",
        ),
        (
            {"options": {"r": "20,10", "inflect": -1.0}},
            "inflect says how r changes from layer to layer, and r has a number for each already",
            "--inflect with a single number as --r, or no --inflect",
        ),
        ({"options": {"r": "13"}, "keep_rate": 0.7}, "r 13 and keep rate 0.7 both", "--r and --inflect, or --rho"),
        (
            {"options": {"inflect": 0.5}, "keep_rate": 0.7},
            "inflect 0.5 and keep rate 0.7 both say how many tokens",
            "--r and --inflect, or --rho",
        ),
        (
            {"counts": (100, 50)},
            "tome takes no token counts: it merges as many tokens in every layer as 13 of 196 in 12",
            "--rho",
        ),
        ({"drop_layers": (0, 4)}, "drop layer 0 is out of range", None),
        ({"drop_layers": (13,)}, "drop layer 13 is out of range", None),
        (
            {"keep_rate": 0.4},
            "layer 12 has 28 patch tokens, of which at most 14 can be merged, and 15 are asked for",
            "a larger --rho",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(words, said, hint):
    with pytest.raises(ScheduleError, match=re.escape(said)) as refused:
        TOME.make_schedule(196, 12, **words)
    assert refused.value.hint == hint


@pytest.mark.parametrize("r", ["-1", "1.5", "13,", ",13", "13;14", " 13", "13\n", "a", "123456", "٣"])
def test_what_is_no_number_or_list_of_them_is_refused(r):
    with pytest.raises(UsageError, match="r is "):
        TOME.settle({"r": r})


def test_a_single_r_merges_half_where_there_is_no_more():
    """As the authors have it, whose own settings need it: DeiT-S r 16, ViT-B at 384 px r 45, ViT-L r 8."""
    tome = methods.get("tome")
    assert tome.make_schedule(196, 12, options={"r": "16"}).counts[-3:] == (36, 20, 10)
    assert tome.make_schedule(576, 12, options={"r": "45"}).counts[-3:] == (126, 81, 41)
    assert tome.make_schedule(196, 24, options={"r": "8"}).counts[-3:] == (20, 12, 6)


def test_weights_and_what_is_asked_for_say_the_budget_together_only_where_they_agree():
    def schedule(trained, trained_options, **asked):
        row = methods.get("tome")
        known = row.make_schedule(196, 12, options=trained_options, **trained)
        spec = SimpleNamespace(method="tome", options=row.plain_options(trained_options))
        request = ModelRequest(backbone="deit_s", method="tome", **asked)
        return request.schedule(196, 12, known, request.all_options(spec)).counts[-1]

    assert schedule({"keep_rate": 0.7}, {}) == 67  # as trained
    assert schedule({"keep_rate": 0.7}, {}, options={"r": "8"}) == 100  # r is asked for, and not the weights' rate
    assert schedule({}, {"r": "12"}) == 52
    assert schedule({}, {"r": "12"}, keep_rate=0.7) == 67  # a rate is asked for, and not the weights' r


@pytest.mark.parametrize("method", ["life", "evit", "topk", "dynamicvit", "avit-ranked", "evo-vit"])
def test_weights_of_tome_bring_its_layers_to_no_other_method(method):
    tome, row = methods.get("tome"), methods.get(method)
    assert not row.keeps_schedule_of(tome) and not tome.keeps_schedule_of(row)
    assert row.keeps_schedule_of(row) and row.keeps_schedule_of(None)
