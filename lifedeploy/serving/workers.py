"""Copies of a model, each with a thread of its own that takes what waits as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import EngineError, LifedeployError
from lifedeploy.serving.batching import Batcher
from lifedeploy.serving.plan import Plan
from lifedeploy.targets.target import Target

_MOST_WAITING = 4096  # parts of requests
Answer = Mapping[str, Array]


@dataclass(frozen=True)
class _Job:
    """The images of one request, or a part of them, and who waits for the answer."""

    images: Array
    answer: Future[Answer] = field(default_factory=Future)


class Workers:
    """As many copies of a model as the plan says, inside a ``with`` block; any thread may ask.

    A copy that is free takes the requests that wait, up to the largest batch. If these are fewer than the smallest
    preferred batch it waits for others, as long as the plan says.

    Args:
        target: the model, not open.
        plan: largest batch, preferred ones, patience and number of copies.
        outputs: what to answer, logits first.
        processors: CPUs that the copies share; None: all that this process may use.
    """

    def __init__(self, target: Target, plan: Plan, outputs: Sequence[str], processors: int | None = None) -> None:
        self._plan, self._outputs = plan, tuple(outputs)
        self._copies = [Batcher(target, plan, processors) for _ in range(plan.instances)]
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Workers:
        with ExitStack() as stack:
            for copy in self._copies:
                stack.enter_context(copy)
            self._stack = stack.pop_all()
        for copy in self._copies:
            thread = threading.Thread(target=self._work, args=(copy,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *ended: object) -> None:
        """Answer what waits, then end."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._stack.close()

    def ask(self, images: Array) -> list[Future[Answer]]:
        """The answer to images as they go into the model, in parts of at most the largest batch.

        Raises:
            EngineError: so many wait that these would wait for long, in memory.
        """
        step = self._plan.max_batch
        if self._waiting.qsize() > _MOST_WAITING:
            raise EngineError(f"{_MOST_WAITING} requests wait already: ask again later")
        jobs = [_Job(images[begin : begin + step]) for begin in range(0, len(images), step)]
        for job in jobs:
            self._waiting.put(job)
        return [job.answer for job in jobs]

    def _work(self, copy: Batcher) -> None:
        held: _Job | None = None  # did not fit into the batch before
        while (first := held or self._waiting.get()) is not None:
            jobs, held = self._gathered(first)
            self._answer(copy, [job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def _gathered(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """A batch that begins with ``first``, and what came after it and does not fit."""
        enough, until = min(self._plan.preferred, default=1), time.monotonic() + self._plan.delay_us / 1e6
        jobs, images = [first], len(first.images)
        while images < self._plan.max_batch:
            patience = max(0.0, until - time.monotonic()) if images < enough else 0.0
            try:
                job = self._waiting.get(timeout=patience) if patience else self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:  # the end is for whoever comes next
                self._waiting.put(None)
                break
            if images + len(job.images) > self._plan.max_batch:
                return jobs, job
            jobs.append(job)
            images += len(job.images)
        return jobs, None

    def _answer(self, copy: Batcher, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            answers = copy.infer([job.images for job in jobs], self._outputs)
        except Exception as error:  # whatever it is, those who wait have to hear of it, and the thread goes on
            failure = error if isinstance(error, LifedeployError) else EngineError(f"{type(error).__name__}: {error}")
            for job in jobs:
                job.answer.set_exception(failure)
            return
        begin = 0
        for job in jobs:
            part = {name: answer[begin : begin + len(job.images)] for name, answer in answers.items()}
            begin += len(job.images)
            try:
                copy.require_finite(part[self._outputs[0]], job.images)
            except LifedeployError as error:
                job.answer.set_exception(error)
            else:
                job.answer.set_result(part)
