"""An open engine, asked for any number of images: its own batch size, its preprocessing, its time, its kept tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lifedeploy.artifact import TensorSpec
from lifedeploy.data.preprocess import model_input
from lifedeploy.engines.base import Engine
from lifedeploy.engines.lanes import Array
from lifedeploy.errors import EngineError
from lifedeploy.evaluation.parity import Answer, asker, overlap
from lifedeploy.kept import KeptTokens
from lifedeploy.spec import PreprocessSpec


class Asking:
    """Asks ``engine``; and ``probe``, the same with taps, for the ``kept`` tokens. May be one and the same."""

    def __init__(
        self, engine: Engine, probe: Engine | None, kept: KeptTokens, preprocess: PreprocessSpec, *, in_graph: bool
    ) -> None:
        self._ask = asker(engine, engine if probe is engine else None, kept)
        self._probe = asker(probe, probe, kept) if probe is not None and probe is not engine else None
        self._input = engine.inputs[0]
        self._preprocess = preprocess
        self._in_graph = in_graph
        self.seconds = 0.0  # spent in the engine
        self.images = 0  # that it was given, padding not counted

    def __call__(self, pixels: NDArray[np.uint8]) -> Answer:
        """The answer to (B, H, W, 3); an engine with a fixed batch gets as many as it takes, the last ones padded."""
        size = self._input.shape[0] or len(pixels)
        answers = [self._one(pixels[start : start + size], size) for start in range(0, len(pixels), size)]
        kept = [answer.kept for answer in answers if answer.kept is not None]
        return Answer(np.concatenate([answer.logits for answer in answers]), np.concatenate(kept) if kept else None)

    def _one(self, pixels: NDArray[np.uint8], size: int) -> Answer:
        count = len(pixels)
        if count < size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], size - count, axis=0)])
        images = model_input(pixels, self._preprocess, in_graph=self._in_graph)
        images = images.astype(self._input.dtype, copy=False)  # a half-precision graph may take half-precision images
        began = time.perf_counter()
        answer = self._ask(images)
        self.seconds += time.perf_counter() - began
        self.images += count
        kept = self._probe(images).kept if self._probe is not None else answer.kept
        return Answer(answer.logits[:count], None if kept is None else kept[:count])


def fits(tensor: TensorSpec, spec: PreprocessSpec) -> bool:
    """Whether a graph's input takes images of ``spec``: (B, H, W, 3) bytes or (B, 3, H, W) numbers."""
    height, width = spec.image_size
    wanted = (height, width, 3) if tensor.dtype == "uint8" else (3, height, width)
    return len(tensor.shape) == 4 and all(
        have in (None, want) for have, want in zip(tensor.shape[1:], wanted, strict=True)
    )


def shared_tokens(first: Array, second: Array) -> list[float]:
    """Per image, the share of the smaller set of kept tokens that is in the other: (B, n), (B, m) → B × 0…1."""
    small, large = sorted((first, second), key=lambda kept: kept.shape[1])
    return [overlap(few[None], many[None]) for few, many in zip(small, large, strict=True)]


def require_sound(answer: Array, images: Sequence[str], what: str) -> None:
    """Make sure that an answer to ``images``, a row for each, is all numbers; ``what`` gave it.

    Raises:
        EngineError: one holds NaN or infinity; with the first image whose answer does.
    """
    unsound = np.flatnonzero(~np.isfinite(answer.reshape(len(answer), -1)).all(axis=1))
    if len(unsound):
        raise EngineError(
            f"{what} gives NaN or infinity for {images[int(unsound[0])]}",
            hint="lifedeploy verify tells whether it computes what its checkpoint does",
        )
