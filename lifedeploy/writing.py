"""Files and folders that appear under their name when they are complete, and are on the disk when they do."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lifedeploy.errors import LifedeployError, UsageError
from lifedeploy.reading import reason
from lifedeploy.temporary import aside, is_temporary, lock, release, temporary, wait_for

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE, https://man7.org/linux/man-pages/man2/renameat2.2.html
# What only goes wrong when something is written; Python gives no name with it.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)  # for a pipe's reader, who may never come
_FULL = 1024**2  # bytes left on a disk that count as none


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well and vanishes when it does not.

    A link is written through, not replaced. A device or a pipe (``/dev/null``, ``/dev/stdout``) gets the content.

    Raises:
        OSError: it cannot be written; with the name of the file.
    """
    destination = _end_of_links(path)
    if _is_special(path, destination):
        with _into_special(path) as staging:
            yield staging
        return
    with _naming(path), temporary(destination, folder=False) as staging:
        yield staging
        if destination.exists():
            staging.chmod(stat.S_IMODE(destination.stat().st_mode))
        _to_disk(staging)
        try:
            staging.replace(destination)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _copy(staging, destination)  # a file that is mounted keeps its name
        _to_disk(destination.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: what was at ``path`` is replaced as a whole, or stays as it was.

    Readers find the one or the other at any moment, where the system can exchange two names. Of two writers the last
    one stays. What is :func:`in_use` is waited for.

    Raises:
        OSError: it cannot be written; with the name of the file that could not, where that is known.
        UsageError: something is mounted there, which keeps its name.
    """
    destination = _end_of_links(path)
    if os.path.ismount(destination):
        raise _mounted(path)
    with _naming(path), temporary(destination, folder=True) as staging:
        with _naming(path, staging):
            yield staging
        for inner in staging.rglob("*"):
            if not inner.is_symlink():
                _to_disk(inner)
        _to_disk(staging)
        _put(staging, destination)
        _to_disk(destination.parent)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Around a library that writes to ``path``: whatever it raises becomes an error that names the file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except LifedeployError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except Exception as error:  # each library reports a full disk in its own way, and some call it an unexpected end
        if _is_full(path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise OSError(errno.EIO, f"it cannot be written: {reason(error)}", str(path)) from error


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL
    except OSError:
        return False


@contextmanager
def scratch_folder(name: str = "scratch") -> Iterator[Path]:
    """A folder for what nobody needs afterwards, where the system keeps such things; it has an owner too."""
    place = Path(tempfile.gettempdir())
    with temporary(place / f"lifedeploy-{name}", folder=True) as folder:
        folder.chmod(0o700)
        yield folder


@contextmanager
def in_use(*folders: Path) -> Iterator[None]:
    """Keep folders from being replaced while something is made of them, or they are read in several steps: whoever
    writes one as a whole waits. Not for folders that the block itself replaces."""
    with ExitStack() as stack:
        for folder in dict.fromkeys(folders):
            held = wait_for(folder, shared=True)
            if held is not None:
                stack.callback(release, held)
        yield


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process, until the block or the process ends.

    Raises:
        UsageError: another process holds it.
    """
    held = lock(folder, folder=True)
    if held is None:
        raise UsageError(
            f"{folder}/ is being written to by another process", hint="wait for it to end, or name another folder"
        )
    try:
        yield
    finally:
        release(held)


def require_writable(path: Path) -> None:
    """Find out before the work, not after, that a file cannot be written; devices and pipes can.

    Raises:
        UsageError: its folder does not exist, or is not ours to write to; or it is a folder itself.
    """
    try:
        destination = _end_of_links(path)
        if destination.is_dir():
            problem = "it is a folder, and a file is expected"
        elif destination.exists() and not destination.is_file():
            problem = "" if os.access(destination, os.W_OK) else "permission denied"
        elif not destination.parent.is_dir():
            problem = f"{destination.parent}/ is no folder"
        else:
            problem = _refusal(destination.name, destination.parent)
    except (OSError, ValueError) as error:
        problem = reason(error)
    if problem:
        raise UsageError(f"{path} cannot be written: {problem}")


def require_folder(path: Path, *, replaced: bool = False) -> None:
    """The same for a folder, which may not exist yet, and nor may those above it; ``replaced``: as a whole.

    Raises:
        UsageError: something else has that name, or it cannot be made there, or not be written to.
    """
    try:
        destination = _end_of_links(path)
        above = next(place for place in (destination, *destination.parents) if place.exists())
        place = destination.parent if replaced and above == destination else above
        if not above.is_dir():
            problem = f"{above} is no folder"
        elif replaced and above == destination and os.path.ismount(destination):
            raise _mounted(path)
        else:
            problem = _refusal(destination.name, place)
    except (OSError, ValueError, StopIteration) as error:
        problem = reason(error)
    if problem:
        raise UsageError(f"{path}/ cannot be written: {problem}")


def _mounted(path: Path) -> UsageError:
    return UsageError(
        f"{path}/ cannot be replaced as a whole: something is mounted there", hint=f"name a folder in it: {path}/NAME"
    )


def _refusal(name: str, folder: Path) -> str:
    """Why nothing of this name can be made in ``folder``, found by trying: rights do not tell it all; '' if it can."""
    try:
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        longest = 255
    if len(os.fsencode(name)) > longest:
        return "the name is too long"
    if "\0" in name:
        return "there is a null byte in the name"
    try:
        with temporary(folder / "probe", folder=False):
            return ""
    except OSError as error:
        return f"{folder}/ cannot be written to: {reason(error)}"


def _end_of_links(path: Path) -> Path:
    """What is written where ``path`` is a link, or a chain of them; itself where it is none.

    Raises:
        OSError: the links lead in a circle.
    """
    if not path.is_symlink():
        return path
    destination = Path(os.path.realpath(path, strict=False))
    if destination.is_symlink():  # what realpath makes of a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    # The link that /dev/stdout is says "pipe:[12]" where it leads to a pipe, which is no path.
    return path if path.exists() and not destination.exists() else destination


def _is_special(path: Path, destination: Path) -> bool:
    """Whether something is written into, and its name stays what it is: a device, a pipe, or what is open here already,
    as ``/dev/stdout`` is."""
    return destination.exists() and (not destination.is_file() or _descriptor(path) is not None)


def _descriptor(path: Path) -> int | None:
    """The open descriptor that ``path`` is a name of; None of all other paths."""
    for _ in range(40):  # as many links as Linux follows
        match = re.fullmatch(r"/dev/std(in|out|err)|(?:/dev/fd|/proc/(?:self|\d+)/fd)/(\d+)", str(path))
        if match is not None:
            return int(match[2]) if match[2] else ("in", "out", "err").index(match[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


@contextmanager
def _into_special(path: Path) -> Iterator[Path]:
    """Something that is no plain file is written into, from a temporary file elsewhere."""
    with scratch_folder("output") as folder:
        staging = folder / (path.name or "output")
        staging.touch()
        yield staging
        with _naming(path):
            _copy(staging, path)


def _copy(staging: Path, path: Path) -> None:
    """Write into what is at ``path``."""
    number = _descriptor(path)
    # Opened once more, a file that is open here would begin at its start, over what has been written.
    descriptor = os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_TRUNC | _WITHOUT_WAITING)
    os.set_blocking(descriptor, True)  # once a pipe is open there is somebody to read it
    with os.fdopen(descriptor, "wb") as sink, staging.open("rb") as content:
        shutil.copyfileobj(content, sink)


@contextmanager
def _naming(path: Path, staging: Path | None = None) -> Iterator[None]:
    """An error of writing names the file: ``path``, or the one below it that has a temporary name."""
    try:
        yield
    except OSError as error:
        name = str(error.filename) if error.filename is not None else ""
        inside = staging is not None and (name + os.sep).startswith(str(staging) + os.sep)
        if inside:
            error.filename = str(path) + name[len(str(staging)) :]
        elif is_temporary(Path(name).name) or (not name and error.errno in _OF_WRITING):
            error.filename = str(path)
        else:
            raise  # of something that was read on the way
        error.filename2 = None
        raise


def _to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, before we rely on it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # folders, on some file systems
            raise
    finally:
        os.close(descriptor)


def _put(staging: Path, destination: Path) -> None:
    """Give ``staging`` the name ``destination``; what had it before is at ``staging`` then, or gone."""
    for _ in range(1000):  # others may write here at the same time
        try:
            staging.rename(destination)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        held = wait_for(destination, shared=False)
        try:
            if _exchange(staging, destination) or _one_after_the_other(staging, destination):
                return
        finally:
            if held is not None:
                release(held)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(destination))


def _one_after_the_other(staging: Path, destination: Path) -> bool:
    """The same in two steps, where names cannot be exchanged; False: somebody else was between them."""
    try:
        with aside(destination):
            staging.rename(destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False
        raise
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; whether that could be done."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    return int(call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE)) == 0
