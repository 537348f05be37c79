"""Becoming one of a Ray cluster: found or started, quietly, and with no word to anybody that was not asked for.

https://docs.ray.io/en/latest/ray-core/starting-ray.html
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import lifedeploy
from lifedeploy.children import environment
from lifedeploy.errors import EngineError
from lifedeploy.reading import reason
from lifedeploy.text import shortened, without_colours

_ANSWER_S = 10.0  # within which a cluster takes a connection


@contextmanager
def joined(ray: Any) -> Iterator[None]:
    """Inside, this process is one of a cluster."""
    if ray.is_initialized():  # whoever calls us has done that, and goes on with it
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    _require_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its maker what runs
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is raised; the rest is in its own log files
    os.environ.update(environment())  # what it starts looks for no module in the current folder
    try:
        # Ray puts the current folder onto the path of its workers. What lies where this package does is there already.
        with chdir(Path(lifedeploy.__file__).parent.parent), _without_stderr(), _same_handlers():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever an address comes to
        hint = "RAY_TMPDIR names a folder of a shorter path for its sockets" if "AF_UNIX" in str(error) else None
        where = f" at {address}" if address else ""
        raise EngineError(f"Ray cannot be joined{where}: {said(error)}", hint=hint) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Make sure that somebody is at ``HOST:PORT``: Ray waits for a quarter of an hour.

    Raises:
        EngineError: nobody is.
    """
    match = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^\]/]+)\]?:(?P<port>[0-9]{1,5})", address)
    if match is None:
        return  # "auto", "local": there is nothing to ask
    try:
        socket.create_connection((match["host"], int(match["port"])), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"Ray cannot be joined at {address}: {reason(error)}", hint="RAY_ADDRESS says where"
        ) from error


@contextmanager
def _same_handlers() -> Iterator[None]:
    """What answers to signals is what did so before: Ray puts its own in the place of ours."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing that C++ says comes out: that it was told to say nothing is one of the things that it says."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def said(error: Exception) -> str:
    """What an error of Ray's says, or the one of a worker that it is wrapped around; without its colours."""
    inner = getattr(error, "cause", None) or error
    return shortened(without_colours(str(inner))) or type(inner).__name__
