"""A model behind a server against its engine without one, in the same rounds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.bench.served import BARE, SERVER, ServedRow, served_row
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.wire import Wire
from lifedeploy.progress import Progress, Say
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target

# A turn of clients begins and ends with fewer of them in flight: long enough for that to weigh little.
_ROUND_S = 3.0
_ROUNDS = 10  # that the budget is to be enough for, however short their turns then are


@dataclass(frozen=True, kw_only=True)
class ServiceRules:
    """What holds for every number of clients."""

    batch: int  # images in each request
    streams: int  # requests in flight in the engine without a server
    threads: int | None
    stop: Stop


def contest_with_server(
    bare: Target, service: Target, wire: Wire, rules: ServiceRules, clients: int, say: Say, progress: Progress
) -> ServedRow:
    """``clients`` of the service take turns with the engine that it is of, which gets as many images in flight.

    Raises:
        EngineError, EngineInputError: the engine or the server refused, or is fixed to another batch.
    """
    in_flight = clients * rules.batch
    streams = max(number for number in range(1, rules.streams + 1) if in_flight % number == 0)
    batch = bare.batch_size or in_flight // streams
    say(f"opening {bare.name}, batch {batch}, {streams} in flight")
    options = EngineOptions(threads=rules.threads, batch=batch, streams=streams)
    with ExitStack() as stack:
        alone = stack.enter_context(Session(bare, options=options))
        served = stack.enter_context(Session(service))
        before = wire.formed()
        contenders = [
            Contender(
                name=SERVER,
                batch=rules.batch,
                lanes=tuple(served.lane(rules.batch, number) for number in range(clients)),
                against=BARE,
                team=SERVER,
            ),
            Contender(
                name=BARE,
                batch=batch,
                lanes=tuple(alone.lane(batch, number) for number in range(streams)),
                against=BARE,
                team=BARE,
            ),
        ]
        round_s = min(_ROUND_S, rules.stop.budget_s / _ROUNDS / len(contenders))
        samples = measure(contenders, replace(rules.stop, round_s=round_s), progress=progress)
        formed = {size: count - before.get(size, 0) for size, count in wire.formed().items()}
    return served_row(
        samples,
        {size: count for size, count in formed.items() if count},
        concurrency=clients,
        batch=rules.batch,
        bare_batch=batch,
        bare_streams=streams,
    )
