"""How far a pruned model's classes are from the dense one's, on the engine that both run on: the loss as deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.samples import digest
from lifedeploy.progress import Progress, Step
from lifedeploy.targets.session import Session
from lifedeploy.targets.workbench import ANSWERED, Workbench
from lifedeploy.tuning.book import Book, Divergence
from lifedeploy.tuning.front import Choice


class Teacher:
    """The dense model's answers to some images, and how far others are from them. What was asked is in the book.

    Args:
        bench: makes the models.
        pixels: the images, (B, H, W, 3).
        book: what was asked before.
        machine: that answers are of.
        progress: told how many images were asked about.
    """

    def __init__(
        self,
        bench: Workbench,
        pixels: NDArray[np.uint8],
        book: Book,
        machine: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.bench, self.pixels, self.book, self.progress = bench, pixels, book, progress
        self.known: dict[Choice, Divergence] = {}  # of those asked about in this run
        self._batch = bench.slimmed.manifest.graph.batch_size or min(ANSWERED, len(pixels))
        graphs = [graph.manifest.sha256 for graph in (bench.slimmed, bench.baseline)]
        engine = f"{bench.engine.name} {bench.precision}"
        self._conditions = {"machine": dict(machine), "engine": engine, "graphs": graphs, "images": digest(pixels)}
        self._kept = book.divergences(self._conditions)
        self._dense: NDArray[np.float64] | None = None

    def divergence(self, choice: Choice) -> Divergence:
        """The slimmed model's divergence from the dense one under a schedule.

        Raises:
            EngineError: the runtime refused, or gives no numbers.
        """
        if choice.words not in self._kept:
            if self._dense is None:
                with self.bench.dense(batch=self._batch) as session:
                    self._dense = self._ask(session, "asking the dense model")
            with self.bench.under(choice.schedule, batch=self._batch) as session:
                said = self._ask(session, f"asking {len(self.known) + 1} schedules")
            kl = (np.exp(self._dense) * (self._dense - said)).sum(axis=1).mean()
            agreement = float((self._dense.argmax(axis=1) == said.argmax(axis=1)).mean())
            self._kept[choice.words] = Divergence(kl=float(max(kl, 0.0)), agreement=agreement)
            self.book.keep_divergences(self._conditions, self._kept)
        self.known[choice] = self._kept[choice.words]
        return self.known[choice]

    def kl(self, choice: Choice) -> float:
        """The same, its mean KL alone."""
        return self.divergence(choice).kl

    def _ask(self, session: Session, what: str) -> NDArray[np.float64]:
        """Logarithms of probabilities: (B, classes)."""
        parts = []
        for start in range(0, len(self.pixels), self._batch):
            pixels = self.pixels[start : start + self._batch]
            names = [f"image {start + number + 1}" for number in range(len(pixels))]
            parts.append(session.ask(pixels, names)[session.engine.outputs[0].name])
            done = start + len(pixels)
            self.progress(Step(what, done / len(self.pixels), f"{done:,} of {len(self.pixels):,} images"))
        logits = np.concatenate(parts).astype(np.float64)
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
