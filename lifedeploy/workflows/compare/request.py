"""What is to be compared, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lifedeploy import methods
from lifedeploy.errors import UsageError
from lifedeploy.method import Method
from lifedeploy.model.request import ModelRequest
from lifedeploy.spec import QUANTIZED
from lifedeploy.text import quoted
from lifedeploy.typed import COMPARED_AT
from lifedeploy.workflows.bench import BenchRequest


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """Which methods, brought to the same what, and how they are measured."""

    model: ModelRequest = field(default_factory=lambda: ModelRequest(backbone="deit_s"))  # whatever its method
    methods: tuple[str, ...] = ()  # none: all there are; what they are compared with is always among them
    at: str = COMPARED_AT[0]
    bench: BenchRequest = field(default_factory=lambda: BenchRequest(memory=False))  # its engines, settings and data
    calibration_data: str = ""  # images to calibrate for INT8 and FP8 with, where that has not been done
    fresh: bool = False  # measure again what was measured here before
    allow_unfused: bool = False  # keep engines whose attention is not fused, and say so
    skip_refused: bool = False  # go on without a model on an engine whose parity gate refuses it, and say so
    checkpoints: tuple[Path, ...] = ()  # instead of methods: files of ours, each as it was trained

    def __post_init__(self) -> None:
        quantised = [name for name in self.bench.engines if name.rpartition(":")[2] in QUANTIZED]
        if self.calibration_data and self.bench.engines and not quantised:
            raise UsageError(
                f"--calibration-data is for INT8 and FP8, and no engine of {', '.join(self.bench.engines)} has them",
                hint="--engine NAME:int8",
            )
        if self.at not in COMPARED_AT:
            raise UsageError(
                f"methods cannot be compared at the same {quoted(self.at)}; there are: {', '.join(COMPARED_AT)}"
            )
        twice = next((name for name in self.methods if self.methods.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"method {quoted(twice)} is named twice: it would take turns with itself")
        if self.checkpoints and (self.methods or self.at != COMPARED_AT[0]):
            raise UsageError("checkpoints are compared as they were trained: neither methods nor what to bring them to")
        if not self.slimmed:
            raise UsageError(
                f"no method of {', '.join(self.methods)} drops tokens by a choice, so there is nothing to compare; "
                f"there are: {', '.join(methods.names(methods.SLIMMED))}"
            )

    @property
    def slimmed(self) -> tuple[Method, ...]:
        """The methods to compare, in order.

        Raises:
            UsageError: there is none of that name, or it cannot be used.
        """
        named = map(methods.get, self.methods or methods.names())
        return tuple(method for method in named if method.role == methods.SLIMMED)

    @property
    def takes_bound(self) -> bool:
        """Whether the bound takes part; that of one checkpoint is none of the others."""
        return not self.checkpoints and (not self.methods or methods.bound().name in self.methods)
