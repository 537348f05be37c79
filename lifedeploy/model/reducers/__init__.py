"""Token reducers: the seam in :mod:`.base`, one method per file, and the table of methods."""

from __future__ import annotations

from collections.abc import Callable

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import BlockAttention, Reducer, Tokens, run_block
from lifedeploy.model.reducers.dense import DenseReducer
from lifedeploy.model.reducers.first_k import FirstKReducer
from lifedeploy.model.reducers.life import LifePredictor, LifeReducer, lives
from lifedeploy.schedule import Schedule
from lifedeploy.spec import GRAPHS

__all__ = [
    "BlockAttention",
    "DenseReducer",
    "FirstKReducer",
    "LifePredictor",
    "LifeReducer",
    "Reducer",
    "Tokens",
    "build_reducer",
    "lives",
    "run_block",
]

# method → (schedule, channels, prefix tokens, graph form, U) → reducer. A new method is one file and one line here.
_BUILDERS: dict[str, Callable[[Schedule, int, int, str, float], Reducer]] = {
    "dense": lambda schedule, dim, prefix, graph, temperature: DenseReducer(schedule),
    "first-k": lambda schedule, dim, prefix, graph, temperature: FirstKReducer(schedule, prefix),
    "life": lambda schedule, dim, prefix, graph, temperature: LifeReducer(
        schedule, dim, prefix, graph=graph, temperature=temperature
    ),
}


def build_reducer(
    method: str, schedule: Schedule, dim: int, prefix: int, *, graph: str = "order-once", temperature: float = 1.5
) -> Reducer:
    """The reducer called ``method``.

    Raises:
        UsageError: there is no such method.
    """
    if method not in _BUILDERS:
        raise UsageError(f"method {method!r} is unknown; there are: {', '.join(_BUILDERS)}")
    if graph not in GRAPHS:
        raise UsageError(f"graph {graph!r} is unknown; there are: {', '.join(GRAPHS)}")
    return _BUILDERS[method](schedule, dim, prefix, graph, temperature)
