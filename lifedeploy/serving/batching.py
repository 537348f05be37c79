"""Images of several requests through one copy of a model, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array, Lane
from lifedeploy.machine import cores
from lifedeploy.serving.plan import sizes_up_to
from lifedeploy.targets.session import Session, Watched, require_finite
from lifedeploy.targets.target import Target


class Batcher:
    """A copy of a model inside a ``with`` block: batches up to ``max_batch``, its share of the cores; of one thread.

    Where a runtime is faster when it knows the batch, there is a session for each size; smaller batches are filled up.
    Others take any, and the batch that an export fixed stays what it is.

    Args:
        target: the model, not open.
        max_batch: images of the largest batch.
        instances: copies that there are, this one among them.
        processors: CPUs that they share; None: all that this process may use.
    """

    def __init__(self, target: Target, max_batch: int, instances: int, processors: int | None = None) -> None:
        self._target = target
        self._threads = max(1, (processors or cores()) // instances)
        self._each = target.engine.prefers_fixed_batch and target.batch_size is None
        fixed = target.batch_size
        self._sizes = [fixed] if fixed is not None else sizes_up_to(max_batch) if self._each else []
        self._sessions: dict[int | None, Session] = {}
        self._lanes: dict[int, Lane] = {}
        self._what = f"{target.name} on {target.engine.name} {target.precision}"

    def __enter__(self) -> Batcher:
        # Kept tokens too, where asking for them leaves the engine as it is.
        watched: Watched = "nothing" if self._target.engine.taps_change_plan else "drops"
        with ExitStack() as stack:
            for size in self._sizes if self._each else [self._target.batch_size]:
                session = Session(self._target, watched, options=EngineOptions(threads=self._threads, batch=size))
                self._sessions[size] = stack.enter_context(session)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *ended: object) -> None:
        self._lanes.clear()
        self._stack.close()

    def infer(self, arrays: Sequence[Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The outputs for the images of all ``arrays``, in their order.

        Raises:
            EngineError: the runtime failed.
        """
        images = sum(map(len, arrays))
        lane = self._lane(next((size for size in self._sizes if size >= images), images))
        (given,) = lane.inputs.values()
        np.concatenate(arrays, out=given[:images])
        lane.infer()
        # Copies: the buffers are those of the next batch, and of a device's lane they are not the server's to keep.
        return {name: np.array(lane.outputs[name][:images]) for name in outputs}

    def require_finite(self, logits: Array) -> None:
        """Make sure that an answer is all numbers.

        Raises:
            EngineError: it holds NaN or infinity.
        """
        require_finite(logits, (), self._what)

    def _lane(self, size: int) -> Lane:
        if size not in self._lanes:
            session = self._sessions.get(size) or next(iter(self._sessions.values()))
            self._lanes[size] = session.lane(size)
        return self._lanes[size]
