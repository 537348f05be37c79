"""A tar file's members are where tarfile finds them; what its headers declare beyond the file is refused, and soon."""

from __future__ import annotations

import io
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifedeploy.data.tar import Entry, entries

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=180)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)


def listed(content: bytes) -> list[Entry]:
    return list(entries(io.BytesIO(content), len(content)))


def made(members: list[tuple[str, bytes, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file of members, (name, type, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "elsewhere" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            entry.size = len(content) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@given(
    st.lists(st.tuples(PATHS, KINDS, st.binary(max_size=700)), max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_where_tarfile_finds_them(members, form):
    content = made(members, form)
    found = listed(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(one.name, one.offset_data, one.size, one.isfile(), one.isdir()) for one in archive]
    assert [(one.name, one.offset, one.size, one.plain, one.folder) for one in found] == expected


def header(name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def notes(content: bytes) -> bytes:
    return header("notes", len(content), tarfile.XHDTYPE) + content.ljust(-(-len(content) // 512) * 512, b"\0")


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (header(size=10**12) + END, "of 1,000,000,000,000 bytes, and 1,536 are all"),
        (header(size=2**80) + END, "of 1,208,925,819,614,629,174,706,176 bytes"),
        (header(size=-512) + END, "of -512 bytes"),
        (header(size=-(2**70)) + END, "damaged or cut off"),
        (header(kind=tarfile.XHDTYPE, size=10**12), "declares notes of 1,000,000,000,000 bytes"),
        (header(kind=tarfile.XHDTYPE, size=-1024), "declares notes of -1,024 bytes"),
        (header(kind=tarfile.GNUTYPE_LONGNAME, size=2**62) + END, "declares notes of"),
        (header(kind=tarfile.XGLTYPE, size=2**21) + bytes(2**21), "declares notes of 2,097,152 bytes"),
        (notes(b"20 size=1000000000000\n"), "its notes are none"),
        (notes(b"22 size=1000000000000\n") + header() + END, "of 1,000,000,000,000 bytes"),
        (notes(b"15 size=-12345\n") + header() + END, "a size of '-12345'"),
        (notes(b"11 size=\xc2\xb2\n") + header() + END, "a size of"),
        (notes(b"99999999 size=1\n"), "its notes are none"),
        (notes(b"0 a=b\n"), "its notes are none"),
        (notes(b"nothing"), "its notes are none"),
        (header()[:300], "it is damaged at byte 0"),
        (b"\1" * 512, "it is damaged at byte 0"),
        (header() + b"\1" * 512, "it is damaged at byte 512"),
    ],
)
def test_what_is_declared_is_held_against_what_is_there(content, said):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=said):
        listed(content)
    assert time.perf_counter() - began < 1


def test_a_header_that_says_more_follow_without_end_is_refused():
    holes = bytearray(header(kind=tarfile.GNUTYPE_SPARSE))
    holes[482] = 1
    holes[148:156] = b"        "
    holes[148:156] = b"%06o\0 " % sum(holes)
    with pytest.raises(ValueError, match="it ends within a header"):
        listed(bytes(holes) + (b"\1" * 512) * 20)


@pytest.mark.parametrize("note", [b"1" * 1_000_000, b"1048576 k=" + b"7" * 1_048_565 + b"\n", b"6 k=v\n" * 170_000])
def test_long_notes_take_no_time(note):
    """In tarfile, some of these are read in the square of their length."""
    began = time.perf_counter()
    try:
        assert [one.name for one in listed(notes(note) + header() + END)] == ["a.png"]
    except ValueError as error:
        assert "its notes are none" in str(error)
    assert time.perf_counter() - began < 2


def test_many_notes_in_a_row_are_one_members():
    chain = notes(b"12 path=b/c\n") * 5000
    assert [one.name for one in listed(chain + header() + header() + END)] == ["b/c", "a.png"]


def test_files_with_holes_are_told_in_both_ways():
    sparse = notes(b"22 GNU.sparse.major=1\n") + header()
    assert [one.plain for one in listed(sparse + header() + END)] == [False, True]
    (old,) = listed(header(kind=tarfile.GNUTYPE_SPARSE) + END)
    assert not old.plain


def test_an_archive_without_an_end_is_read_to_its_end():
    assert [one.name for one in listed(header() + header("b.png"))] == ["a.png", "b.png"]
    assert listed(END) == []
