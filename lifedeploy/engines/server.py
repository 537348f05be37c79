"""A model behind a server, as one more engine: whoever asks engines can ask it too."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np

from lifedeploy.artifact import TensorSpec
from lifedeploy.engines.base import Availability, BuildJob, Built, Engine, EngineOptions, PrecisionPlan
from lifedeploy.engines.lanes import Array, FreshLane, Lane, buffers, require_feeds
from lifedeploy.engines.wire import TYPES, ServedTensor, Wire, address_of, connect, require_told
from lifedeploy.errors import EngineError, EngineInputError, UsageError
from lifedeploy.kept import is_kept_name
from lifedeploy.optional import installed, pip_line
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME
from lifedeploy.text import quoted

_TOLD = (SCORES_NAME, GROUPS_NAME)


class Server(Engine):
    """A model behind a server: ``options.url`` is where. Nothing is built; taps are outputs that it gives."""

    name: ClassVar[str] = "server"
    extra: ClassVar[str] = "serve"
    taps_change_plan: ClassVar[bool] = False
    concurrent: ClassVar[bool] = True

    def __init__(self, path: Path, options: EngineOptions | None = None) -> None:
        super().__init__(path, options)
        self._address = address_of(self.options.url)

    @classmethod
    def availability(cls) -> Availability:
        if not installed("tritonclient"):
            return Availability(False, "tritonclient is not installed", pip_line(cls.extra))
        return Availability(True)

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        return PrecisionPlan(requested)

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        raise UsageError("a server's engines are built before they are packaged", hint="lifedeploy package --help")

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self._mine = threading.local()  # clients of HTTP are of one thread
        self._wires = ExitStack()
        with ExitStack() as until_open:
            until_open.callback(self._wires.close)
            model = self._wire().describe()
            self._most = model.max_batch
            # Logits first, by contract; some servers sort by name, and what a model tells beside them has known names.
            told = sorted(model.outputs, key=lambda tensor: is_kept_name(tensor.name) or tensor.name in _TOLD)
            outputs = tuple(_spec(tensor, self._address.url) for tensor in told)
            given = {spec.name for spec in outputs}
            missing = next((tap for tap in self.options.taps if tap not in given), None)
            if missing is not None:
                raise EngineError(f"{self._address.url} does not give {missing}; it gives {', '.join(sorted(given))}")
            inputs = tuple(_spec(tensor, self._address.url) for tensor in model.inputs)
            until_open.pop_all()
        return inputs, outputs

    def _close(self) -> None:
        self._wires.close()

    def _wire(self) -> Wire:
        """This thread's connection."""
        if not hasattr(self._mine, "wire"):
            wire = connect(self._address)
            self._wires.callback(wire.close)
            self._mine.wire = wire
        held: Wire = self._mine.wire
        return held

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = len(next(iter(feeds.values())))
        step = self._most or images
        names, wire = [spec.name for spec in self.outputs], self._wire()
        parts = []
        for begin in range(0, images, step):
            part = {name: array[begin : begin + step] for name, array in feeds.items()}
            answer = wire.infer(wire.request(part, names))
            for spec in self.outputs:
                told = (min(step, images - begin), *spec.shape[1:])
                require_told(self._address.url, answer[spec.name], spec.name, spec.dtype, told)
            parts.append(answer)
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _lane(self, batch: int) -> Lane:
        if self._most is not None and batch > self._most:
            raise EngineInputError(
                f"{self._address.url} takes at most {self._most} images at once, and {batch} were asked for"
            )
        return _ServerLane(self, batch)


class _ServerLane(FreshLane):
    """One client: its inputs are put on the wire anew for every request, as a client's are."""

    def __init__(self, server: Server, batch: int) -> None:
        super().__init__(self._ask, buffers(server.inputs, batch))
        self._server = server

    def _ask(self, inputs: dict[str, Array]) -> dict[str, Array]:
        require_feeds(inputs, self._server.inputs)
        return self._server._run(inputs)


def _spec(tensor: ServedTensor, url: str) -> TensorSpec:
    if tensor.dtype not in TYPES:
        raise EngineError(
            f"{url}: {quoted(tensor.name)} is of {quoted(tensor.dtype)}, which lifedeploy does not handle"
        )
    return TensorSpec(tensor.name, TYPES[tensor.dtype], tensor.shape)
