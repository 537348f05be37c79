"""Standard output and error, whatever their encoding: always there, and no traceback for what they cannot take."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TextIO

from lifedeploy import text

PIPE_CLOSED = 141  # as the shell shows a program that SIGPIPE ended


def prepare() -> None:
    """Make what was closed lead nowhere, and have streams show in their own way what their encoding lacks.

    A closed standard output is a free descriptor: the next file that is opened would get it, and everything that a
    library prints.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=text.TERMINAL)


def flush() -> None:
    """Have the system take what was written.

    Raises:
        OSError: it does not.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(ValueError):  # closed by somebody
                stream.flush()


def is_of_a_stream(error: OSError) -> bool:
    """Whether an error is of standard output or error, as those name no file."""
    of_writing = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)
    return error.filename is None and (isinstance(error, BrokenPipeError) or error.errno in of_writing)


def silence(stream: TextIO | None) -> None:
    """Let a stream lead nowhere from here on: what it still holds would be tried again, and said, as Python ends."""
    if stream is None:
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
