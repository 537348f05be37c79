"""Peak memory of one engine: measured in a process of its own, where nothing else has been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.errors import EngineError


def peak_memory_mib(engine: str, path: Path, options: EngineOptions, batch: int) -> float | None:
    """Peak resident memory, in MiB, of a process that opens the engine and infers once; None where unknown.

    Raises:
        EngineError: the process failed.
    """
    order = {
        "engine": engine,
        "path": str(path),
        "batch": batch,
        "options": {**vars(options), "taps": list(options.taps)},
    }
    done = subprocess.run(
        [sys.executable, "-m", "lifedeploy.bench.memory"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EngineError(f"the process that measures the memory of {path.name} failed: {reason}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return float(answer) if answer is not None else None


def _own_peak_mib() -> float | None:
    """VmHWM, which unlike ru_maxrss starts anew with the program: a child does not inherit its parent's peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def _child() -> None:
    order = json.loads(sys.stdin.read())
    options = EngineOptions(**{**order["options"], "taps": tuple(order["options"]["taps"])})
    with registry.get(order["engine"])(Path(order["path"]), options) as engine:
        lanes = [engine.lane(order["batch"]) for _ in range(options.streams)]  # all buffers at the same time
        for lane in lanes:
            lane.infer()
        sys.stdout.write(json.dumps(_own_peak_mib()) + "\n")


if __name__ == "__main__":
    _child()
