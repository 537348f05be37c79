"""How work says what it is doing and how far it is, without knowing who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Say = Callable[[str], None]  # told what is being done


@dataclass(frozen=True)
class Step:
    """How far something is: what is done, the share of it that is over, 0…1, and that in words, as ``7 rounds``."""

    what: str
    share: float
    detail: str = ""


Progress = Callable[[Step], None]


def silent(message: str) -> None:
    """A :data:`Say` where nobody listens."""


def unwatched(step: Step) -> None:
    """A :data:`Progress` where nobody watches."""


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Keep what loggers of other libraries say off the screen, but for errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
