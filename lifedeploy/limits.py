"""How much may be asked for, by the command line and by requests alike."""

from __future__ import annotations

import os
import re
from numbers import Integral
from typing import Any

from lifedeploy.errors import UsageError
from lifedeploy.text import quoted

MOST_IMAGES = 10**9  # of a data set
MOST_IN_BATCH = 65_536
MOST_BATCHES = 64  # batch sizes of one benchmark
MOST_CLIENTS = 256  # that ask a server at the same time
MOST_TUNED_IMAGES = 10_000  # that schedules are tuned on: they are held in memory
MOST_TOP = 100  # classes that are kept of an image: a column or three each
MOST_STREAMS = 1_024  # requests in flight
MOST_THREADS = 4_096
LONGEST_BUDGET_S = 30 * 86_400
PIXELS = 178_956_970  # of an image at most, unless told: where Pillow refuses them if it is not told either
MOST_PIXELS = 2**31 - 1  # Pillow counts in 32 bits
_LIMIT = "LIFEDEPLOY_MAX_PIXELS"  # in the environment, so that processes that decode for this one have it too


def limit_pixels(count: int) -> None:
    """From now on images of at most ``count`` pixels are opened, in this process and those that it starts.

    Raises:
        UsageError: less than one pixel, or more than any image can have.
    """
    if not 1 <= count <= MOST_PIXELS:
        raise UsageError(f"a limit of {count:,} pixels is not allowed; expected 1 to {MOST_PIXELS:,}")
    os.environ[_LIMIT] = str(count)


def pixel_limit() -> int:
    """Pixels that an image may have.

    Raises:
        UsageError: the environment holds a limit that is none.
    """
    text = os.environ.get(_LIMIT, str(PIXELS))
    count = int(text) if re.fullmatch("[0-9]{1,10}", text) else 0
    if not 1 <= count <= MOST_PIXELS:
        raise UsageError(f"{_LIMIT} is {text!r}; expected 1 to {MOST_PIXELS}", hint="--max-pixels sets it")
    return count


def require_within(value: Any, most: int, what: str, *, optional: bool = False) -> None:
    """Make sure that a number is a whole one, 1 to ``most``, or None where it is optional; ``what`` is counted by it.

    Raises:
        UsageError: it is not.
    """
    if value is None and optional:
        return
    if not isinstance(value, Integral):
        raise UsageError(f"{quoted(value)} {what} are not allowed; expected a whole number up to {most:,}")
    if not 1 <= int(value) <= most:
        raise UsageError(f"{quoted(value)} {what} are not allowed: at least 1 is needed, and at most {most:,}")
