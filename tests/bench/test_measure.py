"""Rounds in turn, on a clock that we hold."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.engines.lanes import DeviceLane, Lane, WithoutCopies


@pytest.fixture(autouse=True)
def _short_rounds() -> None:
    """Here rounds are as long as in a benchmark."""


class Clock:
    """Time passes only when a lane infers."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TimedLane(Lane):
    """Takes the seconds it is told to, and writes down that it ran."""

    def __init__(self, clock, name, seconds, log):
        super().__init__({}, {})
        self.clock, self.name, self.log = clock, name, log
        self.seconds = seconds if callable(seconds) else lambda: seconds

    def infer(self):
        self.clock.now += self.seconds()
        self.log.append(self.name)


def contest(seconds, batch=4):
    clock, log = Clock(), []
    contenders = [
        Contender(name=name, batch=batch, lanes=(TimedLane(clock, name, s, log),)) for name, s in seconds.items()
    ]
    return clock, log, contenders


def test_ratios_and_rates_are_those_of_the_clock():
    clock, _, contenders = contest({"dense": 0.6, "life": 0.4})
    samples = measure(contenders, Stop(budget_s=100), clock=clock)
    assert samples.ratio("life", "dense").median == pytest.approx(1.5)
    assert samples.turns["dense"][0].images_per_s == pytest.approx(4 / 0.6)
    assert samples.count == 7  # tight at once: the least number of rounds


def test_contenders_take_turns_and_the_order_is_reversed_every_other_round():
    clock, log, contenders = contest({"a": 2.0, "b": 2.0, "c": 2.0})
    measure(contenders, Stop(budget_s=1000, min_rounds=3), clock=clock)
    warm_up = ["a", "a", "b", "b", "c", "c"]
    assert log[:6] == warm_up
    assert log[6:] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_a_drift_of_the_machine_does_not_move_the_ratio():
    state = {"slow": 1.0}

    def drifting(base):
        def seconds():
            state["slow"] *= 1.01
            return base * state["slow"]

        return seconds

    clock, _, contenders = contest({"dense": drifting(0.3), "life": drifting(0.2)})
    samples = measure(contenders, Stop(budget_s=60, min_rounds=10), clock=clock)
    assert samples.ratio("life", "dense").median == pytest.approx(1.5, rel=0.01)


def test_short_requests_are_repeated_until_a_round_can_be_timed():
    clock, _, contenders = contest({"dense": 0.002, "life": 0.001})
    samples = measure(contenders, Stop(budget_s=100), clock=clock)
    assert all(len(turn.latencies_s) == 200 for turn in samples.turns["life"])  # 0.2 s of the faster one
    assert samples.turns["life"][0].latencies_s[0] == pytest.approx(0.001)


def test_the_budget_ends_it_but_never_before_three_rounds():
    noise = iter([1.0, 1.0] + [1.0, 3.0] * 100)
    clock, _, contenders = contest({"dense": lambda: next(noise), "life": 1.0})
    samples = measure(contenders, Stop(budget_s=20), clock=clock)
    assert 3 <= samples.count < 10
    assert clock.now < 25
    clock, _, contenders = contest({"dense": 100.0, "life": 100.0})
    assert measure(contenders, Stop(budget_s=1), clock=clock).count == 3


def test_progress_is_told_and_ends_at_all_of_it():
    told = []
    clock, _, contenders = contest({"dense": 1.0, "life": 0.5})
    measure(contenders, Stop(budget_s=100), clock=clock, progress=told.append)
    assert [step.detail for step in told] == ["1 round", *(f"{rounds} rounds" for rounds in range(2, len(told) + 1))]
    assert all(0 <= step.share <= 1 for step in told)


def test_lanes_of_a_contender_run_at_the_same_time_and_a_failure_in_one_surfaces():
    class Broken(Lane):
        def infer(self):
            raise RuntimeError("out of memory")

    clock, log = Clock(), []
    two = Contender(name="life", batch=1, lanes=(TimedLane(clock, "one", 1.0, log), TimedLane(clock, "two", 1.0, log)))
    samples = measure([two], Stop(budget_s=50), clock=clock)
    assert samples.turns["life"][0].images == 2
    assert {"one", "two"} <= set(log)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure([Contender(name="life", batch=1, lanes=(Broken({}, {}), Broken({}, {})))], Stop(budget_s=50))


class OnDevice(TimedLane, DeviceLane):
    """Copies take as long as computing does; its own clock is a tenth fast."""

    def compute(self):
        self.clock.now += self.seconds() / 2

    def device_ms(self, *, copies):
        return self.seconds() / (1 if copies else 2) * 900


def test_a_device_is_measured_with_and_without_copies_and_by_its_own_clock():
    clock, log = Clock(), []
    lane = OnDevice(clock, "life", 0.4, log)
    both = [
        Contender(name="life", batch=4, lanes=(lane,)),
        Contender(name="life, without copies", batch=4, lanes=(WithoutCopies(lane),)),
    ]
    samples = measure(both, Stop(budget_s=100), clock=clock)
    assert samples.ratio("life, without copies", "life").median == pytest.approx(2)
    assert samples.turns["life"][0].device_ms == pytest.approx((360,))
    assert samples.turns["life, without copies"][0].device_ms == pytest.approx((180,))


def test_the_ratio_that_counts_is_to_the_own_reference():
    """Two that are slowed down together have a tight ratio, whatever they are beside a third."""

    def noisy(seconds):
        calls = iter(range(10**6))
        return lambda: seconds * (1 + next(calls) * 37 % 11)

    def rounds(against):
        clock, _, contenders = contest({"a": 0.5, "b": noisy(0.5), "c": noisy(0.25)})
        first, second, third = (replace(one, against=other) for one, other in zip(contenders, against, strict=True))
        return measure([first, second, third], Stop(budget_s=1000, max_rounds=40), clock=clock).count

    assert rounds(("a", "b", "b")) == 7
    assert rounds(("a", "a", "a")) == 40


def test_a_lane_in_company_keeps_its_thread():
    seen = {}

    class Watched(OnDevice):
        def infer(self):
            seen.setdefault(self.name, set()).add(threading.get_ident())
            super().infer()

        compute = device_ms = lambda self, **how: self.infer() or 1.0

    clock, log = Clock(), []
    lanes = tuple(Watched(clock, name, 0.5, log) for name in ("one", "two"))
    both = [
        Contender(name="with", batch=1, lanes=lanes),
        Contender(name="without", batch=1, lanes=tuple(WithoutCopies(lane) for lane in lanes)),
    ]
    seen.clear()  # each was asked once when it was wrapped
    measure(both, Stop(budget_s=100), clock=clock)
    assert [len(threads) for threads in seen.values()] == [1, 1]
    assert not seen["one"] & seen["two"]


def test_a_slow_team_does_not_make_as_many_requests_as_a_fast_one():
    clock, _, contenders = contest({"a dense": 0.002, "a life": 0.001, "b dense": 0.4, "b life": 0.1})
    made = [replace(one, team=one.name[0], against=f"{one.name[0]} dense", base="a dense") for one in contenders]
    samples = measure(made, Stop(budget_s=100), clock=clock)
    assert {name: len(turns[0].latencies_s) for name, turns in samples.turns.items()} == {
        "a dense": 200,
        "a life": 200,
        "b dense": 2,
        "b life": 2,
    }
    assert samples.ratio("b life", "b dense").median == pytest.approx(4)
    assert samples.ratio("b life", "a dense").median == pytest.approx(0.02)


def test_the_ratio_to_the_base_has_to_be_tight_too():
    """Two that are slowed down together have a tight ratio, but not to a third."""

    def noisy(seconds):
        calls = iter(range(10**6))
        return lambda: seconds * (1 + next(calls) * 37 % 11)

    def rounds(base):
        clock, _, contenders = contest({"a": 0.5, "b": noisy(0.5), "c": noisy(0.25)})
        made = [replace(one, against=other, base=base) for one, other in zip(contenders, "abb", strict=True)]
        return measure(made, Stop(budget_s=1000, max_rounds=40), clock=clock).count

    assert rounds("") == 7
    assert rounds("a") == 40
