"""NVIDIA's own benchmark tool on the same plan, where it is installed: a second opinion on our runtime.

https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/benchmarking.html
"""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lifedeploy import children
from lifedeploy.artifact import TensorSpec
from lifedeploy.engines import registry
from lifedeploy.errors import EngineError
from lifedeploy.text import shortened

RUNS = 3
_SECONDS = 2
_PATIENCE_S = 600.0
# Between 10 and 11 the defaults changed: CUDA graphs came on and transfers went off. Asked for is what the tool's own
# help still offers; what it no longer offers is its default.
_WANTED = ("--useCudaGraph", "--noDataTransfers", "--useSpinWait")
_THROUGHPUT = re.compile(r"Throughput: ([\d.]+) qps")
_COMPUTE = re.compile(r"GPU Compute Time: .*?median = ([\d.]+) ms")


@dataclass(frozen=True)
class Opinion:
    """What the tool measured: medians over ``RUNS`` runs, without copies."""

    images_per_s: float
    gpu_ms: float  # per request, by CUDA events


def find(engine: str) -> str | None:
    """Where the tool that belongs to an engine is on the PATH, if it is, and if there is such a tool."""
    tool = registry.get(engine).benchmark_tool
    return children.tool(tool) if tool else None


def measure(tool: str, plan: Path, inputs: Sequence[TensorSpec], batch: int) -> Opinion:
    """Let the tool measure ``plan`` at ``batch`` images.

    Raises:
        EngineError: it failed, or said something that is not understood.
    """
    offered = _run([tool, "--help"])
    command = [tool, f"--loadEngine={plan}", f"--duration={_SECONDS}", *(flag for flag in _WANTED if flag in offered)]
    dynamic = [spec for spec in inputs if spec.shape[0] is None]
    if dynamic:
        sizes = (f"{spec.name}:{'x'.join(str(size) for size in (batch, *spec.shape[1:]))}" for spec in dynamic)
        command.append(f"--shapes={','.join(sizes)}")
    answers = [_run(command) for _ in range(RUNS)]
    rates, times = ([_number(pattern, text, tool) for text in answers] for pattern in (_THROUGHPUT, _COMPUTE))
    return Opinion(statistics.median(rates) * batch, statistics.median(times))


def _run(command: Sequence[str]) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=children.environment(),
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{name} took over {_PATIENCE_S:.0f} s") from error
    except OSError as error:
        raise EngineError(f"{name} could not be started: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()
        raise EngineError(f"{name} failed: {shortened((lines or ['no reason given'])[-1])}")
    return done.stdout


def _number(pattern: re.Pattern[str], text: str, tool: str) -> float:
    match = pattern.search(text)
    if match is None:
        raise EngineError(f"{Path(tool).name} told no {pattern.pattern.partition(':')[0]}")
    return float(match[1])
