"""The images of a batch shared among threads: each computes its own from the first layer to the last.

Where threads share each operator instead, they wait for each other hundreds of times in an inference, and what one
has written another reads: from its cache, if the two have one in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

from lifedeploy.engines.lanes import Array

WHOLE = (0, None)  # a batch that is not shared
Bounds = Sequence[int | None]
_WASTE = 1.07  # what the largest share may be over the mean: a thread that has none left waits


def bounds(batch: int, threads: int, *, equal: bool = False) -> Bounds:
    """Where each thread's images begin, and the end; :data:`WHOLE` where they cannot be shared evenly, or are not to be
    shared but ``equal``-ly."""
    largest = -(-batch // threads)
    if equal and batch % threads:
        return WHOLE
    if threads < 2 or batch < threads or largest * threads > _WASTE * batch:
        return WHOLE
    return tuple(batch * number // threads for number in range(threads + 1))


def is_shared(begins: Bounds) -> bool:
    """Whether there are several shares."""
    return len(begins) > len(WHOLE)


def cut(arrays: Mapping[str, Array], begins: Bounds) -> list[dict[str, Array]]:
    """Arrays (B, …) in shares, which are views: what is written into one is in the arrays."""
    return [{name: array[begin:end] for name, array in arrays.items()} for begin, end in pairwise(begins)]


class Crew:
    """Threads that share work with the one that asks."""

    def __init__(self, threads: int) -> None:
        self._others = ThreadPoolExecutor(max(1, threads - 1), "images")  # none begins before there is something to do

    def do(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run all ``tasks`` side by side, the first one in this thread; returns when none is running any more.

        Raises:
            Exception: what the first of them raised that did.
        """
        first, *rest = tasks
        if not rest:
            first()
            return
        others = [self._others.submit(task) for task in rest]
        try:
            first()
        finally:
            wait(others)
        for other in others:
            other.result()

    def leave(self) -> None:
        """End the threads."""
        self._others.shutdown()
