"""A job while it runs: how far it is, how fast, and whether too many images have no answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import reduce

from lifedeploy.errors import DataError
from lifedeploy.progress import Progress, Step
from lifedeploy.scoring.filing import Finished
from lifedeploy.scoring.jobs import Tally, told
from lifedeploy.scoring.parts import Part

_JUDGED_FROM = 1000  # images, where it is not known before how many there are


class Watch:
    """What is done of a job.

    Args:
        parts: all of the job.
        images: in all of them; None: not known, as of shards.
        done: part → what is in its file, of those that are there already.
        max_bad: share of the images that may have no answer.
        progress: is told how far it is.
    """

    def __init__(
        self, parts: Iterable[Part], images: int | None, done: dict[int, Tally], max_bad: float, progress: Progress
    ) -> None:
        self._parts, self._images, self._done = {part.number: part for part in parts}, images, dict(done)
        self._max_bad, self._progress = max_bad, progress
        self._began = time.perf_counter()
        self.before = len(done)
        self.scored = 0  # images of this run
        self.engine_s = 0.0
        self.seconds = 0.0
        self._underway = 0  # images of parts that are not done
        self._size = sum(part.size for part in self._parts.values())
        self._done_images = self._done_bad = self._done_size = 0
        for number, tally in done.items():
            self._count(number, tally)

    @property
    def tally(self) -> Tally:
        """Of all parts that are done, in their order."""
        return reduce(Tally.__add__, (self._done[number] for number in sorted(self._done)), Tally())

    def _count(self, number: int, tally: Tally) -> None:
        self._done_images += tally.images
        self._done_bad += tally.bad
        self._done_size += self._parts[number].size

    def seen(self, images: int) -> None:
        """So many images more have their rows, though their part is not done yet."""
        self._underway += images
        self._tell()

    def follow(self, finished: Iterable[Finished]) -> None:
        """Take in every part that gets done.

        Raises:
            DataError: more images than may have no answer.
        """
        self.require_good()
        self._began = time.perf_counter()
        for part in finished:
            self._done[part.number] = part.tally
            self._count(part.number, part.tally)
            self._underway = max(0, self._underway - part.tally.images)
            self.scored += part.tally.images
            self.engine_s += part.engine_s
            self.seconds = time.perf_counter() - self._began
            self._tell()
            self.require_good()
        self.require_good(over=True)

    def require_good(self, *, over: bool = False) -> None:
        """Make sure that not too many images have no answer, as far as that can be told before all is ``over``.

        Raises:
            DataError: too many have none; or none has one.
        """
        bad, of = self._done_bad, self._done_images if over or self._images is None else self._images
        if not bad or (not over and self._images is None and of < _JUDGED_FROM):
            return
        none = over and bad == of
        if none or bad > self._max_bad * of:
            name, problem = self.tally.examples[0]
            allowed = "" if none else f", more than --max-bad {self._max_bad:g} allows"
            raise DataError(
                f"{bad:,} of {of:,} images have no answer{allowed}; the first: {told(name, problem)}",
                hint=None if none else "what is done is kept: with a larger --max-bad the same command goes on",
            )

    def _tell(self) -> None:
        done = self._done_images + self._underway
        elapsed = time.perf_counter() - self._began
        rate = (self.scored + self._underway) / elapsed if elapsed else 0.0
        speed = f", {rate:,.0f} img/s" if self.scored + self._underway else ""
        if self._images is not None:
            self._progress(Step("scoring", done / max(self._images, 1), f"{done:,} of {self._images:,} images{speed}"))
            return
        share = self._done_size / max(self._size, 1)
        self._progress(
            Step("scoring", share, f"{len(self._done):,} of {len(self._parts):,} shards, {done:,} images{speed}")
        )
