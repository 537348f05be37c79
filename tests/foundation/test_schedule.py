"""Schedules are those of the method's table; lives match counting by hand; the impossible is refused."""

from __future__ import annotations

import math
import re
import statistics

import pytest

from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.schedule import Schedule, default_drop_layers

# Keep rate → tokens in layers 1-4, 5-7, 8-10, 11-12. What they cost is in test_cost.py.
TABLE = {
    0.9: (196, 176, 159, 143),
    0.8: (196, 157, 125, 100),
    0.7: (196, 137, 96, 67),
}
N, T = 196, 12  # DeiT-S


# --- the table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", TABLE)
def test_tokens_per_layer_are_those_of_the_table(rate):
    stages = TABLE[rate]
    schedule = Schedule.from_keep_rate(N, T, rate)
    assert schedule.tokens == (stages[0],) * 4 + (stages[1],) * 3 + (stages[2],) * 3 + (stages[3],) * 2
    assert schedule.drop_layers == (4, 7, 10)
    assert schedule.counts == stages[1:]
    assert schedule.keep_rate == rate
    assert (schedule.patches, schedule.depth, schedule.base_layer, schedule.prunes) == (N, T, 4, True)


@pytest.mark.parametrize("rate", TABLE)
def test_counts_are_the_rounded_powers_of_the_keep_rate(rate):
    assert Schedule.from_keep_rate(N, T, rate).counts == tuple(round(N * rate**k) for k in (1, 2, 3))


# --- lives ------------------------------------------------------------------------------------------------------


def test_mean_and_deviation_of_lives_are_those_of_the_method():
    schedule = Schedule.from_keep_rate(N, T, 0.7)
    assert schedule.mean_life == pytest.approx(8.25, abs=0.005)
    assert schedule.std_life == pytest.approx(3.32, abs=0.005)


@pytest.mark.parametrize(
    "schedule",
    [
        *(Schedule.from_keep_rate(N, T, rate) for rate in (1.0, 0.9, 0.8, 0.7, 0.5)),
        Schedule.from_counts(49, 6, (40, 40, 3), (1, 2, 5)),
        Schedule.from_counts(16, 24, (1,), (23,)),
        Schedule.dense(10, 3),
    ],
)
def test_mean_and_deviation_of_lives_match_writing_every_life_down(schedule):
    # Patch i of a ranking takes part in every layer that has more than i patches.
    lives = [sum(tokens > i for tokens in schedule.tokens) for i in range(schedule.patches)]
    assert schedule.mean_life == pytest.approx(statistics.fmean(lives), abs=1e-12)
    assert schedule.std_life == pytest.approx(statistics.pstdev(lives), abs=1e-7)


# --- making schedules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(12, (4, 7, 10)), (24, (8, 14, 20)), (6, (2, 4, 5)), (4, (1, 2, 3)), (2, (1,)), (1, ())],
)
def test_default_drop_layers_keep_their_relative_depth(depth, layers):
    assert default_drop_layers(depth) == layers
    assert Schedule.from_keep_rate(N, depth, 0.7).drop_layers == layers


@pytest.mark.parametrize(
    ("of_twelve", "depth", "layers"),
    [((3, 6, 9), 12, (3, 6, 9)), ((3, 6, 9), 24, (6, 12, 18)), ((3, 6, 9), 4, (1, 2, 3)), ((1, 2, 12), 6, (1,))],
)
def test_a_method_may_have_drop_layers_of_its_own(of_twelve, depth, layers):
    # Of 6 layers 0.5 is rounded to 0, which is none, and after the last one nothing is left to drop for.
    assert default_drop_layers(depth, of_twelve) == layers


def test_counts_make_the_same_tokens_as_the_keep_rate_that_gives_them():
    by_rate = Schedule.from_keep_rate(N, T, 0.7)
    by_counts = Schedule.from_counts(N, T, (137, 96, 67))
    assert by_counts.tokens == by_rate.tokens
    assert by_counts.keep_rate is None


def test_a_keep_rate_of_one_drops_nothing():
    schedule = Schedule.from_keep_rate(N, T, 1.0)
    assert schedule.tokens == Schedule.dense(N, T).tokens
    assert not schedule.prunes
    assert (schedule.mean_life, schedule.std_life) == (T, 0.0)


@pytest.mark.parametrize(("layer", "left"), [(1, 196), (4, 137), (7, 96), (9, 96), (10, 67), (12, 67)])
def test_after_says_how_many_go_on(layer, left):
    assert Schedule.from_keep_rate(N, T, 0.7).after(layer) == left


def test_dropping_after_the_first_and_before_the_last_layer_is_allowed():
    assert Schedule.from_counts(8, 3, (4, 2), (1, 2)).tokens == (8, 4, 2)


# --- refusals ---------------------------------------------------------------------------------------------------

REFUSED_RATES = [
    # keep rate, drop layers, found, allowed
    (0.0, None, "keep rate 0 ", "(0, 1]"),
    (-0.5, None, "keep rate -0.5 ", "(0, 1]"),
    (1.01, None, "keep rate 1.01 ", "(0, 1]"),
    (70.0, None, "keep rate 70 ", "(0, 1]"),
    (math.nan, None, "keep rate nan ", "(0, 1]"),
    (math.inf, None, "keep rate inf ", "(0, 1]"),
    (-math.inf, None, "keep rate -inf ", "(0, 1]"),
    (0.1, None, "keep rate 0.1 leaves 0 of 196 patch tokens after layer 10", "at least 1"),
    (0.001, (4,), "keep rate 0.001 leaves 0 of 196 patch tokens after layer 4", "at least 1"),
    (0.7, (0,), "drop layer 0 ", "1 to 11"),
    (0.7, (-1, 4), "drop layer -1 ", "1 to 11"),
    (0.7, (4, 13), "drop layer 13 ", "1 to 11"),
    (0.7, (7, 4, 10), "drop layers 7, 4, 10 ", "greater than the one before"),
    (0.7, (4, 4, 10), "drop layers 4, 4, 10 ", "greater than the one before"),
]


def assert_refusal(error: ScheduleError, found: str, allowed: str) -> None:
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert "\n" not in error.message
    assert found in error.message
    assert allowed in error.message
    assert str(error) == error.message


@pytest.mark.parametrize(("rate", "layers", "found", "allowed"), REFUSED_RATES)
def test_a_keep_rate_that_cannot_be_is_refused(rate, layers, found, allowed):
    with pytest.raises(ScheduleError) as refused:
        Schedule.from_keep_rate(N, T, rate, layers)
    assert_refusal(refused.value, found, allowed)


REFUSED_COUNTS = [
    # counts, drop layers, found, allowed
    ((137, 150, 67), None, "grow from 137 to 150 after layer 7", "stay or fall"),
    ((197, 96, 67), None, "grow from 196 to 197 after layer 4", "stay or fall"),
    ((137, 96, 0), None, "token count 0 after layer 10", "at least 1"),
    ((137, -1, -2), None, "token count -1 after layer 7", "at least 1"),
    ((137, 96), None, "2 token counts (137, 96) for 3 drop layers (4, 7, 10)", "one count per drop layer"),
    ((137, 96, 67, 50), None, "4 token counts (137, 96, 67, 50) for 3 drop layers", "one count per drop layer"),
    ((), None, "0 token counts", "one count per drop layer"),
    ((137,), (0,), "drop layer 0 ", "1 to 11"),
    ((137, 96), (7, 4), "drop layers 7, 4 ", "greater than the one before"),
    ((137, 96), (7, 7), "drop layers 7, 7 ", "greater than the one before"),
]


@pytest.mark.parametrize(("counts", "layers", "found", "allowed"), REFUSED_COUNTS)
def test_counts_that_cannot_be_are_refused(counts, layers, found, allowed):
    with pytest.raises(ScheduleError) as refused:
        Schedule.from_counts(N, T, counts, layers)
    assert_refusal(refused.value, found, allowed)


@pytest.mark.parametrize(
    ("tokens", "layers", "found", "allowed"),
    [
        ((), (), "no layers", ""),
        ((8, 4, 4), (), "change after layer 1", "not a drop layer"),
        ((8, 8, 4), (1,), "change after layer 2", "not a drop layer"),
        ((4, 8), (1,), "grow from 4 to 8 after layer 1", "stay or fall"),
        ((8, 0), (1,), "layer 2 would have 0 patch tokens", "at least 1"),
        ((8, 4), (2,), "drop layer 2 ", "1 to 1"),
    ],
)
def test_a_schedule_written_out_by_hand_is_checked_too(tokens, layers, found, allowed):
    with pytest.raises(ScheduleError) as refused:
        Schedule(tokens, layers)
    assert_refusal(refused.value, found, allowed)


def test_the_shortest_life_ends_at_the_first_drop_and_is_one_layer_where_there_is_none():
    assert Schedule.from_keep_rate(N, T, 0.7).shortest_life == 4
    assert Schedule.dense(N, T).shortest_life == 1


def test_a_schedule_without_drop_layers_has_no_base_layer():
    with pytest.raises(ScheduleError, match=re.escape("no layer to predict lives after")):
        _ = Schedule.dense(N, T).base_layer


# --- inside the last layer --------------------------------------------------------------------------------------


def test_tokens_may_leave_inside_the_last_layer():
    schedule = Schedule.from_counts(196, 4, (100, 50, 49), (2, 3, 4))
    assert (schedule.tokens, schedule.last) == ((196, 196, 100, 50), 49)
    assert [schedule.after(layer) for layer in (1, 2, 3, 4)] == [196, 100, 50, 49]
    assert (schedule.counts, schedule.leaving_layers) == ((100, 50, 49), (2, 3, 4))
    assert Schedule.from_counts(196, 4, (100, 100), (2, 4)).leaving_layers == (2,)
    assert Schedule.from_counts(16, 2, (9,), (2,)).prunes
    assert not Schedule.from_counts(16, 2, (16,), (2,)).prunes
    # Where none do, it says nothing of them.
    assert Schedule.from_counts(196, 4, (100,), (2,)).last is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (((16, 9), (1, 2), None, 10), "token counts grow from 9 to 10 after layer 2"),
        (((16, 9), (1,), None, 5), "token counts change after layer 2, which is not a drop layer"),
        (((16, 9), (1, 2), None, 0), "layer 2 would have 0 patch tokens; at least 1 is needed"),
        (((16, 9), (1, 3), None, 5), "drop layer 3 is out of range: this backbone has 2 layers, so 1 to 2 are allowed"),
        (((16, 9), (1, 2)), "drop layer 2 is out of range: this backbone has 2 layers, so 1 to 1 are allowed"),
    ],
)
def test_what_cannot_leave_the_last_layer_is_refused(words, said):
    with pytest.raises(ScheduleError, match=re.escape(said)):
        Schedule(*words)
