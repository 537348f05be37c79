"""Images decoded beside the engine, in their order, and only so many of them at a time.

One thread goes through the parts and hands their images to the others; it waits when enough are underway. So a part
begins to be decoded while the one before it is still with the engine, and memory is what those underway need.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.preprocess import to_pixels
from lifedeploy.errors import ImageError
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.spec import PreprocessSpec

_PATIENCE_S = 0.1  # after which whoever waits looks whether there is anybody left to wait for


@dataclass(frozen=True)
class Decoded:
    """An image, (H, W, 3); or why there is none."""

    name: str
    pixels: NDArray[np.uint8] | None
    problem: str = ""


_Work = tuple[Part, "tuple[str, Future[NDArray[np.uint8]]] | None"]


def decoded(
    parts: Iterable[Part],
    items: Callable[[Part], Iterator[Item]],
    spec: PreprocessSpec,
    *,
    workers: int,
    ahead: int,
) -> Generator[tuple[Part, Decoded | None], None, None]:
    """Every image of all parts with its part, and None at the end of each part.

    Args:
        parts: in the order in which they are wanted.
        items: the images in one.
        spec: how they are prepared.
        workers: threads that decode.
        ahead: images that are decoded before they are asked for, at most.

    Raises:
        LifedeployError: whatever ``items`` raises.
    """
    underway: queue.Queue[_Work | BaseException | None] = queue.Queue(maxsize=ahead)
    over = threading.Event()
    pool = ThreadPoolExecutor(workers, "decode")

    def put(work: _Work | BaseException | None) -> None:
        while not over.is_set():
            try:
                underway.put(work, timeout=_PATIENCE_S)
                return
            except queue.Full:
                continue
        raise _NobodyWaits

    def feed() -> None:
        try:
            for part in parts:
                for item in items(part):
                    put((part, (item.name, pool.submit(_prepared, item, spec))))
                put((part, None))
            put(None)
        except _NobodyWaits:
            pass
        except BaseException as error:  # it is raised where somebody waits, if anybody does
            with suppress(_NobodyWaits):
                put(error)

    feeder = threading.Thread(target=feed, name="feed", daemon=True)
    feeder.start()
    try:
        while (work := underway.get()) is not None:
            if isinstance(work, BaseException):
                raise work
            part, image = work
            yield part, None if image is None else _result(*image)
    finally:
        over.set()
        pool.shutdown(wait=True, cancel_futures=True)
        feeder.join()


class _NobodyWaits(Exception):
    """Whoever asked for images has gone."""


def _prepared(item: Item, spec: PreprocessSpec) -> NDArray[np.uint8]:
    return to_pixels(item.read(), spec)


def _result(name: str, future: Future[NDArray[np.uint8]]) -> Decoded:
    try:
        return Decoded(name, future.result())
    except ImageError as error:
        return Decoded(name, None, error.message)
