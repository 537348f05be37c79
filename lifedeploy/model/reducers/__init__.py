"""Token reducers: the seam in :mod:`.base`, one method per file; :mod:`lifedeploy.methods` has the table of them."""

from __future__ import annotations

from importlib import import_module

import torch

from lifedeploy.errors import LifedeployError
from lifedeploy.method import Method
from lifedeploy.model.reducers.base import KeepPrefix, Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.reading import reason

__all__ = [
    "BlockAttention",
    "KeepPrefix",
    "Plan",
    "Reducer",
    "TakeOrdered",
    "Tokens",
    "build_reducer",
    "load_reducer",
]


def build_reducer(method: Method, plan: Plan) -> Reducer:
    """The reducer of a method.

    Raises:
        UsageError: the method's graph has no such ordering, or its reducer cannot be imported.
    """
    method.require_ordering(plan.ordering)
    reducer = load_reducer(method)
    with method.blamed("its reducer"), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # the same parameters to start from, wherever it is made
        built = reducer.build(plan)
    if not isinstance(built, Reducer):
        raise method.broken(f"{method.reducer} builds a {type(built).__name__}, which is no Reducer")
    return built


def load_reducer(method: Method) -> type[Reducer]:
    """The class of a method's reducer.

    Raises:
        UsageError: it cannot be imported, or is none.
    """
    module, _, name = method.reducer.partition(":")
    try:
        reducer = getattr(import_module(module), name)
    except LifedeployError:
        raise
    except (Exception, SystemExit) as error:  # code of others: anything may come out of it
        raise method.broken(f"its reducer {method.reducer} cannot be imported: {reason(error)}") from error
    if not (isinstance(reducer, type) and issubclass(reducer, Reducer)):
        raise method.broken(f"{method.reducer} is no Reducer")
    return reducer
