"""The one door for foreign bytes: a regular file, of a bounded size, typed all the way down."""

from __future__ import annotations

import io
import os
import pickle
import threading
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lifedeploy import reading
from lifedeploy.errors import ArtifactError, DataError, UsageError


@dataclass
class Facts:
    count: int
    name: str = ""


class Opener:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RecursionError("maximum recursion depth"), "it is nested too deep"),
        (MemoryError(), "it needs more memory than there is"),
        (OSError(5, "Input/output error", "x"), "Input/output error"),
        (KeyError("schema"), "'schema' is missing"),
        (ValueError(), "ValueError"),
        (SyntaxError("two\nlines"), "two lines"),
        (UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "bad"), "it is not UTF-8 at byte 3"),
    ],
)
def test_whatever_a_parser_raises_becomes_ours(raised, said):
    with pytest.raises(DataError, match="the shard cannot be read: ") as error, reading.foreign("the shard", DataError):
        raise raised
    assert error.value.message == f"the shard cannot be read: {said}"
    assert error.value.__cause__ is raised


def test_our_own_errors_and_interruptions_pass():
    with pytest.raises(UsageError, match=r"^as it is$"), reading.foreign("x"):
        raise UsageError("as it is")
    with pytest.raises(KeyboardInterrupt), reading.foreign("x"):
        raise KeyboardInterrupt


def test_files_without_an_end_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        tmp_path / "pipe": "is a pipe; expected a regular file",
        Path("/dev/zero"): "is a device; expected a regular file",
        tmp_path: "is a folder; expected a file",
        tmp_path / "missing": "does not exist",
        tmp_path / "loop": "cannot be opened",
        tmp_path / "nul\0byte": "cannot be opened",
        tmp_path / ("a" * 300): "cannot be opened: File name too long",
    }
    for path, said in expected.items():
        with pytest.raises(ArtifactError, match=said):
            reading.read_bytes(path)


def test_a_size_is_returned_and_a_limit_is_kept(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert reading.require_regular(path) == 5
    assert reading.read_bytes(path, limit=5) == b"12345"
    with pytest.raises(ArtifactError, match="is larger than"):
        reading.read_bytes(path, limit=4)


def test_a_file_that_becomes_a_pipe_meanwhile_does_not_stop_us(tmp_path, monkeypatch):
    path = tmp_path / "x"
    os.mkfifo(path)
    monkeypatch.setattr(reading, "require_regular", lambda *_, **__: 0)
    ended = threading.Event()

    def read() -> None:
        reading.read_bytes(path)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    assert ended.wait(10)


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"count": 7}')
    assert reading.read_text(path) == '{"count": 7}'
    assert reading.read_json(path, Facts) == Facts(7)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ArtifactError, match="it is not UTF-8 at byte 3"):
        reading.read_text(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"count": "7"}', r"\$\.count"),
        ('{"count": 7, "name": []}', r"\$\.name"),
        ("{}", "count"),
        ("[]", "object"),
        ('{"count": NaN}', "malformed"),
        ('{"count": 7} 8', "malformed"),
        ("[" * 100_000, "nested too deep|object"),
        ("", "truncated"),
    ],
)
def test_json_is_typed_and_the_place_is_named(tmp_path, text, place):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"x.json cannot be read: .*({place})"):
        reading.read_json(path, Facts)


def test_toml_with_the_marks_of_other_systems(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n[b]\r\nc = 2\r\n")
    assert reading.read_toml(path) == {"a": 1, "b": {"c": 2}}
    for text in (b"a = ", b"a = 1\na = 2", b"a = " + b"[" * 60_000, b"a = \xff"):
        path.write_bytes(text)
        with pytest.raises(ArtifactError, match=r"x\.toml cannot be read: "):
            reading.read_toml(path)
    path.write_bytes(b".".join([b"a"] * 20_000) + b" = 1")  # over which Python's reader takes the square of its time
    with pytest.raises(ArtifactError, match="a key in it has more than 1000 characters"):
        reading.read_toml(path)
    path.write_bytes(b"[a]\nb = 1\n" * 100_000)
    with pytest.raises(ArtifactError, match="larger than the 64 KiB"):
        reading.read_toml(path)


# --- arrays -----------------------------------------------------------------------------------------------------


def archive(path: Path, content: bytes, name: str = "a.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path


def header(shape: object, descr: str = "<f4") -> bytes:
    data = io.BytesIO()
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    data.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return data.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_wrote(tmp_path, save):
    arrays = {
        "life/x/logits": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32),
        "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
        "none": np.zeros((0, 4)),
        "one": np.float64(7),
    }
    save(tmp_path / "x.npz", **arrays)
    found = reading.read_arrays(tmp_path / "x.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    found["columns"][0, 0] = 9  # ours to write to


@pytest.mark.parametrize("shape", ["(2**42,)", (2**42,), (2**31, 2**31), (10**30,), (-5,), (4, -1), ("x",), "()("])
def test_what_an_array_declares_is_held_against_what_is_there(tmp_path, shape):
    path = archive(tmp_path / "x.npz", header(shape) + bytes(16))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"x\.npz"):
        reading.read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 1024**2
    tracemalloc.stop()


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path):
    path = archive(tmp_path / "x.npz", header((5,)) + bytes(20))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # the size in the list of members
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="declares more bytes than can be in it"):
        reading.read_arrays(path)


def test_arrays_of_many_gigabytes_are_refused_however_well_they_are_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ARRAYS_LIMIT", 1000)
    np.savez_compressed(tmp_path / "x.npz", a=np.arange(100), b=np.arange(100))
    with pytest.raises(ArtifactError, match=r"x\.npz holds .* bytes of arrays"):
        reading.read_arrays(tmp_path / "x.npz")


def test_objects_are_code_and_are_not_read(tmp_path):
    marker = tmp_path / "executed"
    path = archive(tmp_path / "x.npz", header((1,), "|O") + pickle.dumps([Opener(marker)]))
    with pytest.raises(ArtifactError, match="objects"):
        reading.read_arrays(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)[:10]])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.npz cannot be read"):
        reading.read_arrays(path)
