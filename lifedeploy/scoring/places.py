"""Files and folders on this machine, or at an address that fsspec opens: ``s3://bucket/images``.

Both kinds do the same few things. What a local one writes appears with its content; so does an object in a store, and
elsewhere it is renamed when it is whole.
https://filesystem-spec.readthedocs.io/en/latest/api.html
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from lifedeploy.errors import DataError, LifedeployError, NotInstalledError
from lifedeploy.files import sha256
from lifedeploy.optional import pip_line
from lifedeploy.reading import reason
from lifedeploy.writing import atomic_file, require_folder, sole_writer

_HERE = "file://"
Kind = Literal["file", "folder", "nothing"]


@dataclass(frozen=True)
class Entry:
    """What lies in a folder."""

    name: str
    kind: Kind  # "nothing": neither a file nor a folder
    size: int  # in bytes, of a file


class Place(ABC):
    """A file or folder. ``address`` says where, and comes to the same place in other processes."""

    address: str
    alone = False  # whether each of its files is on a host of its own

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its address."""

    @abstractmethod
    def child(self, name: str) -> Place:
        """What lies below it; ``name`` has forward slashes."""

    @property
    @abstractmethod
    def folder(self) -> Place:
        """What it lies in."""

    def beside(self, name: str) -> Place:
        """What lies in the same folder."""
        return self.folder.child(name)

    @abstractmethod
    def kind(self) -> Kind:
        """What is there.

        Raises:
            DataError: that cannot be told, as of whatever else is read or written here.
        """

    @abstractmethod
    def size(self) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """What is another text for another content: a digest, or what a store keeps for that."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """What lies directly in a folder, in the order of names; nothing where there is no folder."""

    @abstractmethod
    def identity(self) -> object:
        """The same for all names of one folder; None where a folder has one name only."""

    @abstractmethod
    def read(self, begin: int = 0, end: int | None = None) -> bytes:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def open(self) -> IO[bytes]:
        """A file to read anywhere in."""

    @abstractmethod
    def here(self) -> AbstractContextManager[Path]:
        """A file on this machine with its content: itself, or a copy that goes afterwards."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Path]:
        """An empty file on this machine, whose content is this place's when the block ends well."""

    @abstractmethod
    def remove(self) -> None:
        """Take a file away, if it is there."""

    @abstractmethod
    def remove_empty(self) -> None:
        """Take a folder away if nothing is in it."""

    @abstractmethod
    def require_writable(self) -> None:
        """Find out before the work that a folder cannot be written into, as far as that can be told.

        Raises:
            UsageError: it cannot.
        """

    def absolute(self) -> Place:
        """The same, whatever folder a process is in."""
        return self

    def real(self) -> Place:
        """The same by the one name that it has in the end, whatever links lead to it."""
        return self

    def held(self) -> AbstractContextManager[None]:
        """Hold a folder for this process, where that can be done.

        Raises:
            UsageError: another process holds it.
        """
        return nullcontext()

    def __str__(self) -> str:
        return self.address


def is_address(text: str) -> bool:
    """Whether a text names a place elsewhere: ``SCHEME://…``."""
    scheme, sign, _ = text.partition("://")
    return bool(sign) and scheme.replace("::", "").replace("+", "").isalnum()


def place_of(text: str) -> Place:
    """The place that ``text`` names.

    Raises:
        UsageError: it is an address of a kind that is not taken.
        NotInstalledError: fsspec, or what it needs for this kind of address, is not installed.
        DataError: fsspec cannot make anything of it.
    """
    if not is_address(text):
        return LocalPlace(Path(text))
    if text.startswith(_HERE):
        return LocalPlace(Path(text.removeprefix(_HERE)))
    from lifedeploy.scoring.remote import RemotePlace

    return RemotePlace.at(text)


def located(root: Place, name: str) -> Place:
    """Where ``name`` is: below ``root``, unless it is an address or begins with a slash."""
    if is_address(name) or name.startswith("/"):
        return place_of(name)
    return root.child(name)


class LocalPlace(Place):
    """A path on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path)

    @property
    def name(self) -> str:
        return self.path.name

    def child(self, name: str) -> LocalPlace:
        return LocalPlace(self.path / name)

    @property
    def folder(self) -> LocalPlace:
        return LocalPlace(self.path.parent)

    def kind(self) -> Kind:
        with reached(self.address):
            try:
                mode = self.path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                return "nothing"
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise DataError(f"{self.address} is neither a file nor a folder, but a pipe, a device or a socket")
        return "folder" if stat.S_ISDIR(mode) else "file"

    def size(self) -> int:
        with reached(self.address):
            return self.path.stat().st_size

    def fingerprint(self) -> str:
        with reached(self.address):
            return sha256(self.path)

    def entries(self) -> list[Entry]:
        with reached(self.address):
            try:
                listing = os.scandir(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return []
            with listing:
                return sorted(map(_local_entry, listing), key=lambda entry: entry.name)

    def identity(self) -> object:
        with reached(self.address):
            status = self.path.stat()
        return status.st_dev, status.st_ino

    def read(self, begin: int = 0, end: int | None = None) -> bytes:
        with self.open() as file, reached(self.address):
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)

    def open(self) -> IO[bytes]:
        self.kind()  # a device has no end
        with reached(self.address):
            return self.path.open("rb")

    def here(self) -> AbstractContextManager[Path]:
        return nullcontext(self.path)

    def writing(self) -> AbstractContextManager[Path]:
        return atomic_file(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def remove_empty(self) -> None:
        with suppress(OSError):  # something is, or there is no folder
            self.path.rmdir()

    def require_writable(self) -> None:
        require_folder(self.path)

    def absolute(self) -> LocalPlace:
        return LocalPlace(Path(os.path.abspath(self.path)))  # noqa: PTH100 - a link keeps its name, and its ending

    def real(self) -> LocalPlace:
        return LocalPlace(self.path.resolve())

    @contextmanager
    def held(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path):
            yield


def _local_entry(entry: os.DirEntry[str]) -> Entry:
    try:
        if entry.is_dir():
            return Entry(entry.name, "folder", 0)
        if entry.is_file():
            return Entry(entry.name, "file", 0)
    except OSError:  # a link in a circle
        pass
    return Entry(entry.name, "nothing", 0)


@contextmanager
def reached(address: str, done: str = "read", *, there: bool = True) -> Iterator[None]:
    """Around what a file system does: its errors become ours, but that a file is not ``there``, if it is to be.

    Raises:
        FileNotFoundError: there is none.
        DataError: anything else.
    """
    try:
        yield
    except LifedeployError:
        raise
    except FileNotFoundError as error:
        if there:
            raise
        raise DataError(f"{address} cannot be {done}: {reason(error)}") from error
    except ImportError as error:
        raise NotInstalledError(f"{address} cannot be {done}: {reason(error)}", hint=pip_line("score")) from error
    except Exception as error:  # OSError of this machine; elsewhere whatever clients of stores raise
        raise DataError(f"{address} cannot be {done}: {reason(error)}") from error
