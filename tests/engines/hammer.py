"""An engine asked by several threads at once, each with inputs of its own."""

from __future__ import annotations

import sys
import threading

import numpy as np

from lifedeploy.engines.base import Engine

TOLERANCE = 1e-4
# Lanes, requests and sessions are kept by batch, so some threads share a batch and some do not.
BATCHES = (1, 1, 2, 1)


def wrong_answers(
    engine: Engine, runs: int, batches: tuple[int, ...] = BATCHES, lanes: tuple[int, ...] = ()
) -> list[str]:
    """What went wrong in ``runs`` inferences of each thread; nothing, if all is well.

    Every thread takes turns between two inputs, and has to get the answers that one thread alone got. There is one for
    each of ``batches``, which calls ``run``, and one for each of ``lanes``, also batch sizes, which has a lane.
    """
    name = engine.inputs[0].name
    rng = np.random.default_rng(5)
    shape = engine.inputs[0].shape[1:]
    sizes = (*batches, *lanes)
    inputs = [[3 * rng.standard_normal((batch, *shape)).astype(np.float32) for _ in range(2)] for batch in sizes]
    expected = [[engine.run({name: array}) for array in own] for own in inputs]
    first = [answer["logits"][0] for own in expected for answer in own]
    apart = min(np.abs(one - two).max() for index, one in enumerate(first) for two in first[:index])
    assert apart > 10 * TOLERANCE, "these inputs would not show a mistake"

    found: list[str] = []
    start = threading.Barrier(len(sizes))

    def ask(thread: int) -> None:
        lane = engine.lane(sizes[thread]) if thread >= len(batches) else None
        start.wait()
        for turn in range(runs):
            which = turn % 2
            try:
                if lane is None:
                    answer = engine.run({name: inputs[thread][which]})
                else:
                    lane.inputs[name][...] = inputs[thread][which]
                    lane.infer()
                    answer = lane.outputs
            except Exception as error:  # whatever it is, it is what this looks for
                found.append(f"thread {thread}, run {turn}: refused: {error}")
                continue
            for output, value in expected[thread][which].items():
                same = answer[output].shape == value.shape and np.abs(answer[output] - value).max() <= TOLERANCE
                if not same:
                    found.append(f"thread {thread}, run {turn}: {output} is another one")

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(len(sizes))]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that Python itself changes threads in the most awkward places too
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    return found
