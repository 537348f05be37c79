"""Requests of ONNX Runtime's CPU provider: buffers bound once, for one session, or in shares.

Threads that share every operator of a request wait for each other behind each of them, some three hundred times an
inference; threads that share its images wait once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

from lifedeploy.engines.lanes import Array, Lane

LEAST = 2  # images of a share: with one, a thread reads all weights for it alone


class BoundLane(Lane):
    """Buffers bound once; ``infer`` is a single call into the runtime."""

    def __init__(
        self,
        session: Any,
        running: Callable[[], AbstractContextManager[Any]],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """``running`` is around every inference, and gives what to run with."""
        super().__init__(inputs, outputs)
        self._session, self._running = session, running
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def infer(self) -> None:
        with self._running() as how:
            self._session.run_with_iobinding(self._binding, how)


class SharedLane(Lane):
    """A lane whose buffers are those of several lanes, one behind the other; these infer at the same time."""

    def __init__(self, lanes: Sequence[Lane], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        super().__init__(inputs, outputs)
        self._first, *self._others = lanes
        self._threads = ThreadPoolExecutor(max(1, len(self._others)))

    def infer(self) -> None:
        jobs = [self._threads.submit(lane.infer) for lane in self._others]
        try:
            self._first.infer()
        finally:
            wait(jobs)  # nobody writes into the buffers once this has ended
        for job in jobs:
            job.result()


def shares(threads: int, batch: int) -> int:
    """Into how many shares, of equal size, a batch goes on so many threads; 1 where it is better computed whole."""
    return threads if batch % threads == 0 and batch // threads >= LEAST else 1


def parted(arrays: Mapping[str, Array], count: int) -> Iterator[dict[str, Array]]:
    """Views of each share of the images, which are the first axis of every array."""
    for share in range(count):
        yield {
            name: array[share * len(array) // count : (share + 1) * len(array) // count]
            for name, array in arrays.items()
        }
