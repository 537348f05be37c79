"""NVIDIA's own benchmark tool on the same plan, where it is installed: a second opinion on our runtime.

https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/benchmarking.html
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lifedeploy import children
from lifedeploy.artifact import TensorSpec
from lifedeploy.engines import registry
from lifedeploy.errors import EngineError

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
    name = Path(tool).name
    offered = children.run([tool, "--help"], name, timeout_s=_PATIENCE_S)
    command = [tool, f"--loadEngine={plan}", f"--duration={_SECONDS}", *(flag for flag in _WANTED if flag in offered)]
    dynamic = [spec for spec in inputs if spec.shape[0] is None]
    if dynamic:
        sizes = (f"{spec.name}:{'x'.join(str(size) for size in (batch, *spec.shape[1:]))}" for spec in dynamic)
        command.append(f"--shapes={','.join(sizes)}")
    answers = [children.run(command, name, timeout_s=_PATIENCE_S) for _ in range(RUNS)]
    rates, times = ([_number(pattern, text, name) for text in answers] for pattern in (_THROUGHPUT, _COMPUTE))
    return Opinion(statistics.median(rates) * batch, statistics.median(times))


def _number(pattern: re.Pattern[str], text: str, name: str) -> float:
    match = pattern.search(text)
    if match is None:
        raise EngineError(f"{name} told no {pattern.pattern.partition(':')[0]}")
    return float(match[1])
