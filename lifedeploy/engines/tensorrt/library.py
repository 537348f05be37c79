"""The vendor's module, TensorRT's or TensorRT for RTX's: what it calls things, and what it says.

TensorRT 11 took out weak typing and moved the numbers of its enumerations, so everything is looked up by name, and a
name that is not there is an error instead of another flag.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from lifedeploy.errors import EngineUnavailableError


def named(trt: ModuleType, kind: str, member: str) -> Any:
    """``trt.kind.member``.

    Raises:
        EngineUnavailableError: this version has no such thing.
    """
    value = getattr(getattr(trt, kind, None), member, None)
    if value is None:
        raise EngineUnavailableError(f"{trt.__name__} {trt.__version__} has no {kind}.{member}")
    return value


def capabilities(trt: ModuleType) -> dict[str, Any]:
    """The GPUs that this runtime has kernels for, where it says so: ``SM86`` → the vendor's constant."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {name: member for name, member in members.items() if name.startswith("SM")}


class Messages:
    """What the runtime said, by severity, in order; given to it as its logger."""

    def __init__(self, trt: ModuleType) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        severity = trt.ILogger.Severity
        outer = self

        class _Logger(trt.ILogger):  # type: ignore[name-defined]  # known at run time only
            def log(self, level: Any, message: str) -> None:
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    outer.errors.append(message)
                elif level == severity.WARNING:
                    outer.warnings.append(message)

        self.logger = _Logger()

    def reason(self) -> str:
        """The last error, without the vendor's source positions."""
        return concise(self.errors[-1]) if self.errors else "no reason was given"


def concise(message: str) -> str:
    """A message of the runtime in one line: ``…: Error Code 4: API Usage Error (WHAT In f at file)`` → WHAT."""
    text = re.sub(r"^\[[^\]]*\] ", "", " ".join(message.split()))
    for mark in (" In processCheck at ", " In analyzeShapes at ", " In ", " (See https://"):
        text = text.partition(mark)[0]
    before, bracket, inner = text.partition(" (")
    if bracket and "Error Code" in before:
        text = inner
    text = text.rstrip(" .")
    return text[:-1].rstrip(" .") if text.count(")") > text.count("(") and text.endswith(")") else text
