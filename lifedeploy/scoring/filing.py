"""Parts in, a file for each out: the whole of what a process does that scores, on this machine or on a cluster."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from lifedeploy.artifact import Artifact
from lifedeploy.errors import ArtifactError
from lifedeploy.limits import limit_pixels
from lifedeploy.scoring.answers import Answers, Rows
from lifedeploy.scoring.formats import FORMATS
from lifedeploy.scoring.images import Reader
from lifedeploy.scoring.jobs import Job, Tally
from lifedeploy.scoring.output import Output
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import Place, place_of
from lifedeploy.scoring.scorer import Scorer, Settings
from lifedeploy.scoring.sources import Source
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.target import Target, target_of

Seen = Callable[[int], None]  # told how many images more are done


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process needs to know to score any part of a job."""

    manifest: Path  # of the model
    job: Job
    source: Source
    folder: str  # address of that where the files of parts go
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A part whose file is where it belongs."""

    number: int
    tally: Tally
    engine_s: float = 0.0  # in the engine, since the part before it


class Filer:
    """A model, open inside a ``with`` block, that makes files of parts."""

    def __init__(self, order: Order) -> None:
        limit_pixels(order.job.max_pixels)
        self._key = order.job.key
        self.output = Output(place_of(order.folder), FORMATS[order.job.format])
        self._reader = Reader(order.source)
        kept, top = order.job.keep, order.job.top
        self.scorer = Scorer(_same_model(order), kept, top, order.settings)

    def __enter__(self) -> Filer:
        self.scorer.__enter__()
        return self

    def __exit__(self, *ended: object) -> None:
        self.scorer.__exit__(*ended)

    def filed(self, parts: Iterable[Part], seen: Seen) -> Generator[Finished, None, None]:
        """Every part once its file is there; that is waited for beside the next part.

        Raises:
            DataError: images or files cannot be reached.
            EngineError: the runtime failed.
        """
        rows = self.scorer.scored(parts, self._reader.items)
        file: _File | None = None
        closing_now: deque[tuple[Finished, Future[None]]] = deque()
        with closing(rows), ThreadPoolExecutor(1, "file") as pool:
            try:
                for part, block in rows:
                    file = file or _File(self.output, self.output.part(part.number, self._key), self.scorer.answers)
                    if block is not None:
                        file.write(block)
                        seen(len(block.names))
                        continue
                    finished = Finished(number=part.number, tally=file.tally, engine_s=self.scorer.take_seconds())
                    closing_now.append((finished, pool.submit(file.close)))
                    file = None
                    if len(closing_now) > 1:
                        yield _closed(*closing_now.popleft())
                while closing_now:
                    yield _closed(*closing_now.popleft())
            except BaseException:
                if file is not None:
                    file.abandon()
                raise

    def there(self, part: Part) -> Finished | None:
        """A part whose file is there already, since somebody who died has got so far."""
        place = self.output.part(part.number, self._key)
        return Finished(number=part.number, tally=self.output.tally_of(place)) if place.kind() == "file" else None


def _closed(finished: Finished, future: Future[None]) -> Finished:
    future.result()
    return finished


class _File:
    """The file of a part, which appears when it is closed."""

    def __init__(self, output: Output, place: Place, answers: Answers) -> None:
        self.tally = Tally()
        with ExitStack() as stack:
            path = stack.enter_context(place.writing())
            self._writer = stack.enter_context(output.format.writer(path, answers.columns))
            self._stack = stack.pop_all()

    def write(self, rows: Rows) -> None:
        """Add rows, behind those that are there."""
        self._writer.write(rows)
        self.tally += Tally.of(zip(rows.names, rows.problems, strict=True))

    def close(self) -> None:
        """Put it where it belongs."""
        self._stack.close()

    def abandon(self) -> None:
        """Leave nothing of it, after an error that is being handled."""
        self._stack.__exit__(*sys.exc_info())


def _same_model(order: Order) -> Target:
    """The model of an order, which may have been replaced since, or be another one on another machine.

    Raises:
        ArtifactError: it is not there, or is another one.
    """
    target = target_of(ModelFile.of(Artifact.read(order.manifest)))
    if target.artifact is None or target.artifact.manifest.sha256 != order.job.sha256:
        raise ArtifactError(f"{target.path} is another model than the job was begun with")
    return target
