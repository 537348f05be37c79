"""All schedules of few cuts: none is passed over, and each is worth what its layers are."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lifedeploy.schedule import Schedule
from lifedeploy.tuning.front import MOST_CUTS, Front, Tables

DEPTH, COUNTS = 6, (16, 12, 9, 4, 2)


def tables(seed=0, ordering=0.01, slicing=0.002):
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(0.02, 0.17, (DEPTH, len(COUNTS))), axis=1)[:, ::-1]
    loss = np.sort(rng.uniform(0, 0.2, (DEPTH, len(COUNTS))), axis=1)
    loss[:, 0] = 0
    return Tables(counts=COUNTS, time=time, loss=loss, ordering=ordering, slicing=slicing)


def worth(table, schedule):
    places = [COUNTS.index(tokens) for tokens in schedule.tokens]
    later = len(schedule.drop_layers) - 1
    time = sum(table.time[layer, place] for layer, place in enumerate(places))
    return time + table.ordering + table.slicing * later, sum(table.loss[layer, p] for layer, p in enumerate(places))


def every_schedule(base):
    for cuts in range(MOST_CUTS):
        for later in combinations(range(base + 1, DEPTH), cuts):
            for counts in combinations(COUNTS, cuts + 1):
                if counts != (16,):
                    yield Schedule.from_counts(16, DEPTH, counts, (base, *later))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bases", [(2,), (1, 3, 5)])
def test_the_best_are_the_best_of_all(seed, bases):
    given = {base: tables(seed + base) for base in bases}
    front = Front(given)
    all_there_are = [(*worth(given[base], it), it) for base in bases for it in every_schedule(base)]
    assert front.looked_at == len(all_there_are)
    best = front.best()
    for choice in best:
        assert worth(given[choice.schedule.base_layer], choice.schedule) == pytest.approx((choice.time, choice.loss))
    points = {(round(choice.time, 9), round(choice.loss, 9)) for choice in best}
    undominated = {
        (round(time, 9), round(loss, 9))
        for time, loss, _ in all_there_are
        if not any(t <= time and x <= loss and (t, x) != (time, loss) for t, x, _ in all_there_are)
    }
    assert points == undominated
    assert [choice.time for choice in best] == sorted(choice.time for choice in best)
    limit = best[len(best) // 2].loss
    assert front.fastest(limit, 1)[0].time == pytest.approx(min(t for t, x, _ in all_there_are if x <= limit + 1e-12))
    budget = best[len(best) // 2].time
    assert front.least_loss(budget, 1)[0].loss == pytest.approx(
        min(x for t, x, _ in all_there_are if t <= budget + 1e-12)
    )


def test_the_next_best_come_after_it_and_differ():
    front = Front({2: tables()})
    several = front.fastest(0.3, 5)
    assert len({choice.words for choice in several}) == 5
    assert [choice.time for choice in several] == sorted(choice.time for choice in several)
    assert all(choice.loss <= 0.3 + 1e-9 for choice in several)
    assert front.fastest(-1, 3) == () and front.least_loss(0.0, 3) == ()


def test_a_cut_that_costs_more_than_it_saves_is_in_no_schedule():
    dear = Front({2: tables(slicing=10.0)})
    assert {len(choice.schedule.drop_layers) for choice in dear.best() if choice.time < 1} == {1}


def test_the_first_cut_may_only_order():
    counts = {choice.schedule.counts[0] for choice in Front({1: tables()}).best()}
    assert 16 in counts


def test_words_say_counts_and_layers():
    choice = Front({2: tables()}).fastest(10, 1)[0]
    assert choice.words == "2 tokens after layer 2"
