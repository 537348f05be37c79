"""One process, or several started by ``accelerate launch`` or ``torchrun``: who this is, and how results come together.

Accelerate is imported only where there are several.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

from lifedeploy.errors import UsageError
from lifedeploy.reading import foreign
from lifedeploy.text import quoted

T = TypeVar("T")
_MOST = 65_536


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that reports."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """What every process gives, in the order of their ranks; every process gets all of it."""
        if self.world == 1:
            return [mine]
        from accelerate.utils import gather_object

        return list(gather_object([mine]))


def here() -> Processes:
    """Where this process stands. Joins the others, if there are any.

    Raises:
        UsageError: the environment says something else than how many there are.
    """
    world = os.environ.get("WORLD_SIZE") or "1"
    if not (world.isascii() and world.isdigit() and 1 <= int(world[:9]) <= _MOST):
        raise UsageError(
            f"WORLD_SIZE is {quoted(world)}; expected the number of processes", hint="accelerate launch sets it"
        )
    if int(world) == 1:
        return Processes()
    for name, most in (("RANK", int(world) - 1), ("LOCAL_RANK", int(world) - 1), ("MASTER_PORT", 65_535)):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and int(value[:9]) <= most):
            raise UsageError(
                f"WORLD_SIZE is {world}, and {name} is {quoted(value)}; expected 0 to {most:,}",
                hint="accelerate launch sets all of them; for one process, take WORLD_SIZE out of the environment",
            )
    from accelerate import PartialState

    with foreign("the other processes", UsageError):
        state = PartialState(cpu=True)  # objects are gathered, not tensors: no need for a GPU each
    return Processes(state.process_index, state.num_processes)
