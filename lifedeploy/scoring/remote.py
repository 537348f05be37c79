"""Files and folders at an address that fsspec opens: ``s3://bucket/images``.

https://filesystem-spec.readthedocs.io/en/latest/api.html
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lifedeploy.errors import DataError, NotInstalledError, UsageError
from lifedeploy.optional import require
from lifedeploy.reading import reason
from lifedeploy.scoring.places import Entry, Kind, Place, reached
from lifedeploy.text import quoted
from lifedeploy.writing import scratch_folder

# Where an object appears when all of it is there, and never in part.
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hf")
# Where each file is a host's of its own: one that is not reached says nothing of the others.
_HOSTS = ("http", "https")
# No others: some of fsspec's compute what an address says (``reference``, ``jinja``), or chain what they open.
SCHEMES = (*_STORES, *_HOSTS, "sftp", "ssh", "smb", "hdfs", "webhdfs")


class RemotePlace(Place):
    """A path in a file system of fsspec's."""

    def __init__(self, system: Any, address: str, path: str) -> None:
        self._system, self.address, self._path = system, address, path
        self._scheme = address.partition("://")[0].lower()
        self.alone = self._scheme in _HOSTS

    @classmethod
    def at(cls, address: str) -> RemotePlace:
        """The place at an address, as :func:`place_of`."""
        scheme = address.partition("://")[0].lower()
        if scheme not in SCHEMES or "::" in address:
            raise UsageError(f"{quoted(address)} is no address that is read here; there are: {', '.join(SCHEMES)}")
        fsspec = require("fsspec", extra="score")
        try:
            system, path = fsspec.core.url_to_fs(address)
        except ImportError as error:  # fsspec says what has to be installed
            raise NotInstalledError(f"{scheme}:// cannot be opened: {reason(error)}") from error
        except Exception as error:  # each file system fails in its own way
            raise DataError(f"{address} cannot be opened: {reason(error)}") from error
        return cls(system, address.rstrip("/"), path.rstrip("/"))

    @property
    def name(self) -> str:
        return posixpath.basename(self._path)

    def child(self, name: str) -> RemotePlace:
        return RemotePlace(self._system, f"{self.address}/{name}", f"{self._path}/{name}")

    @property
    def folder(self) -> RemotePlace:
        address, path = (text.rpartition("/")[0] for text in (self.address, self._path))
        return RemotePlace(self._system, address, path)

    def kind(self) -> Kind:
        with reached(self.address):
            try:
                self._system.invalidate_cache()  # what was listed before would not show what others have written since
                facts = self._system.info(self._path)
            except FileNotFoundError:
                return "nothing"
        return "folder" if facts["type"] == "directory" else "file"

    def size(self) -> int:
        with reached(self.address):
            return int(self._system.info(self._path)["size"])

    def fingerprint(self) -> str:
        with reached(self.address):
            return str(self._system.ukey(self._path))

    def entries(self) -> list[Entry]:
        with reached(self.address):
            try:
                self._system.invalidate_cache()
                listing = self._system.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        there = [_remote_entry(facts) for facts in listing if facts["name"].rstrip("/") != self._path]
        return sorted(there, key=lambda entry: entry.name)

    def identity(self) -> object:
        return None

    def read(self, begin: int = 0, end: int | None = None) -> bytes:
        with reached(self.address):
            try:
                data = bytes(self._system.cat_file(self._path, start=begin or None, end=end))
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:
                if self._ends_before(begin):  # a range of nothing, which some stores refuse
                    return b""
                raise
            # Some web servers give all of a file, whatever was asked for.
            whole = self.alone and begin > 0 and len(data) == self.size()
            return data[begin:end] if whole else data[: None if end is None else end - begin]

    def _ends_before(self, begin: int) -> bool:
        try:
            return int(self._system.info(self._path)["size"]) <= begin
        except Exception:  # what was raised first is what is wrong
            return False

    def open(self) -> IO[bytes]:
        with reached(self.address):
            return io.BufferedReader(self._system.open(self._path, "rb"))  # which reads lines as any other file does

    @contextmanager
    def here(self) -> Iterator[Path]:
        with scratch_folder("download") as folder:
            copy = folder / (self.name or "file")
            with reached(self.address):
                self._system.get_file(self._path, str(copy))
            yield copy

    @contextmanager
    def writing(self) -> Iterator[Path]:
        with scratch_folder("upload") as folder:
            staging = folder / (self.name or "file")
            staging.touch()
            yield staging
            with reached(self.address, "written", there=False):
                if self._scheme in _STORES:
                    self._system.put_file(str(staging), self._path)
                    return
                self._system.makedirs(posixpath.dirname(self._path), exist_ok=True)
                temporary = f"{posixpath.dirname(self._path)}/.{self.name}.{os.getpid()}.lifedeploy-tmp"
                self._system.put_file(str(staging), temporary)
                self._system.mv(temporary, self._path)

    def remove(self) -> None:
        with reached(self.address, "removed"), suppress(FileNotFoundError):
            self._system.rm_file(self._path)

    def remove_empty(self) -> None:
        if self._scheme not in _STORES:  # which have no folders
            with reached(self.address, "removed"), suppress(FileNotFoundError, OSError):
                self._system.rmdir(self._path)

    def require_writable(self) -> None:
        if self.alone:
            raise UsageError(f"{self.address} cannot be written: http takes no files")
        self.entries()  # whether it can be reached


def _remote_entry(facts: dict[str, Any]) -> Entry:
    name = posixpath.basename(facts["name"].rstrip("/"))
    return Entry(name, "folder" if facts["type"] == "directory" else "file", int(facts.get("size") or 0))
