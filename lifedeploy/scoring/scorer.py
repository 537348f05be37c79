"""Images in, rows of answers out: what every process does that scores, alone or as one of many."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.preprocess import model_input
from lifedeploy.engines.base import EngineOptions
from lifedeploy.machine import cores
from lifedeploy.scoring.answers import Answers, Kept, Rows
from lifedeploy.scoring.decoding import Decoded, decoded
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target

_AHEAD = 3  # batches that are decoded before they are asked for


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a process scores: none of it changes an answer."""

    batch: int
    threads: int | None = None  # of the engine; None: all cores
    workers: int | None = None  # threads that decode; None: as many as cores


class Scorer:
    """A model, open inside a ``with`` block, and the answers it gives to images.

    Args:
        target: the model.
        kept: which of its answers are kept.
        top: classes of each image, of the best ones.
        settings: how it is asked.
    """

    def __init__(self, target: Target, kept: Kept, top: int, settings: Settings) -> None:
        assert target.spec is not None
        self.target, self.spec, self.settings = target, target.spec, settings
        self.batch = target.batch_size or settings.batch
        self.seconds = 0.0  # in the engine
        self._kept, self._top = kept, top
        self._what = f"{target.name} on {target.engine.name} {target.precision}"
        self._session = Session(target, options=EngineOptions(threads=settings.threads, batch=self.batch))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            session = stack.enter_context(self._session)
            self.lane = session.lane(self.batch)
            (self._images,) = self.lane.inputs.values()
            self._given = session.engine.outputs[0].name
            width = int(session.engine.outputs[0].shape[-1] or self.spec.num_classes)
            top = min(self._top, width)
            self.answers = Answers(kept=self._kept, top=top, width=width, classes=self.spec.classes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def warm_up(self) -> None:
        """Infer once, so that what a runtime does the first time is not in the time of what is asked first."""
        self.lane.infer()

    def take_seconds(self) -> float:
        """Seconds in the engine since this was asked last."""
        taken, self.seconds = self.seconds, 0.0
        return taken

    def scored(
        self, parts: Iterable[Part], items: Callable[[Part], Iterator[Item]]
    ) -> Generator[tuple[Part, Rows | None], None, None]:
        """Rows of every part, a batch at a time, and None at the end of each part.

        A batch holds images of one part only, so that what a row says depends on its part alone.

        Raises:
            DataError: where images are cannot be reached.
            EngineError: the runtime failed.
        """
        images = decoded(
            parts, items, self.spec.preprocess, workers=self.settings.workers or cores(), ahead=_AHEAD * self.batch
        )
        waiting: list[Decoded] = []
        good = 0
        with closing(images):
            for part, image in images:
                if image is not None:
                    waiting.append(image)
                    good += image.pixels is not None
                if waiting and (image is None or good == self.batch or len(waiting) > _AHEAD * self.batch):
                    yield part, self._rows(waiting)
                    waiting, good = [], 0
                if image is None:
                    yield part, None

    def _rows(self, images: list[Decoded]) -> Rows:
        """The answers to at most a batch of images, and those that there are none to."""
        problems = [image.problem for image in images]
        pixels = {number: image.pixels for number, image in enumerate(images) if image.pixels is not None}
        given = self._infer(list(pixels.values())) if pixels else np.empty((0, self.answers.width), np.float32)
        sound = np.asarray(np.isfinite(given).all(axis=1))
        for number, is_sound in zip(pixels, sound, strict=True):
            if not is_sound:
                problems[number] = f"{self._what} gives NaN or infinity for {images[number].name}"
        return Rows(tuple(image.name for image in images), tuple(problems), self.answers.values(given[sound]))

    def _infer(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """What the model gives, (len(pixels), width); behind them the lane holds what was there before."""
        count = len(pixels)
        if self._session.takes_pixels:
            np.stack(pixels, out=self._images[:count])
        else:
            self._images[:count] = model_input(np.stack(pixels), self.spec.preprocess, in_graph=False)
        began = time.perf_counter()
        self.lane.infer()
        self.seconds += time.perf_counter() - began
        return np.array(self.lane.outputs[self._given][:count], dtype=np.float32)
