"""How a workflow says what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def silent(message: str) -> None:
    """Nobody listens."""
