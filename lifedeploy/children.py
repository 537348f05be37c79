"""Processes of our own, and other people's tools: neither is looked for in the current folder.

Python puts the current folder first on the path of what it is told to run, so ``numpy.py`` in a folder of downloaded
models would run in every child that we start there; an empty or relative entry of ``PATH`` does the same to a tool.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from lifedeploy.errors import EngineError
from lifedeploy.text import shortened

# The package comes from where this process has it, whether that is installed or a checkout, and brings no folder with
# it onto the path.
_START = """
import importlib.util, runpy, sys
folder, module = sys.argv[1:3]
find = importlib.util.spec_from_file_location
spec = find("lifedeploy", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["lifedeploy"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv[:3] = [module]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_SEARCHED = ("PATH", "PYTHONPATH")  # what holds folders to look in


def python(*arguments: str) -> list[str]:
    """The command that runs this Python on ``arguments``, without the current folder or the script's on its path."""
    return [sys.executable, "-P", *arguments]


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, ``lifedeploy`` or one below it, as a program of its own."""
    return python("-c", _START, str(Path(__file__).parent), module, *arguments)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment and ``more``, for a child: it and those that it starts search no current folder."""
    variables = {**os.environ, **(more or {}), "PYTHONSAFEPATH": "1"}
    for name in _SEARCHED:
        if name in variables:
            variables[name] = _absolute(variables[name])
            if not variables[name]:
                del variables[name]
    return variables


def tool(name: str) -> str | None:
    """Where the program ``name`` is on the PATH, if it is; what lies in the current folder is not meant."""
    return shutil.which(name, path=_absolute(os.environ.get("PATH", os.defpath)) or os.defpath)


def run(
    program: Sequence[str], what: str, *, given: str = "", more: Mapping[str, str] | None = None, timeout_s: float
) -> str:
    """What a program writes to its standard output.

    Args:
        program: the command that runs it.
        what: what errors call it.
        given: its standard input.
        more: of its environment.
        timeout_s: seconds that it may take.

    Raises:
        EngineError: it failed, with the last line that it wrote of it; or it took longer.
    """
    try:
        done = subprocess.run(
            program,
            input=given,
            env=environment(more),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{what} failed: it took over {timeout_s:,.0f} s") from error
    except OSError as error:
        raise EngineError(f"{what} failed: it could not be started: {error.strerror}") from error
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["no reason given"]
        marked = [line for line in said if "[E]" in line]  # as NVIDIA's tools mark errors among other lines
        if done.returncode < 0 and not marked:
            raise EngineError(f"{what} failed: signal {-done.returncode} ended it; was there enough memory?")
        raise EngineError(f"{what} failed: {shortened((marked or said)[-1])}")
    return done.stdout


def end_tidily(number: int, frame: FrameType | None = None) -> None:
    """A handler of signals for forked workers: they end without a word, and what libraries made for them goes."""
    sys.exit(128 + number)


def as_worker(number: int = 0) -> None:
    """At the start of a worker of PyTorch's (``worker_init_fn``), which otherwise ends on the spot at SIGTERM."""
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, end_tidily)


def _absolute(folders: str) -> str:
    """A list of folders without those that depend on the current one: an empty entry means it."""
    return os.pathsep.join(folder for folder in folders.split(os.pathsep) if Path(folder).is_absolute())
