"""Goals, and what of a front comes near to them."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.bench.stats import Interval
from lifedeploy.errors import UsageError
from lifedeploy.schedule import Schedule
from lifedeploy.tuning.book import Divergence
from lifedeploy.tuning.choosing import (
    MOST_ASKED,
    Goal,
    ask_near_loss,
    best_of,
    candidates,
    keeps,
    require_within_front,
)
from lifedeploy.tuning.front import Choice, Front, Tables
from lifedeploy.tuning.report import Point, rank_correlation, warned_of

COUNTS = (16, 13, 11, 8, 6, 4, 2, 1)
BEFORE = Choice(Schedule.from_counts(16, 6, (11, 6), (2, 4)), 0.8, 0.2)


@pytest.fixture
def front():
    time = np.outer(np.full(6, 1 / 6), [count / 16 for count in COUNTS])
    loss = np.outer([0, 0, 1, 1, 1, 1], [(1 - count / 16) ** 2 / 4 for count in COUNTS])
    return Front({2: Tables(counts=COUNTS, time=time, loss=loss, ordering=0.01, slicing=0.001)})


def point(time, loss, *, over=1.1, kl=None, coverage=0.97, layers=(2,)):
    measured = Interval(1 / time, 0.99 / time, 1.01 / time, coverage)
    gained = Interval(over, over - 0.01, over + 0.01, coverage)
    true = None if kl is None else Divergence(kl=kl, agreement=1.0)
    return Point(
        counts=(5,), drop_layers=layers, time=time, loss=loss, true=true, measured=measured, over_before=gained
    )


@pytest.mark.parametrize("scale", [1.0, 0.01, 40.0])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_what_is_near_the_limit_is_asked_about_closely(front, scale, share):
    pool = front.best()
    limit = pool[round((len(pool) - 1) * share)].loss * scale
    asked = ask_near_loss(front, limit, lambda choice: choice.loss * scale)
    assert len(asked) <= MOST_ASKED and len({choice.words for choice, _ in asked}) == len(asked)
    kept = [choice for choice, loss in asked if loss <= limit]
    best = front.fastest(limit / scale, 1)[0]
    assert min(choice.time for choice in kept) == pytest.approx(best.time, rel=0.02)


def test_where_all_keep_the_limit_or_none_it_ends(front):
    pool = front.best()
    for limit, place in ((100.0, 0), (-1.0, -1)):
        asked = ask_near_loss(front, limit, lambda choice: choice.loss)
        assert pool[place] in [choice for choice, _ in asked] and len(asked) <= MOST_ASKED


def test_losses_that_do_not_rise_with_what_is_expected_end_too(front):
    for seed in range(20):
        noise = np.random.default_rng(seed)
        asked = ask_near_loss(front, 0.2, lambda choice, noise=noise: float(noise.uniform(0, 0.4)))
        assert 1 <= len(asked) <= MOST_ASKED


def test_small_fronts_are_asked_about_whole():
    for counts in ((2, 1), (3, 2, 1)):
        time = np.outer([0.5, 0.5], counts) / counts[0]
        loss = np.outer([0, 1], [0, *range(1, len(counts))])
        tables = Tables(counts=counts, time=time, loss=loss.astype(float), ordering=0.0, slicing=0.0)
        small = Front({1: tables})
        asked = ask_near_loss(small, 0.5, lambda choice: choice.loss)
        assert len(asked) == len(small.best())


def test_where_fewer_tokens_are_no_faster_the_model_stays_as_it_is():
    """A staircase of one stair, as of a tiny model on a busy machine."""
    flat = Front({1: Tables(counts=(2,), time=np.full((2, 1), 0.5), loss=np.zeros((2, 1)), ordering=0.0, slicing=0.0)})
    assert flat.best() == ()
    for goal, ask in ((Goal(), None), (Goal(), lambda choice: 0.1), (Goal(max_kl=0.5), lambda choice: 0.1)):
        require_within_front(flat, goal, 1.0)
        assert candidates(flat, goal, BEFORE, 1.0, ask) == []
    for goal in (Goal(speedup=1.2), Goal(latency_ms=3.0)):
        with pytest.raises(UsageError, match="is beyond what this engine has: fewer tokens make it no faster"):
            require_within_front(flat, goal, 1.0)


def test_without_images_the_fastest_of_no_more_loss_are_taken(front):
    chosen = candidates(front, Goal(), BEFORE, 10.0, None)
    assert len(chosen) == 3 and all(choice.loss <= BEFORE.loss + 1e-9 for choice in chosen)
    assert chosen[0] == front.fastest(BEFORE.loss, 1)[0]


@pytest.mark.parametrize("goal", [Goal(speedup=1.6), Goal(latency_ms=6.25)])
def test_of_a_limit_of_time_some_are_a_little_faster(front, goal):
    chosen = candidates(front, goal, BEFORE, 10.0, None)
    assert [choice.time <= 0.625 + 1e-9 for choice in chosen] == [True] * len(chosen)
    assert chosen[0] == front.least_loss(0.625, 1)[0] and min(choice.time for choice in chosen) <= 0.6
    asked = []

    def ask(choice):
        asked.append(choice)
        return -choice.loss  # true losses are the other way round

    turned = candidates(front, goal, BEFORE, 10.0, ask)
    assert len(asked) <= MOST_ASKED and turned[0].loss == max(choice.loss for choice in asked if choice.time <= 0.625)


def test_with_images_the_true_loss_of_the_model_as_it_is_is_the_limit(front):
    chosen = candidates(front, Goal(), BEFORE, 10.0, lambda choice: 0.1 * choice.loss if choice is not BEFORE else 0.03)
    assert chosen and all(0.1 * choice.loss <= 0.03 for choice in chosen)
    assert [choice.time for choice in chosen] == sorted(choice.time for choice in chosen)
    with pytest.raises(UsageError, match=r"--max-kl 0\.001 is beyond what dropping tokens allows: the least"):
        candidates(front, Goal(max_kl=0.001), BEFORE, 10.0, lambda choice: 1.0)


def test_what_is_faster_for_certain_takes_the_place():
    before = point(0.8, 0.3, over=1.0)
    assert best_of(before, [point(0.7, 0.3), point(0.75, 0.3)], Goal(), 1.0).time == 0.7
    assert best_of(before, [point(0.7, 0.3, over=1.005)], Goal(), 1.0) is before
    assert best_of(before, [point(0.7, 0.3, coverage=0.75)], Goal(), 1.0) is before  # too few rounds
    assert best_of(before, [], Goal(), 1.0) is before


def test_a_schedule_that_may_not_stay_does_not():
    before, other = point(0.8, 0.3, over=1.0), point(0.79, 0.3, over=1.0, layers=(3,))
    assert best_of(before, [other], Goal(), 1.0, may_stay=False) is other
    assert best_of(before, [other], Goal(speedup=1.2), 1.0, may_stay=False) is other


def test_of_what_keeps_a_limit_of_time_the_least_loss_is_taken():
    before = point(0.6, 0.9, over=1.0)
    slow, good, fast = point(0.7, 0.1), point(0.66, 0.2), point(0.6, 0.3)
    goal = Goal(latency_ms=6.66)
    assert best_of(before, [slow, good, fast], goal, 10.0) is good
    assert best_of(point(0.65, 0.1, over=1.0), [good], goal, 10.0).loss == 0.1  # what the model has, if it is better
    assert best_of(before, [slow], Goal(latency_ms=5), 10.0) is before  # nothing keeps it: the fastest
    assert not keeps(before, Goal(latency_ms=5), 10.0)


def test_of_what_keeps_a_limit_of_loss_the_fastest_is_taken():
    before = point(0.6, 0.9, over=1.0, kl=0.5)
    slower = [point(0.8, 0.1, over=0.8, kl=0.04), point(0.9, 0.1, over=0.7, kl=0.01)]
    assert best_of(before, slower, Goal(max_kl=0.05), 1.0).time == 0.8  # the model's own loses too much
    assert best_of(before, slower, Goal(max_kl=0.6), 1.0) is before


def test_warnings_say_what_is_wrong():
    before, other = point(0.8, 0.3, over=1.0), point(0.7, 0.3)
    assert warned_of(other, [other], before, missed="") == ()
    assert "it stays" in warned_of(before, [other], before, missed="")[0]
    assert "keeps the goal, that" in warned_of(other, [other], before, missed="that")[0]
    slow = point(1.05, 0.3)
    assert "not faster than the dense model for certain" in warned_of(slow, [slow], before, missed="")[0]
    off = Point(counts=(5,), drop_layers=(2,), time=0.5, loss=0.1, measured=Interval(1.9, 1.89, 1.91, 0.97))
    assert "takes 5.3% longer than expected" in warned_of(off, [off], before, missed="")[0]


@pytest.mark.parametrize(
    ("expected", "true", "rank"),
    [
        ([1, 2, 3], [10, 20, 50], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 1, 2, 2], [5, 6, 7, 8], 0.8944),
        ([1, 2], [1, 2], None),
    ],
)
def test_rank_correlation(expected, true, rank):
    assert rank_correlation(expected, true) == (rank if rank is None else pytest.approx(rank, abs=1e-4))
