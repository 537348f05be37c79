"""What lies where in a tar file that is not compressed, with every declared size held against what is there.

Python's :mod:`tarfile` reads whatever a header declares, follows sizes below zero back to where it was, and takes a
damaged header for the end. Here a header is 512 bytes, names are bounded, and each member ends in the file.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13 and
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = tarfile.BLOCKSIZE
_LONGEST = 1024**2  # bytes of names and notes before a member
_NOTES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_FOLDERS_AND_SUCH = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member. Its bytes lie at ``offset``, if it is ``plain``; a link's or a file's with holes lie elsewhere."""

    name: str
    offset: int
    size: int
    plain: bool
    folder: bool = False


def entries(file: IO[bytes], size: int) -> Iterator[Entry]:
    """The members of a tar file of ``size`` bytes, in order.

    Raises:
        ValueError: a header is damaged, or declares more than the file holds.
        OSError: it cannot be read.
    """
    if not size:
        raise ValueError("it is empty")
    at = 0
    name: str | None = None  # told by a member of its own, where it is too long for the header, or not ASCII
    facts: dict[str, str] = {}
    while at < size:
        file.seek(at)
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            return  # whoever appends to a tar file writes over its end
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"it is damaged at byte {at:,}") from error
        start = at + _BLOCK
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_NOTES):
            content = _content(file, start, member.size, size)
            if member.type == tarfile.GNUTYPE_LONGNAME:
                name = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif member.type in _NOTES:
                facts |= _records(content, at)
            at = _behind(start, member.size)
            continue
        holes = member.type == tarfile.GNUTYPE_SPARSE
        if holes:
            start += _further_headers(file, header, start, size)
        held = _size(facts.get("size"), member.size, at)
        if member.type in _FOLDERS_AND_SUCH:
            held = 0  # some writers note the size of what a link leads to
        if held < 0 or start + held > size:
            raise ValueError(
                f"it is damaged or cut off: its member at byte {at:,} is of {held:,} bytes, and {size:,} are all"
            )
        called = name if name is not None else facts.get("path", member.name)
        yield Entry(
            name=called.rstrip("/"),
            offset=start,
            size=held,
            plain=member.type in _FILES and not holes and not any(key.startswith("GNU.sparse.") for key in facts),
            folder=member.type == tarfile.DIRTYPE,
        )
        name, facts = None, {}
        at = _behind(start, held)


def _content(file: IO[bytes], start: int, declared: int, size: int) -> bytes:
    if not 0 <= declared <= min(_LONGEST, size - start):
        raise ValueError(f"it is damaged: a header at byte {start - _BLOCK:,} declares notes of {declared:,} bytes")
    file.seek(start)
    return file.read(declared)


def _behind(start: int, length: int) -> int:
    """Where the next header is."""
    return start + -(-length // _BLOCK) * _BLOCK


def _further_headers(file: IO[bytes], header: bytes, start: int, size: int) -> int:
    """Bytes of the headers that say where the holes of a file are."""
    length, more = 0, header[482]
    while more:
        if start + length + _BLOCK > size:
            raise ValueError("it ends within a header")
        file.seek(start + length)
        more = file.read(_BLOCK)[504]
        length += _BLOCK
    return length


def _records(content: bytes, at: int) -> dict[str, str]:
    """``LENGTH KEY=VALUE`` and a line end, again and again."""
    facts, here = {}, 0
    while here < len(content) and content[here]:  # zeros fill it up
        digits = content[here : here + 8].partition(b" ")[0]
        end = here + int(digits) if digits.isdigit() else 0
        key, sign, value = content[here + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not sign or end > len(content) or content[end - 1 : end] != b"\n":
            raise ValueError(f"it is damaged at byte {at:,}: its notes are none")
        facts[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        here = end
    return facts


def _size(told: str | None, declared: int, at: int) -> int:
    if told is None:
        return declared
    if not (told.isascii() and told.isdigit() and len(told) < 20):
        raise ValueError(f"it is damaged at byte {at:,}: a size of {told[:20]!r}")
    return int(told)
