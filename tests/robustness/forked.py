"""One command line in a forked child: limited in time and memory, in a folder of its own, with its output caught.

The parent imports the heavy libraries once and computes nothing, so that a fork has only the one thread it needs; a
child starts in a tenth of a second, where an interpreter takes two. Only where children can be forked: not on Windows.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import multiprocessing.util
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import termios
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1024**3
ENVIRONMENT = {  # of all children; set before anything is imported, since some libraries look once
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "SOURCE_DATE_EPOCH": "1700000000",
    "CUDA_VISIBLE_DEVICES": "",
    "ORT_DISABLE_TELEMETRY": "1",  # which lifedeploy sets before it imports ONNX Runtime
    "TERM": "dumb",
}
_KEPT_OUTPUT = 4 * 1024**2  # bytes of what a child says that are looked at


def preload(folder: Path) -> None:
    """Import what commands need; the cache of the hub is in ``folder``, so that nobody's models are found there.

    Standard output is put aside meanwhile: a console looks once whether it is a terminal.
    """
    os.environ.update(ENVIRONMENT, HF_HOME=str(folder / "hub"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name in ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "accelerate", "torchvision"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        importlib.import_module("torch.onnx._internal.exporter._core")
        importlib.import_module("matplotlib.pyplot")
        import lifedeploy

        for module in pkgutil.walk_packages(lifedeploy.__path__, "lifedeploy."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # of a runtime that is not installed
                    importlib.import_module(module.name)
        from lifedeploy.bench import measure

        measure.MIN_ROUND_S = 0.01  # speeds are not what is looked at
        import torch

        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody counts in them


@dataclass(frozen=True)
class Command:
    """A command line and its surroundings."""

    argv: tuple[str, ...]  # behind ``lifedeploy``
    folder: Path  # the current one
    environment: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"  # of its standard output and error
    terminal: bool = False  # whether these are one
    largest_file: int = 0  # bytes; 0: any


@dataclass(frozen=True)
class Ended:
    """How it ended. ``code`` is negative for a signal."""

    code: int
    out: bytes
    err: bytes  # on a terminal both are in ``out``
    seconds: float
    peak: int  # bytes of resident memory, the largest of all its processes
    hung: bool = False
    left: bool = False  # whether processes of its were still there


class Running:
    """A child, watched by :meth:`poll` until it has ended."""

    def __init__(self, command: Command, *, seconds: float = 60, memory: int = 4 * GIB) -> None:
        self.command, self._seconds, self._memory = command, seconds, memory
        self._said, self._hung, self._peak = bytearray(), False, 0
        self._master = -1
        if command.terminal:
            self._master, slave = os.openpty()
            os.set_blocking(self._master, False)
            ends = (slave, slave)
        else:
            ends = (os.memfd_create("out"), os.memfd_create("err"))
        self._ends = ends
        self._began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, ends)  # does not return
        if command.terminal:
            os.close(ends[0])

    def poll(self) -> Ended | None:
        """How it ended; None while it runs. Ends it where it takes too long or too much."""
        if self._master >= 0:
            self._listen()
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            return self._ended(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
        self._peak = max(self._peak, *(_resident(process) for process in _family(self.pid)))
        self._hung = time.monotonic() - self._began > self._seconds
        if self._hung or self._peak > self._memory:
            self.end(signal.SIGKILL)
        return None

    def end(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        with contextlib.suppress(ProcessLookupError):  # before it has a group of its own
            os.kill(self.pid, number)

    def _ended(self, code: int, peak: int) -> Ended:
        seconds = time.monotonic() - self._began
        left = True
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            left = False
        if self._master >= 0:
            self._listen()
            os.close(self._master)
            out, err = bytes(self._said), b""
        else:
            out, err = map(_content, self._ends)
        return Ended(code, out, err, seconds, max(peak, self._peak), self._hung, left)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # nothing there now, or nobody there any more
            while data := os.read(self._master, 65536):
                self._said += data[: max(0, _KEPT_OUTPUT - len(self._said))]


def run(command: Command, *, seconds: float = 60, memory: int = 4 * GIB) -> Ended:
    """Start a child and wait for it."""
    running = Running(command, seconds=seconds, memory=memory)
    while (ended := running.poll()) is None:
        time.sleep(0.01)
    return ended


def _become(command: Command, ends: tuple[int, int]) -> None:
    """The child: what an interpreter would do that was started for this command."""
    code = 99
    try:
        os.setsid()
        with contextlib.suppress(OSError):
            fcntl.ioctl(ends[0], termios.TIOCSCTTY, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(ends[0], 1)
        os.dup2(ends[1], 2)
        sys.stdout = open(1, "w", encoding=command.encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=command.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # what was left to be done at the end is the parent's, but for
        atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if command.largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (command.largest_file, command.largest_file))
        os.environ.update(command.environment)
        tempfile.tempdir = None
        os.chdir(command.folder)
        sys.argv = ["lifedeploy", *command.argv]
        code = _main()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _main() -> int:
    from lifedeploy.cli import app

    try:
        app.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    else:
        code = 0
    atexit._run_exitfuncs()
    return code & 0xFF


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read(_KEPT_OUTPUT)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
