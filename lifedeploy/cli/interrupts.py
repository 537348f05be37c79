"""Signals that ask for an end: all of them end a command the way Ctrl-C does, cleaning up behind itself."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lifedeploy.children import end_tidily

_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
SAID = "interrupted; nothing half-written was left behind"
_CLEANING_UP_S = 5.0  # seconds after the first signal in which others are waited out
_SWALLOWED_S = 1.0  # seconds after which it is looked whether a library has caught what the signal raised
_previous: dict[signal.Signals, Any] = {}  # what was there before; empty: ours are not installed
_first: float | None = None  # when the first signal came


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise KeyboardInterrupt too, in the main thread.

    What the parent had ignored stays ignored (``nohup``). A second signal does not cut the clean-up short that the
    first one has begun: supervisors send several, and hands are quick.
    """
    global _first
    if threading.current_thread() is not threading.main_thread() or _previous:
        yield
        return
    _first = None
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _previous[number] = signal.signal(number, _interrupt)
    try:
        yield
    except SystemExit as ending:
        if _first is not None:
            _leave(ending.code)
        raise
    finally:
        _restore()


def came() -> bool:
    """Whether a signal has asked for the end: libraries make other errors of it on the way up."""
    return _first is not None


def _leave(code: Any) -> None:
    """End an interrupted process with the exit code that it says.

    Python would end with another one, 130, if the signal came while a library ran code that it had made (every
    dataclass does), and gives signals back to the system before it has ended.
    """
    for number in (*_previous, *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else [])):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _first
    now = time.monotonic()
    if _first is not None and now - _first < _CLEANING_UP_S:
        return
    _first = now
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _insist)
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED_S, _SWALLOWED_S)
    raise KeyboardInterrupt


def _insist(number: int, frame: FrameType | None) -> None:
    """Raise again what a library has caught and dropped, as callbacks and finalisers do; not while it is cleaned up."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return
        error = error.__context__
    raise KeyboardInterrupt


def _restore() -> None:
    if _first is not None and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in _previous.items():
        signal.signal(number, handler)
    _previous.clear()


def _in_child() -> None:
    """A forked worker is ended by a signal too, its parent's or one to the whole group: quietly, and what the libraries
    in it have made for themselves goes."""
    global _first
    if threading.current_thread() is threading.main_thread() and _previous:
        _restore()
        _first = None
        for number in _SIGNALS:
            if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, end_tidily)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
