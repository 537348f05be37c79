"""``bench --url``: a model behind a server against its engine without one, in the same rounds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from lifedeploy.artifact import Workspace
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.bench.served import BARE, SERVER, ServedReport, ServedRow, served_row
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.wire import Wire, address_of, connect
from lifedeploy.errors import UsageError
from lifedeploy.files import now
from lifedeploy.limits import MOST_BATCHES, MOST_CLIENTS, MOST_IN_BATCH, MOST_STREAMS, MOST_THREADS, require_within
from lifedeploy.machine import describe
from lifedeploy.progress import Progress, Say, silent, unwatched
from lifedeploy.targets import select
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.served import asked, served
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, target_of
from lifedeploy.text import quoted
from lifedeploy.writing import in_use

# A turn of clients begins and ends with fewer of them in flight: long enough for that to weigh little.
_ROUND_S = 3.0
_ROUNDS = 10  # that the budget is to be enough for, however short their turns then are


@dataclass(frozen=True, kw_only=True)
class ServedBenchRequest:
    """Which server, by how many clients."""

    url: str
    model: Path | None = None  # what is served; None: what was built last
    concurrency: tuple[int, ...] = (1, 4, 16)
    batch: int = 1  # images in each request
    streams: int = 2  # requests in flight in the engine without a server
    threads: int | None = None
    stop: Stop = field(default_factory=Stop)
    command: str = ""

    def __post_init__(self) -> None:
        many = len(self.concurrency)
        if not 1 <= many <= MOST_BATCHES or not all(1 <= clients <= MOST_CLIENTS for clients in self.concurrency):
            raise UsageError(
                f"--concurrency {quoted(list(self.concurrency))} is not allowed: each must be from 1 to "
                f"{MOST_CLIENTS}, and there may be {MOST_BATCHES} of them"
            )
        require_within(self.batch, MOST_IN_BATCH, "images per request")
        require_within(self.streams, MOST_STREAMS, "streams")
        require_within(self.threads, MOST_THREADS, "threads", optional=True)


def bench_served(
    request: ServedBenchRequest, workspace: Workspace, say: Say = silent, progress: Progress = unwatched
) -> ServedReport:
    """Measure a server at every number of clients; the engine without one takes turns with it, with as many images in
    flight.

    Raises:
        UsageError: the server's model is none of this one.
        ArtifactError, EngineError: the engine cannot be had here, or the server cannot be reached.
    """
    address = address_of(request.url)
    with in_use(select.for_prediction(request.model, workspace).folder):
        bare = target_of(ModelFile.of(select.for_prediction(request.model, workspace)))
        say(f"asking {request.url}")
        model, target = asked(address), served(request.url, bare)
        wire = connect(address)
        try:
            rows = tuple(_row(request, clients, bare, target, wire, say, progress) for clients in request.concurrency)
        finally:
            wire.close()
    return ServedReport(
        created=now(),
        command=request.command,
        machine=describe(threads=request.threads),
        url=request.url,
        server=model.server,
        model=bare.name,
        engine=f"{bare.engine.name} {bare.precision}",
        method=bare.shown_method,
        rows=rows,
        parameters=model.parameters,
    )


def _row(
    request: ServedBenchRequest,
    clients: int,
    bare: Target,
    target: Target,
    wire: Wire,
    say: Say,
    progress: Progress,
) -> ServedRow:
    in_flight = clients * request.batch
    streams = min(request.streams, in_flight)
    batch = bare.batch_size or max(1, in_flight // streams)
    say(f"opening {bare.name}, batch {batch}, {streams} in flight")
    options = EngineOptions(threads=request.threads, batch=batch, streams=streams)
    with ExitStack() as stack:
        engine = stack.enter_context(Session(bare, options=options))
        service = stack.enter_context(Session(target))
        before = wire.formed()
        contenders = [
            Contender(
                name=SERVER,
                batch=request.batch,
                lanes=tuple(service.lane(request.batch, number) for number in range(clients)),
                against=BARE,
                team=SERVER,
            ),
            Contender(
                name=BARE,
                batch=batch,
                lanes=tuple(engine.lane(batch, number) for number in range(streams)),
                against=BARE,
                team=BARE,
            ),
        ]
        round_s = min(_ROUND_S, request.stop.budget_s / _ROUNDS / len(contenders))
        samples = measure(contenders, replace(request.stop, round_s=round_s), progress=progress)
        formed = {size: count - before.get(size, 0) for size, count in wire.formed().items()}
    return served_row(
        samples,
        {size: count for size, count in formed.items() if count},
        concurrency=clients,
        batch=request.batch,
        bare_batch=batch,
        bare_streams=streams,
    )
