"""Images of several requests through one copy of a model, as one batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.device import DeviceEngine
from lifedeploy.engines.lanes import Array, Lane
from lifedeploy.errors import EngineError, EngineInputError
from lifedeploy.machine import cores
from lifedeploy.serving.plan import Plan, sizes_up_to
from lifedeploy.targets.session import Session, Watched, require_finite
from lifedeploy.targets.target import Target

_LANES = 8  # batch sizes whose buffers are kept, where any size may come


class Batcher:
    """A copy of a model inside a ``with`` block: batches up to ``max_batch``, its share of the cores; of one thread.

    Where a runtime is faster when it knows the batch, there is a session for each size, and on a GPU buffers for each;
    smaller batches are filled up. Others take any, and the batch that an export fixed stays what it is.

    Args:
        target: the model, not open.
        plan: the largest batch, the preferred ones, and how many copies there are, this one among them.
        processors: CPUs that they share; None: all that this process may use.
        smallest: images that the engine has to be given.
    """

    def __init__(self, target: Target, plan: Plan, processors: int | None = None, *, smallest: int = 1) -> None:
        self._target = target
        self._threads = max(1, (processors or cores()) // plan.instances)
        fixed, kind = target.batch_size, target.engine
        self._each = kind.prefers_fixed_batch and fixed is None
        sizes = {max(size, smallest) for size in (*sizes_up_to(plan.max_batch), *plan.preferred)}
        filled = self._each or issubclass(kind, DeviceEngine)
        self._sizes = [fixed] if fixed is not None else sorted(sizes) if filled else []
        self._sessions: dict[int | None, Session] = {}
        self._lanes: OrderedDict[int, Lane] = OrderedDict()
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

    def require_finite(self, logits: Array, images: Array) -> None:
        """Make sure that the answer to ``images`` is all numbers.

        Raises:
            EngineInputError: it holds NaN or infinity, and so do the images.
            EngineError: it does, and they do not.
        """
        try:
            require_finite(logits, (), self._what)
        except EngineError as error:
            if images.dtype.kind == "f" and not np.isfinite(images).all():
                raise EngineInputError("the images hold NaN or infinity") from error
            raise

    def _lane(self, size: int) -> Lane:
        if size not in self._lanes:
            session = self._sessions.get(size) or next(iter(self._sessions.values()))
            self._lanes[size] = session.lane(size)
        self._lanes.move_to_end(size)
        if not self._sizes and len(self._lanes) > _LANES:
            self._lanes.popitem(last=False)
        return self._lanes[size]
