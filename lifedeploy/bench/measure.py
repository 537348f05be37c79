"""The measurement itself: contenders take turns, round by round, until their ratios are known well enough.

A round gives every contender of a team the same number of requests, one contender after the other, the order reversed
every other round; ratios are taken within rounds. What slows the machine down for a while then slows all contenders
alike. Teams differ in how many requests make a turn that can be timed: one runtime may be a hundred times another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain

from lifedeploy.bench.stats import Interval, median_interval
from lifedeploy.engines.lanes import DeviceLane, Lane, WithoutCopies
from lifedeploy.progress import Progress, Step, unwatched

Clock = Callable[[], float]
Crews = dict[str, list[ThreadPoolExecutor]]  # contender → a thread per lane; none where it has one lane only
MIN_ROUND_S = 0.2  # a round shorter than this measures the clock and the scheduler
DEVICE_REQUESTS = 20  # of each turn, once more on the device's own clock


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One model, ready to infer: a lane per request in flight."""

    name: str
    batch: int
    lanes: tuple[Lane, ...]
    against: str = ""  # name of the contender over whom its ratio must become tight; '': the first
    base: str = ""  # name of another contender over whom it must, if there is one
    like: str = ""  # and of one more
    team: str = ""  # contenders of a team get as many requests as each other


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a measurement ends: its ratios are known to ``half_width``, or its seconds or rounds are used up."""

    budget_s: float = 150.0  # warm-up included
    half_width: float = 0.01  # of every ratio's interval, relative
    min_rounds: int = 7
    max_rounds: int = 200
    round_s: float | None = None  # of a turn, about; None: MIN_ROUND_S


@dataclass(frozen=True)
class Turn:
    """One contender's requests in one round, on all its lanes."""

    seconds: float
    images: int
    latencies_s: tuple[float, ...]  # of every request in it
    device_ms: tuple[float, ...] = ()  # some requests by the device's own clock, where it has one

    @property
    def images_per_s(self) -> float:
        """Throughput of the turn."""
        return self.images / self.seconds


@dataclass
class Samples:
    """All turns of all contenders; index i of every list belongs to round i."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def ratio(self, numerator: str, denominator: str) -> Interval:
        """Throughput of ``numerator`` over that of ``denominator``: median of the rounds, with its interval."""
        pairs = zip(self.turns[numerator], self.turns[denominator], strict=True)
        return median_interval([turn.images_per_s / other.images_per_s for turn, other in pairs])

    @property
    def count(self) -> int:
        """Rounds that all contenders have been through."""
        return min((len(turns) for turns in self.turns.values()), default=0)


def measure(
    contenders: Sequence[Contender],
    stop: Stop | None = None,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = unwatched,
) -> Samples:
    """Let the contenders take turns.

    Args:
        contenders: who takes part.
        stop: when to stop; at least three rounds are made, whatever the budget.
        clock: monotonic seconds.
        progress: told after every round how many there were.
    """
    stop = stop or Stop()
    first = contenders[0].name
    over = {who.name: (who.against or first, who.base or who.name, who.like or who.name) for who in contenders}
    pairs = {(name, other) for name, others in over.items() for other in others}
    began = clock()
    with ExitStack() as stack:
        crews = _crews(contenders, stack)
        requests = _warm_up(contenders, crews, stop.round_s or MIN_ROUND_S, clock)
        samples = Samples({contender.name: [] for contender in contenders})
        while True:
            order = contenders if samples.count % 2 == 0 else tuple(reversed(contenders))
            turns = {who.name: _turn(who, crews[who.name], requests[who.team], clock) for who in order}
            for name, turn in turns.items():
                samples.turns[name].append(turn)
            spent = (clock() - began) / stop.budget_s
            width = _widest(samples, pairs)
            share = max(spent, min(samples.count / stop.min_rounds, stop.half_width / max(width, 1e-9)))
            progress(Step("measuring", min(1.0, share), f"{samples.count} round{'' if samples.count == 1 else 's'}"))
            if _done(samples.count, spent, width, stop):
                return samples


def _done(rounds: int, spent: float, width: float, stop: Stop) -> bool:
    # A round that would end far beyond the budget is not begun: by then a batch of 128 has run for minutes.
    out_of_time = rounds >= 3 and spent * (rounds + 1) / rounds > 1.05
    tight = rounds >= stop.min_rounds and width <= stop.half_width
    return out_of_time or tight or rounds >= stop.max_rounds


def _widest(samples: Samples, pairs: Collection[tuple[str, str]]) -> float:
    """The widest interval of all ratios; of its own throughput where a contender is alone."""
    ratios = [samples.ratio(name, other) for name, other in pairs if name != other]
    if not ratios:
        ratios = [median_interval([turn.images_per_s for turn in samples.turns[name]]) for name, _ in pairs]
    return max(ratio.half_width for ratio in ratios)


def _crews(contenders: Sequence[Contender], stack: ExitStack) -> Crews:
    """A thread for every lane that has company, the same one in all turns: some runtimes capture graphs per thread."""
    threads: dict[int, ThreadPoolExecutor] = {}
    crews: Crews = {}
    for contender in contenders:
        lanes = [lane.lane if isinstance(lane, WithoutCopies) else lane for lane in contender.lanes]
        if len(lanes) > 1:
            for lane in lanes:
                if id(lane) not in threads:
                    threads[id(lane)] = stack.enter_context(ThreadPoolExecutor(1))
        crews[contender.name] = [threads[id(lane)] for lane in lanes if id(lane) in threads]
    return crews


def _warm_up(contenders: Sequence[Contender], crews: Crews, round_s: float, clock: Clock) -> dict[str, int]:
    """Run everyone, and find out how many requests of each team make a round that can be timed."""
    shortest: dict[str, float] = {}
    for contender in contenders:
        crew = crews[contender.name]
        first = _turn(contender, crew, 1, clock).seconds
        # Once is enough for what takes seconds; what takes milliseconds is still settling.
        again = _turn(contender, crew, 1 if first > 1 else 5, clock)
        seconds = again.seconds / len(again.latencies_s) * len(contender.lanes)
        shortest[contender.team] = min(seconds, shortest.get(contender.team, seconds))
    return {team: max(1, round(round_s / max(seconds, 1e-6))) for team, seconds in shortest.items()}


def _turn(contender: Contender, crew: Sequence[ThreadPoolExecutor], requests: int, clock: Clock) -> Turn:
    """``requests`` requests for every lane, all lanes at the same time; each has one, and takes its next if it can."""
    began = clock()
    left = iter(range((requests - 1) * len(contender.lanes)))  # shared: no lane waits for one that is slower
    if not crew:
        latencies = _drive(contender.lanes[0], left, clock)
    else:
        jobs = [thread.submit(_drive, lane, left, clock) for thread, lane in zip(crew, contender.lanes, strict=True)]
        latencies = [latency for job in jobs for latency in job.result()]
    seconds = clock() - began
    # Apart from the requests that are timed, which nothing should disturb.
    lane = contender.lanes[0]
    device: list[float] = []
    if isinstance(lane, DeviceLane):
        count = min(requests, DEVICE_REQUESTS)
        device = crew[0].submit(_device_ms, lane, count).result() if crew else _device_ms(lane, count)
    return Turn(seconds, requests * len(contender.lanes) * contender.batch, tuple(latencies), tuple(device))


def _device_ms(lane: DeviceLane, count: int) -> list[float]:
    return [lane.device_ms(copies=True) for _ in range(count)]


def _drive(lane: Lane, left: Iterator[int], clock: Clock) -> list[float]:
    latencies = []
    for _ in chain([0], left):
        began = clock()
        lane.infer()
        latencies.append(clock() - began)
    return latencies
