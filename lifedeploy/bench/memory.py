"""Peak memory of one engine: measured in a process of its own, where nothing else has been."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lifedeploy import children, machine
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import EngineError
from lifedeploy.reading import decode_json

TIMEOUT_S = 1800.0  # torch.compile takes minutes


def peak_memory_mib(engine: str, path: Path, options: EngineOptions, batch: int) -> float | None:
    """Peak resident memory, in MiB, of a process that opens the engine and infers once; None where unknown.

    Raises:
        EngineError: the process failed.
    """
    order = {"engine": engine, "path": str(path), "batch": batch, "options": vars(options)}
    what = f"the process that measures the memory of {path.name}"
    program = children.command("lifedeploy.bench.memory")
    said = children.run(program, what, given=json.dumps(order), timeout_s=TIMEOUT_S)
    answer: float | None = decode_json(
        (said.strip().splitlines() or [""])[-1],
        float | None,  # type: ignore[arg-type]  # msgspec takes unions, which are no class
        f"the answer of {what}",
        EngineError,
    )
    return answer


def _child() -> None:
    order = json.loads(sys.stdin.read())
    options = EngineOptions(**{**order["options"], "taps": tuple(order["options"]["taps"])})
    with registry.get(order["engine"])(Path(order["path"]), options) as engine:
        lanes = [engine.lane(order["batch"]) for _ in range(options.streams)]  # all buffers at the same time
        for lane in lanes:
            lane.infer()
        sys.stdout.write(json.dumps(machine.peak_memory_mib()) + "\n")


if __name__ == "__main__":
    _child()
