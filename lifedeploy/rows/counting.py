"""Token counts that several rows have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifedeploy.errors import ScheduleError
from lifedeploy.method import Counting
from lifedeploy.schedule import Schedule


def every_token(method: str, hint: str) -> Counting:
    """Every token in every layer, whatever the keep rate; drop layers are refused with a ``hint``."""

    def counts(patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: Any) -> Schedule:
        if drop_layers:
            raise ScheduleError(f"{method} drops nothing, so it has no drop layers", hint=hint)
        return Schedule.dense(patches, depth)

    return counts
