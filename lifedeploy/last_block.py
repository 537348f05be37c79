"""What the last block of a model computes: prefix tokens alone, where nothing else is read behind it, or all tokens."""

from __future__ import annotations

from typing import Literal

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.method import Method
from lifedeploy.typed import LastBlock


def last_block_of(method: Method, backbone: str, obstacle: str, asked: LastBlock | Literal[""] = "") -> LastBlock:
    """What is ``asked``; else prefix tokens alone, if that is enough.

    Args:
        method: whose model it is.
        backbone: what that is called.
        obstacle: why the backbone needs all tokens there, in words; '': it does not.
        asked: '': whatever is enough.

    Raises:
        UnsupportedModelError: prefix tokens alone are asked for, and are not enough.
    """
    if method.last_block == "full":
        obstacle = f"{method.name} computes all tokens there"
    if asked == "prefix" and obstacle:
        raise UnsupportedModelError(
            f"the last block of {backbone} under {method.name} cannot be of prefix tokens alone: {obstacle}",
            hint="--last-block full",
        )
    return asked or ("full" if obstacle else "prefix")
