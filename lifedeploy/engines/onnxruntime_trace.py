"""ONNX Runtime's trace of its own execution, read back: one event per node and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lifedeploy.engines.base import LayerTime
from lifedeploy.errors import EngineError
from lifedeploy.reading import decode_json, read_text

WARM_UP = 3  # runs that a profile leaves out
_KERNEL = "_kernel_time"  # how the trace names a node's own time
_LARGEST = 1024**3  # bytes


class _Event(msgspec.Struct):
    """What is read of an event; ``dur`` in microseconds."""

    cat: str = ""
    name: str = ""
    dur: float = 0.0
    args: dict[str, Any] = msgspec.field(default_factory=dict)


def times(trace: Path, runs: int) -> tuple[LayerTime, ...]:
    """Mean time of every node over ``runs``, which come after those of the warm-up.

    Raises:
        EngineError: it is not what ONNX Runtime writes.
    """
    events = decode_json(
        read_text(trace, EngineError, limit=_LARGEST), list[_Event], "ONNX Runtime's trace", EngineError
    )
    spent: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.cat == "Node" and event.name.endswith(_KERNEL):
            key = event.name.removesuffix(_KERNEL), str(event.args.get("op_name", ""))
            spent.setdefault(key, []).append(event.dur / 1000)
    return tuple(LayerTime(name, kind, sum(durations[WARM_UP:]) / runs) for (name, kind), durations in spent.items())
