"""The runtime's own times of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lifedeploy.engines.base import LayerTime


class Recorder:
    """Adds up what the runtime reports; ``profiler`` is what it is given.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html (IProfiler)
    """

    def __init__(self, trt: ModuleType) -> None:
        self._spent: dict[str, float] = {}
        spent = self._spent
        base: Any = trt.IProfiler

        class _Profiler(base):
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                spent[layer_name] = spent.get(layer_name, 0.0) + ms

        self.profiler = _Profiler()

    def forget(self) -> None:
        """Begin anew, after the warm-up."""
        self._spent.clear()

    def layers(self, runs: int, origins: Mapping[str, tuple[str, str]]) -> tuple[LayerTime, ...]:
        """Means over ``runs``. Layers are fused from several operators: where it is known, those are their names."""
        times = []
        for name, total in self._spent.items():
            kernel, nodes = origins.get(name, ("", ""))
            times.append(LayerTime(nodes or name, kernel, total / runs))
        return tuple(times)
