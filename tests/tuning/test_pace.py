"""The time of a model under a schedule, after what was measured of its engine."""

from __future__ import annotations

import numpy as np
import pytest

from lifedeploy.schedule import Schedule
from lifedeploy.tuning.expected import ATTENTION, SINGLE_CUTS, Expected
from lifedeploy.tuning.pace import Pace
from lifedeploy.tuning.staircase import Staircase

STAIRS = Staircase({16: 1.0, 12: 0.7, 8: 0.5, 4: 0.3, 1: 0.2})
MACS = (30, 30, 30, 10)
SCHEDULE = Schedule.from_counts(16, 4, (12, 4), (1, 3))


def expected():
    table = np.linspace(1, 0, 17) * np.array([[0], [0.25], [0.25], [0.25]])
    return Expected(attention={1: table})


def test_layers_save_their_share_of_what_tokens_cost():
    pace = Pace(stairs=STAIRS, shares=(0.3, 0.3, 0.3, 0.1))
    assert pace.time(Schedule.dense(16, 4)) == pytest.approx(1)
    assert pace.time(SCHEDULE) == pytest.approx(0.3 + 0.6 * 0.7 + 0.1 * 0.3)


def test_what_was_measured_is_what_is_expected_of_it():
    pace = Pace.of(STAIRS, MACS, SCHEDULE, sliced=0.77, ordered=0.80, dense_ms=9)
    assert pace.slicing == pytest.approx(0.01) and pace.ordering == pytest.approx(0.04)
    assert pace.time(SCHEDULE) == pytest.approx(0.80)
    # Without the later cut it is one slice less.
    assert pace.time(Schedule.from_counts(16, 4, (12,), (1,))) == pytest.approx(0.3 + 0.7 * 0.7 + 0.04)


def test_a_first_cut_that_only_orders_is_one_slice_less():
    schedule = Schedule.from_counts(16, 4, (16, 12, 4), (1, 2, 3))
    pace = Pace.of(STAIRS, MACS, schedule, sliced=0.86, ordered=0.90, dense_ms=9)
    assert pace.time(schedule) == pytest.approx(0.90) and pace.slicing == pytest.approx((0.86 - 0.84) / 2)


def test_slicing_never_saves_time():
    pace = Pace.of(STAIRS, MACS, SCHEDULE, sliced=0.70, ordered=0.76, dense_ms=9)
    assert pace.slicing == 0 and pace.time(SCHEDULE) == pytest.approx(0.76)


def test_tables_are_of_the_edges():
    table = Pace(stairs=STAIRS, shares=(0.3, 0.3, 0.3, 0.1)).tables(expected(), 1)
    assert table.counts == STAIRS.edges == (16, 12, 8, 4, 1)
    np.testing.assert_allclose(table.time.sum(axis=0), [1.0, 0.7, 0.5, 0.3, 0.2])
    np.testing.assert_allclose(table.loss[:, 1], [0, 0.0625, 0.0625, 0.0625])


def test_a_price_has_the_loss_of_the_proxy_that_is_used():
    pace = Pace(stairs=STAIRS, shares=(0.3, 0.3, 0.3, 0.1))
    assert pace.price(SCHEDULE, expected()).loss == pytest.approx(0.25 * (4 + 4 + 12) / 16)
    cuts = Expected(
        attention=expected().attention, cuts=np.array([[0, 0], [0, 1], [0, 2], [0, 3.0]]), cut_counts=(16, 0)
    )
    assert pace.price(SCHEDULE, cuts).loss == pytest.approx((1 * 4 + 2 * 4 + 3 * 12) / 16)
    assert cuts.of(SCHEDULE) == {ATTENTION: pytest.approx(0.3125), SINGLE_CUTS: pytest.approx(3.0)}
    assert (expected().unit, cuts.unit) == (ATTENTION, SINGLE_CUTS)
