"""How much may be asked for: pixels of an image, images, threads."""

from __future__ import annotations

from lifedeploy.data import formats
from lifedeploy.errors import UsageError
from lifedeploy.text import quoted

MOST_IMAGES = 10**9  # of a data set
MOST_IN_BATCH = 16_384
MOST_THREADS = 1024


def limit_pixels(count: int) -> None:
    """Open no image of more than ``count`` pixels, in this process and those that it starts.

    Raises:
        UsageError: less than one pixel, or more than any image can have.
    """
    formats.limit_pixels(count)


def require_within(value: float, most: int, what: str) -> None:
    """Make sure that a number is 1 to ``most``, and a whole one; ``what`` is counted by it.

    Raises:
        UsageError: it is not.
    """
    if not value >= 1:  # NaN too
        raise UsageError(f"{quoted(value)} {what} are not allowed: at least 1 is needed")
    if value > most or value != int(value):
        raise UsageError(f"{quoted(value)} {what} are not allowed; expected a whole number up to {most:,}")
