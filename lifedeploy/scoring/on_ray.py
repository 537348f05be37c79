"""A job on a cluster: Ray Data places the parts, and tries those again whose worker died. A row of it is a part.

https://docs.ray.io/en/latest/data/batch_inference.html: a class whose objects are actors, each with a model of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lifedeploy import errors
from lifedeploy.engines import registry
from lifedeploy.errors import EngineError, LifedeployError, UsageError
from lifedeploy.optional import require
from lifedeploy.progress import quiet_loggers
from lifedeploy.scoring.cluster import joined, said
from lifedeploy.scoring.filing import Filer, Finished, Order
from lifedeploy.scoring.jobs import Tally
from lifedeploy.scoring.parts import Part

_BLOCKS = 4096  # of parts: what Ray keeps account of, and tries again as a whole
_TRIES = 4  # of one part, and of actors that end before any has done one, over their number
_USUAL_CORES = 4  # of an actor on CPUs


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many processes score, and what each of them has."""

    count: int | None = None  # None: as many as the cluster has room for
    cores: int | None = None  # each; None: 4, or all of a smaller machine
    gpus: float | None = None  # each; None: 1 of an engine on GPUs


def score_on_ray(order: Order, parts: Sequence[Part], actors: Actors) -> Generator[Finished, None, None]:
    """Every part when its file is there, in the order in which they get done.

    The cluster is the one at ``RAY_ADDRESS``, else the one that was started on this machine, else a local one, which
    ends with this.

    Raises:
        UsageError: no machine of the cluster has what an actor is to have.
        LifedeployError: what a worker raised.
        EngineError: Ray failed.
    """
    ray, data = require("ray", extra="ray"), require("ray.data", extra="ray")
    with joined(ray):
        actors = _placed(ray, actors, on_gpu=registry.get(order.job.engine).on_gpu)
        _be_quiet(data)
        threads, workers = order.settings.threads or actors.cores, order.settings.workers or actors.cores
        order = replace(order, settings=replace(order.settings, threads=threads, workers=workers))
        count = min(actors.count or 1, len(parts))
        # Should the machine be lost that this is on, it begins to count again.
        tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
        rows = data.from_items([asdict(part) for part in parts], override_num_blocks=min(len(parts), _BLOCKS))
        done = rows.map(
            _Actor,
            fn_constructor_args=(order, tries, count),
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=actors.cores,
            num_gpus=actors.gpus or None,
        )
        with quiet_loggers("ray", "ray.data"):
            try:
                for row in done.iter_rows():
                    yield _finished(row)
            except LifedeployError:
                raise
            except Exception as error:  # of Ray's own kinds, and what a worker raised that is none of ours
                raise EngineError(f"Ray failed: {said(error)}") from error


class _Tries:
    """How often what was begun is begun again: Ray does that without end, also where it ends its process every time."""

    def __init__(self) -> None:
        self._parts: Counter[int] = Counter()
        self._opened = 0

    def opened(self) -> int:
        """An actor opens the model: how many have since any has done a part."""
        self._opened += 1
        return self._opened

    def begun(self, number: int) -> int:
        """An actor begins a part: how often that was."""
        self._parts[number] += 1
        return self._parts[number]

    def ended(self) -> None:
        """An actor has done a part."""
        self._opened = 0


class _Actor:
    """A process that scores one part after the other. What it raises of ours is a row too: Ray would wrap it, and lose
    what it was on the way."""

    def __init__(self, order: Order, tries: Any, actors: int) -> None:
        self._tries, self._wait = tries, require("ray", extra="ray").get
        self._filer: Filer | None = None
        self._problem: LifedeployError | None = None
        try:
            if self._wait(tries.opened.remote()) > actors + _TRIES:
                raise EngineError(f"opening {order.job.model} has ended {_TRIES} processes of the cluster")
            self._filer = Filer(order).__enter__()  # for as long as the process lives
        except LifedeployError as error:
            self._problem = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._filer is None:
            return _failed(self._problem)
        try:
            return _row(self._scored(self._filer, Part(**row)))
        except LifedeployError as error:
            return _failed(error)

    def _scored(self, filer: Filer, part: Part) -> Finished:
        there = filer.there(part)  # Ray tries some parts together, and those of them again that are done
        if there is not None:
            return there
        if self._wait(self._tries.begun.remote(part.number)) > _TRIES:
            raise EngineError(f"part {part.number} has ended {_TRIES} processes of the cluster")
        (done,) = filer.filed([part], lambda count: None)
        self._wait(self._tries.ended.remote())
        return done


def _row(done: Finished) -> dict[str, Any]:
    examples = [list(example) for example in done.tally.examples]
    tally = {"images": done.tally.images, "bad": done.tally.bad, "examples": examples}
    return {"number": done.number, "engine_s": done.engine_s, **tally, "failed": "", "message": "", "hint": ""}


def _failed(error: LifedeployError | None) -> dict[str, Any]:
    said = {"failed": type(error).__name__, "message": error.message, "hint": error.hint or ""} if error else {}
    return _row(Finished(number=0, tally=Tally())) | said


def _finished(row: Mapping[str, Any]) -> Finished:
    """The part that a row tells of.

    Raises:
        LifedeployError: what it tells of instead.
    """
    if row["failed"]:
        raise getattr(errors, row["failed"], EngineError)(row["message"], hint=row["hint"] or None)
    examples = tuple((name, problem) for name, problem in row["examples"])
    tally = Tally(images=row["images"], bad=row["bad"], examples=examples)
    return Finished(number=row["number"], tally=tally, engine_s=row["engine_s"])


def _placed(ray: Any, asked: Actors, *, on_gpu: bool) -> Actors:
    """What each actor gets, and how many there is room for."""
    gpus = float(on_gpu) if asked.gpus is None else asked.gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = asked.cores or max(1, min(_USUAL_CORES, int(max(node.get("CPU", 0) for node in nodes))))

    def room(node: dict[str, float]) -> int:
        places = node.get("CPU", 0) / cores
        return math.floor(min(places, node.get("GPU", 0) / gpus) if gpus else places)

    most = sum(map(room, nodes))
    if not most:
        each = f"{cores} cores" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UsageError(
            f"no machine of the cluster has {each} for an actor", hint="--actor-cores and --actor-gpus say less"
        )
    return Actors(count=asked.count or most, cores=cores, gpus=gpus)


def _be_quiet(data: Any) -> None:
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
