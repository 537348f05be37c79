"""Intervals of medians: exact coverage, checked against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.bench.stats import median_interval


def test_the_interval_is_the_whole_range_below_six_values():
    interval = median_interval([3.0, 1.0, 2.0])
    assert (interval.median, interval.low, interval.high) == (2.0, 1.0, 3.0)
    assert interval.coverage == pytest.approx(1 - 2 / 2**3)


def test_six_values_are_the_first_to_reach_95_percent():
    assert median_interval([1, 2, 3, 4, 5]).coverage == pytest.approx(0.9375)
    assert median_interval([1, 2, 3, 4, 5, 6]).coverage == pytest.approx(0.96875)


def test_the_textbook_case():
    # n = 10: the 2nd and 9th value cover the median with 97.85 %; the 3rd and 8th only with 89.06 %.
    interval = median_interval(list(range(1, 11)))
    assert (interval.low, interval.high) == (2, 9)
    assert interval.coverage == pytest.approx(0.9785, abs=1e-4)


@pytest.mark.parametrize("count", [6, 15, 40])
def test_coverage_holds_for_a_skewed_distribution(count):
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(2000, count))
    hits = [interval.low <= np.log(2) <= interval.high for interval in map(median_interval, draws)]
    assert np.mean(hits) >= 0.94


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
