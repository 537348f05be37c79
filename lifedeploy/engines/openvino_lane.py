"""Requests to OpenVINO: one, or one for each share of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lifedeploy.engines.lanes import Array, Lane


class RequestLane(Lane):
    """Infer requests over shares of the lane's own buffers, or with a copy of them, ``feeds``.

    Outputs of a single request are its own memory.
    """

    def __init__(
        self,
        requests: Sequence[Any],
        inputs: Mapping[str, Array],
        shown: Mapping[int, str],
        *,
        feeds: Sequence[Mapping[str, Array]] | None,
    ) -> None:
        super().__init__(inputs, {})
        self._requests, self._shown = requests, shown
        self._feeds: Sequence[Mapping[str, Array] | None] = feeds or [None] * len(requests)
        self.infer()

    def infer(self) -> None:
        infer_all(self._requests, self._feeds)
        if len(self._requests) > 1:
            self.outputs = joined(self._requests, self._shown)
        else:
            (request,) = self._requests
            self.outputs = {name: request.get_output_tensor(index).data for index, name in self._shown.items()}


def infer_all(requests: Sequence[Any], feeds: Sequence[Mapping[str, Array] | None]) -> None:
    """Run all ``requests`` side by side; returns when none is running any more.

    The synchronous call would build a dictionary of copies of all results.

    Raises:
        RuntimeError: OpenVINO's, of the first that failed.
    """
    begun = []
    try:
        for request, feed in zip(requests, feeds, strict=True):
            request.start_async(feed)
            begun.append(request)
    finally:
        errors = [error for request in begun if (error := _waited(request)) is not None]
    if errors:
        raise errors[0]


def _waited(request: Any) -> RuntimeError | None:
    """What a request failed with, once it is over."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def joined(requests: Sequence[Any], shown: Mapping[int, str]) -> dict[str, Array]:
    """A copy of the outputs of all ``requests``, below each other."""
    answers = {name: [request.get_output_tensor(index).data for request in requests] for index, name in shown.items()}
    return {name: np.concatenate(them) if len(them) > 1 else np.array(them[0]) for name, them in answers.items()}
