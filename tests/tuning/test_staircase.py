"""Where an engine is measured, and what is made of that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy.tuning.staircase import JUMP, MOST_EDGES, MOST_PROBES, Staircase, first_counts, next_counts


def measured(time, patches=196, prefix=1, group=5):
    """All counts that are measured of an engine whose time is a function of tokens, relative to all of them."""
    first = first_counts(patches, prefix)
    times = {count: time(count) / time(patches) for count in first}
    while counts := next_counts(first, times, group):
        assert len(counts) <= group and not set(counts) & set(times)
        times |= {count: time(count) / time(patches) for count in counts}
    return times


def stairs(width, prefix):
    """An engine that computes whole multiples of ``width`` tokens."""
    return lambda count: 20 + -(-(count + prefix) // width) * width


@pytest.mark.parametrize(
    ("patches", "prefix", "counts"),
    [
        (196, 1, (196, 191, 175, 159, 143, 127, 111, 95, 79, 63, 47, 31, 15)),
        (256, 5, (256, 251, 235, 219, 203, 187, 171, 155, 139, 123, 107, 91, 75, 59, 43, 27, 11)),
        (16, 1, (16, *range(15, 0, -1))),
    ],
)
def test_whole_steps_are_measured_first(patches, prefix, counts):
    assert first_counts(patches, prefix) == counts


def test_of_many_patches_the_steps_are_wider():
    counts = first_counts(1369, 5)
    assert len(counts) <= 18 and all((count + 5) % 96 == 0 for count in counts[1:])


@pytest.mark.parametrize(
    ("width", "prefix", "edges"),
    [
        (32, 1, (196, 191, 159, 127, 95, 63, 31)),
        (16, 1, (196, 191, 175, 159, 143, 127, 111, 95, 79, 63, 47, 31, 15)),
        (32, 0, (196, 192, 160, 128, 96, 64, 32)),  # off by one from where it is looked first
        (24, 9, (196, 183, 159, 135, 111, 87, 63, 39, 15)),  # and in the middle of nowhere
    ],
)
def test_stairs_are_met_wherever_they_are(width, prefix, edges):
    times = measured(stairs(width, prefix))
    assert len(times) <= MOST_PROBES
    assert set(edges) <= set(Staircase(times).edges)


def test_a_slope_is_told_from_a_stair_by_a_few_measurements():
    times = measured(lambda count: 20 + count)
    assert len(times) == 13 + 3 + 3  # a neighbour and a middle in three intervals
    assert Staircase(times).jump < JUMP


def test_nothing_is_looked_for_where_nothing_rises():
    assert next_counts((10, 5, 1), {10: 1.0, 5: 0.99, 1: 0.98}, 5) == ()


@given(st.lists(st.floats(0.1, 2), min_size=2, max_size=30), st.randoms())
def test_the_fit_never_falls_and_is_the_nearest_that_does_not(values, random):
    fit = np.array(Staircase(dict(enumerate(values, start=1))).times)
    assert (np.diff(fit) >= 0).all() and min(values) <= fit[0] and fit[-1] <= max(values)
    assert np.isclose(fit.sum(), np.sum(values))
    other = np.sort([random.uniform(0.1, 2) for _ in values])
    error = np.square(fit - values).sum()
    assert error <= np.square(other - values).sum() + 1e-9


def test_edges_are_few_and_the_cheapest():
    rng = np.random.default_rng(1)
    times = {count: count + (30 if count % 7 else 0) + rng.uniform(0, 0.1) for count in range(1, 60)}
    edges = Staircase({count: time / 100 for count, time in times.items()}).edges
    assert len(edges) <= MOST_EDGES and edges[0] == 59 and list(edges) == sorted(edges, reverse=True)


def test_between_two_measurements_it_is_a_line():
    fit = Staircase({10: 0.5, 20: 0.7, 30: 1.0})
    assert (fit.time(15), fit.time(30), fit.time(5)) == (pytest.approx(0.6), 1.0, 0.5)
