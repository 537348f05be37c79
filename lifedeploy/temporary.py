"""Temporary names beside the files they will become: hidden, owned, and gone when their owner is.

A name says whose it is, ``.NAME.HOST-PID.XXXXXXXX.lifedeploy-tmp``, and its owner holds a lock on it (flock) for as
long as it lives: the kernel lets go of that however a process ends, across containers too, where one number stands for
several processes. What is left of a dead one is removed by the next writer that comes to the same folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: the process number decides alone
    fcntl = None  # type: ignore[assignment]

_ENDING = ".lifedeploy-tmp"
_ASIDE = ".lifedeploy-old"  # of what makes room for its successor: it goes back if that does not come
_NAME = re.compile(
    rf"\.(?P<name>.*)\.(?P<host>[\w-]*)-(?P<pid>\d{{1,9}})\.[0-9a-f]{{8}}(?P<ending>{re.escape(_ENDING)}|{re.escape(_ASIDE)})",
    re.DOTALL,
)
_LONGEST = 120  # bytes of a name that are kept in ours, which may have 255
_held: set[int] = set()  # descriptors of locks of this process


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that is being written, or was left by a writer that died."""
    return _NAME.fullmatch(name) is not None


@contextmanager
def temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new empty file or folder beside ``path``, ours until the block ends; then removed, if it still has that name.

    What dead owners left in the same place is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    name, lock = _new(path, folder=folder)
    try:
        yield name
    finally:
        remove(name)
        release(lock)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Another name for what is at ``path``, until its successor has come; back at ``path`` if it has not by the end of
    the block, or, if the process dies in it, with the next :func:`sweep`.

    Raises:
        OSError: it cannot be renamed; FileNotFoundError if it is not there.
    """
    name = path.with_name(_owned(path, _ASIDE))
    path.rename(name)
    descriptor, _ = _locked(name, folder=name.is_dir())
    try:
        yield name
    finally:
        _put_back_or_remove(name, path)
        release(descriptor)


def sweep(folder: Path) -> None:
    """Remove what owners that have died left in ``folder``; put back what they had put aside."""
    with suppress(OSError):
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            with _abandoned(path, match) as abandoned:  # held until it is gone, so that no new owner takes it over
                if abandoned and match["ending"] == _ENDING:
                    remove(path)
                # A longer name may be cut: whoever knows it decides.
                elif abandoned and len(os.fsencode(match["name"])) < _LONGEST - 3:
                    _put_back_or_remove(path, folder / match["name"])


def _put_back_or_remove(name: Path, path: Path) -> None:
    if path.exists():
        remove(name)
    else:
        with suppress(OSError):  # what there was stays where it is
            name.rename(path)


def remove(path: Path) -> None:
    """Take a temporary file or folder away, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def lock(path: Path, *, folder: bool) -> int | None:
    """A lock on an existing file or folder, held until :func:`release` or the end of the process; None: not taken,
    since somebody has it. Where the file system has no locks, a descriptor that locks nothing.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor, locked = _locked(path, folder=folder)
    if locked is False:
        release(descriptor)
        return None
    return descriptor


def _locked(path: Path, *, folder: bool) -> tuple[int, bool | None]:
    """An open descriptor, and whether it has the lock; None: this file system keeps none."""
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_DIRECTORY", 0) if folder else 0)
    descriptor = os.open(path, flags)
    _held.add(descriptor)
    if fcntl is None:
        return descriptor, None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return descriptor, False
    except OSError:  # network file systems that keep none
        return descriptor, None
    return descriptor, True


def wait_for(path: Path, *, shared: bool) -> int | None:
    """A lock on the folder at ``path``, once those that stand against it are gone; None: there is no such folder, or no
    locks. ``shared``: with others who only need it to stay as it is.
    """
    while fcntl is not None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
        except OSError:
            return None
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError:
            release(descriptor)
            return None
        except BaseException:
            release(descriptor)
            raise
        if _is(path, descriptor):
            return descriptor
        release(descriptor)  # another folder has come to this name while we waited
    return None


def release(descriptor: int) -> None:
    """Let go of a lock."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _new(path: Path, *, folder: bool) -> tuple[Path, int]:
    while True:
        name = path.with_name(_owned(path, _ENDING))
        try:
            held = _created(name, folder=folder)
        except FileExistsError:  # somebody else's
            continue
        except BaseException:  # an interrupt, which is heard of when the disk has answered: the name is there then
            remove(name)
            raise
        if held is not None:
            return name, held


def _created(name: Path, *, folder: bool) -> int | None:
    """The lock on a new file or folder; None: before it had one, somebody has swept it away."""
    if folder:
        name.mkdir()  # with the usual rights: it keeps them under its final name
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    with suppress(FileNotFoundError):
        held = lock(name, folder=folder)
        if held is not None:
            if _is(name, held):
                return held
            release(held)
    return None


def _is(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is a name of what the descriptor has open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _owned(path: Path, ending: str) -> str:
    name = os.fsencode(path.name)[:_LONGEST].decode("utf-8", "ignore")  # as much of it as leaves room for ours
    return f".{name}.{_host()}-{os.getpid()}.{secrets.token_hex(4)}{ending}"


@contextmanager
def _abandoned(path: Path, name: re.Match[str]) -> Iterator[bool]:
    """Whether nobody holds the lock, which this does then; where there are none, whether the owner was here and is no
    process any more."""
    try:
        descriptor, locked = _locked(path, folder=path.is_dir())
    except OSError:
        yield False
        return
    try:
        if locked is None:
            locked = name["host"] == _host() and not _alive(int(name["pid"]))
        yield locked
    finally:
        release(descriptor)


def _host() -> str:
    return re.sub(r"[^\w-]", "", socket.gethostname(), flags=re.ASCII)[:40]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _forget() -> None:
    """In a child after fork: a lock belongs to all who have it open, and must end with the parent."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
