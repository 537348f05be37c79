"""Ranges: counts that do not depend on batches, and thresholds on distributions whose answer is known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from lifedeploy.calibration import ranges
from lifedeploy.calibration.ranges import Counted, TensorStatistics
from lifedeploy.errors import EngineError


def counted(values, parts=1, **options):
    statistics = TensorStatistics(**options)
    for part in np.array_split(values, parts):
        statistics.add(part)
    return statistics


@pytest.fixture
def normal():
    return np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)


@pytest.mark.parametrize("parts", [2, 7, 40])
def test_counts_do_not_depend_on_batches_or_their_order(normal, parts):
    values = normal * np.linspace(0.01, 30, len(normal), dtype=np.float32)[:, None]
    once, often, backwards = counted(values), counted(values, parts), counted(values[::-1], parts)
    for other in (often, backwards):
        assert (other.limit, other.largest) == (once.limit, once.largest)
        # Which values are counted depends on where a batch begins, so shares are compared, by their sums.
        shares = (np.cumsum(part.counts) / part.counts.sum() for part in (once, other))
        assert np.abs(np.subtract(*shares)).max() < 0.01
        assert other.counts.sum() == pytest.approx(values.size / 5, rel=0.01)
    assert np.log2(once.limit) % 1 == 0
    assert once.largest <= once.limit < 2 * once.largest


def test_nothing_but_zeros():
    statistics = counted(np.zeros((3, 4), np.float32))
    assert [method(statistics) for method in ranges.THRESHOLDS.values()] == [0, 0, 0]


@pytest.mark.parametrize("width", [10, 35, 64])
def test_every_channel_is_counted(width):
    """Were every fifth value taken of a multiple of five, most channels would never be."""
    values = np.full((200, width), 0.001, np.float32)
    values[:, 1] = 0.9
    counts = counted(values, 3).counts
    assert counts[1000:].sum() / counts.sum() == pytest.approx(1 / width, rel=0.1)


def test_channels(normal):
    normal[:, 3] *= 100
    statistics = counted(normal, 5, per_channel=True)
    np.testing.assert_array_equal(statistics.channels, np.abs(normal).max(axis=0))


def test_minmax_is_the_largest(normal):
    assert ranges.minmax(counted(normal, 3)) == np.abs(normal).max()


def test_percentile_is_numpys(normal):
    found = ranges.percentile(counted(normal, 3))
    assert found == pytest.approx(np.percentile(np.abs(normal), ranges.PERCENTILE), rel=0.02)
    assert found < np.abs(normal).max()


def test_entropy_gives_up_a_single_outlier_and_keeps_a_flat_distribution(normal):
    normal[0, 0] = 60
    assert 3 < ranges.entropy(counted(normal, 3)) < 15
    flat = np.linspace(-1, 1, 100_000, dtype=np.float32)
    assert ranges.entropy(counted(flat, 3)) > 0.97


@pytest.mark.parametrize("values", [np.ones(1000), np.linspace(0.5, 1, 100_000)])
def test_entropy_keeps_what_has_nothing_near_zero(values):
    assert ranges.entropy(counted(values.astype(np.float32), 3)) > 0.97


def test_what_is_not_finite_is_refused():
    with pytest.raises(EngineError, match="NaN or infinite"):
        counted(np.array([1, np.nan], np.float32))


def test_statistics_are_read_back(normal):
    before = counted(normal, 2, per_channel=True)
    after = TensorStatistics.of(msgspec.convert(before.to_dict(), Counted))
    assert (after.limit, after.largest) == (before.limit, before.largest)
    np.testing.assert_array_equal(after.counts, before.counts)
    np.testing.assert_allclose(after.channels, before.channels)
