"""Manifests: parts of any size hold every row once, however it is written; and what is no manifest is told."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lifedeploy.errors import DataError
from lifedeploy.scoring import manifests
from lifedeploy.scoring.manifests import USUAL_COLUMNS, Planned, chosen_column, manifest_at
from lifedeploy.scoring.places import LocalPlace
from lifedeploy.scoring.sources import find, listed


def read(path: Path, images: int, column: str = "") -> tuple[Planned, list[list[str]]]:
    """A manifest in parts, and the names in each of them."""
    manifest = manifest_at(LocalPlace(path), column).resolved()
    planned = manifest.planned(images)
    return planned, [list(manifest.names(part)) for part in planned.parts]


def require_whole(planned: Planned, parts: list[list[str]], expected: list[str], images: int) -> None:
    """Make sure that parts are ``expected`` cut after every ``images`` rows, and say so."""
    assert parts == [expected[start : start + images] for start in range(0, len(expected), images)]
    assert planned.images == len(expected)
    assert [part.number for part in planned.parts] == list(range(len(parts)))
    assert [part.images for part in planned.parts] == list(map(len, parts))
    assert all(before.end == after.begin for before, after in zip(planned.parts, planned.parts[1:], strict=False))


def csv_at(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


# --- text -------------------------------------------------------------------------------------------------------


def written(rows: list[list[str]], delimiter: str, end: str, quoted: list[bool]) -> str:
    """A table by RFC 4180, which quotes where it must, and where ``quoted`` says, in turn."""
    lines, number = [], 0
    for row in rows:
        fields = []
        for value in row:
            number += 1
            must = value == "" or any(sign in value for sign in (delimiter, '"', "\r", "\n"))
            doubled = value.replace('"', '""')
            fields.append(f'"{doubled}"' if must or quoted[number % len(quoted)] else value)
        lines.append(delimiter.join(fields) + end)
    return "".join(lines)


_values = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('",;\t\r\n "'), max_size=8)


@given(
    rows=st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(_values, min_size=width, max_size=width), min_size=1, max_size=12)
    ),
    column=st.integers(0, 2),
    ending=st.sampled_from([".csv", ".CSV", ".tsv"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoted=st.lists(st.booleans(), min_size=1, max_size=5),
    mark=st.booleans(),
    empty=st.lists(st.integers(0, 12), max_size=4),
    last=st.booleans(),
    images=st.integers(1, 13),
)
@settings(max_examples=150)
def test_rows_of_a_text_come_back_whole_from_parts_of_any_size(
    rows, column, ending, end, quoted, mark, empty, last, images
):
    width, delimiter = len(rows[0]), "\t" if ending == ".tsv" else ","
    column = min(column, width - 1)
    header = [f"c{number}" for number in range(width)]
    lines = [written([row], delimiter, end, quoted) for row in [header, *rows]]
    for place in empty:  # lines with nothing in them mean nothing
        lines[min(place, len(rows))] += end
    text = "".join(lines)
    text = text if last else text.removesuffix(end)
    content = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = csv_at(Path(folder) / f"m{ending}", content)
        planned, parts = read(path, images, f"c{column}")
    require_whole(planned, parts, [row[column] for row in rows], images)
    assert planned.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("images", range(1, 8))
def test_parts_begin_and_end_where_rows_do(tmp_path, images):
    lines = ("label,image\r\n", '1,"a\nb.png"\r\n', "\r\n", '2,"c ""1"", 2.png"\r\n', "3,d.png\r\n", "\r\n", "4,e.png")
    path = csv_at(tmp_path / "m.csv", b"\xef\xbb\xbf", *lines)
    planned, parts = read(path, images)
    require_whole(planned, parts, ["a\nb.png", 'c "1", 2.png', "d.png", "e.png"], images)
    content = path.read_bytes()
    cut = [content[part.begin : part.end] for part in planned.parts]
    assert content.endswith(b"".join(cut))
    assert content.removesuffix(b"".join(cut)) == b"\xef\xbb\xbflabel,image\r\n"


def test_an_empty_field_is_a_row_without_a_name(tmp_path):
    path = csv_at(tmp_path / "m.csv", "image,label\n", ",1\n", '"",2\n', "a.png,\n")
    assert read(path, 2)[1] == [["", ""], ["a.png"]]


def test_a_column_name_may_have_to_be_quoted(tmp_path):
    path = csv_at(tmp_path / "m.csv", '"a\nb","the ""image"", 1"\n', "1,x.png\n")
    assert read(path, 5, 'the "image", 1')[1] == [["x.png"]]


def test_the_digest_tells_contents_apart(tmp_path):
    same = [read(csv_at(tmp_path / name, "image\na.png\n"), 1)[0].digest for name in ("1.csv", "2.csv")]
    assert same[0] == same[1]
    assert read(csv_at(tmp_path / "3.csv", "image\nb.png\n"), 1)[0].digest != same[0]


LINE = 1024**2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,label\na.png,1\nb.png\n"], "has 1 field in line 3; expected 2"),
        (["image,label\na.png,1\n\n\nb.png,1,2\n"], "has 3 fields in line 5; expected 2"),
        (['image,label\n"a\nb",1\nc.png\n'], "has 1 field in line 4; expected 2"),
        (["image\n" + "a.png\n" * 1234 + "b.png,\n"], "has 2 fields in line 1,236; expected 1"),
        (['image\n"a.png\n'], "cannot be read: unexpected end of data"),
        (['image\n"a.png"b\n'], "cannot be read: ',' expected after '\"'"),
        (["image\na\rb.png\n"], "cannot be read: new-line character seen in unquoted field"),
        ([b"im\xe4ge\na.png\n"], "cannot be read: it is not UTF-8 at byte 2"),
        (["image\n", b"\xff\xfea\0.\0"], "cannot be read: it is not UTF-8 at byte"),
        (["image\n", "a" * LINE, "\n"], "cannot be read: a line is longer than 1,048,576 bytes"),
        (["image\n", '"a"\n', "a" * 2 * LINE], "cannot be read: a line is longer than 1,048,576 bytes"),
        (["image\n", "a" * 200_000, "\n"], r"cannot be read: field larger than field limit \(131072\)"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_text_that_is_damaged(tmp_path, lines, message):
    path = csv_at(tmp_path / "m.csv", *lines)
    with pytest.raises(DataError, match=rf"m\.csv {message}"):
        read(path, 10)


def test_a_byte_that_is_no_text_is_where_the_file_has_it(tmp_path):
    path = csv_at(tmp_path / "m.csv", "image\n", "a.png\n", b"b\xff.png\n")
    with pytest.raises(DataError, match=r"m\.csv cannot be read: it is not UTF-8 at byte 13$"):
        read(path, 10)


def test_a_line_as_long_as_one_may_be_is_read(tmp_path):
    """In fields of which each is as long as Python takes it."""
    fields = ["a" * 131_000] * 8
    path = csv_at(tmp_path / "m.csv", ",".join("abcdefgh") + "\n", ",".join(fields) + "\n")
    assert read(path, 1, "h")[1] == [[fields[0]]]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n", b"\r\n"])
def test_a_text_without_columns_is_none(tmp_path, content):
    path = csv_at(tmp_path / "m.csv", content)
    with pytest.raises(DataError, match=r"m\.csv has no column that is called as one of images is .*; it has: none"):
        read(path, 10)


@pytest.mark.parametrize("content", ["image\n", "image", "image,label\n\n\n"])
def test_a_text_without_rows_names_no_images(tmp_path, content):
    path = csv_at(tmp_path / "m.csv", content)
    with pytest.raises(DataError, match=r"m\.csv is empty: it names no images"):
        listed(find([str(path)]), 10, tmp_path, LocalPlace(tmp_path / "out"))


def test_a_manifest_that_goes_in_between_is_told(tmp_path):
    for path in (csv_at(tmp_path / "m.csv", "image\na.png\n"), table_at(tmp_path / "m.parquet", {"image": ["a"]})):
        manifest = manifest_at(LocalPlace(path)).resolved()
        (part,) = manifest.planned(5).parts
        path.unlink()
        with pytest.raises(DataError, match=rf"{path.name} (cannot be read: No such file|does not exist)"):
            list(manifest.names(part))
        with pytest.raises(DataError, match=rf"{path.name} does not exist"):
            manifest_at(LocalPlace(path)).resolved()


# --- Parquet ----------------------------------------------------------------------------------------------------


def table_at(path: Path, columns: dict[str, object], rows_in_group: int | None = None, **options: object) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=rows_in_group, **options)
    return path


@contextmanager
def rows_read(number: int) -> Iterator[None]:
    """So many rows are read at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_ROWS_READ", number)
        yield


@given(
    values=st.lists(
        st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=4), min_size=1, max_size=20
    ),
    kind=st.sampled_from(
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ),
    group=st.integers(1, 21),
    at_a_time=st.integers(1, 9),
    images=st.integers(1, 21),
)
@settings(max_examples=100)
def test_rows_of_a_table_come_back_whole_from_parts_of_any_size(values, kind, group, at_a_time, images):
    with tempfile.TemporaryDirectory() as folder, rows_read(at_a_time):
        columns = {"label": list(range(len(values))), "image": pa.array(values, pa.string()).cast(kind)}
        planned, parts = read(table_at(Path(folder) / "m.parquet", columns, group), images)
    require_whole(planned, parts, [value or "" for value in values], images)
    assert planned.parts[0].begin == 0 and planned.parts[-1].end == len(values)


@pytest.mark.parametrize("name", ["m.parquet", "m.pq", "M.PARQUET"])
def test_groups_without_rows_hold_none(tmp_path, name):
    schema = pa.schema([("image", pa.string())])
    with parquet.ParquetWriter(tmp_path / name, schema) as writer:
        for rows in ([], ["a", "b"], [], [], ["c", None, "d"], []):
            writer.write_table(pa.table({"image": pa.array(rows, pa.string())}))
    planned, parts = read(tmp_path / name, 3)
    require_whole(planned, parts, ["a", "b", "c", "", "d"], 3)


def test_only_the_groups_of_a_part_are_read(tmp_path):
    path = table_at(tmp_path / "m.parquet", {"image": [f"{number}.png" for number in range(30)]}, 10)
    manifest = manifest_at(LocalPlace(path)).resolved()
    parts = manifest.planned(10).parts
    content = bytearray(path.read_bytes())
    group = parquet.read_metadata(path).row_group(0).column(0)
    begin = group.dictionary_page_offset or group.data_page_offset
    content[begin : begin + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(content)
    assert list(manifest.names(parts[2])) == [f"{number}.png" for number in range(20, 30)]
    with pytest.raises(DataError, match=r"m\.parquet cannot be read: "):
        list(manifest.names(parts[0]))


def test_the_digest_of_a_table_is_its_content(tmp_path):
    path = table_at(tmp_path / "m.parquet", {"image": ["a"]})
    assert read(path, 1)[0].digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([{"bytes": b"x", "path": "a.png"}]), r"struct<bytes: binary, path: string>"),
        (pa.array([["a"]]), r"list<(element|item): string>"),
        (pa.array([b"a", b"b"]).dictionary_encode(), r"dictionary<values=binary, .*"),
        (pa.nulls(2), "null"),
    ],
    ids=["numbers", "bytes", "structures", "lists", "dictionary", "nulls"],
)
def test_a_column_that_is_no_text(tmp_path, column, kind):
    path = table_at(tmp_path / "m.parquet", {"image": column})
    expected = f"column 'image' of .*m.parquet is of type {kind}; expected text, the paths or addresses of images"
    with pytest.raises(DataError, match=expected):
        read(path, 1)


def test_a_table_without_rows_names_no_images(tmp_path):
    path = table_at(tmp_path / "m.parquet", {"image": pa.array([], pa.string())})
    with pytest.raises(DataError, match=r"m\.parquet is empty: it names no images"):
        listed(find([str(path)]), 10, tmp_path, LocalPlace(tmp_path / "out"))


@pytest.mark.parametrize("kept", [0, 3, 11, 60, -1])
def test_a_table_that_is_damaged(tmp_path, kept):
    path = table_at(tmp_path / "m.parquet", {"image": ["a.png", "b.png"]})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"m\.parquet cannot be read: "):
        read(path, 1)


def test_two_columns_of_one_name_are_none_that_can_be_told(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["image", "image"])
    parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet cannot be read: .*image"):
        read(tmp_path / "m.parquet", 1)


@pytest.mark.parametrize("name", ["a.b", "im age", "ä", "a.list.element", '"'])
def test_a_column_may_be_called_anything(tmp_path, name):
    path = table_at(tmp_path / "m.parquet", {"label": [1, 2], name: ["a.png", "b.png"], "a": [3, 4]})
    assert read(path, 1, name)[1] == [["a.png"], ["b.png"]]
    only = table_at(tmp_path / "only.parquet", {name: ["a.png", "b.png"]})
    assert read(only, 5)[1] == [["a.png", "b.png"]]


# --- columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "asked", "chosen"),
    [
        (["label", "image"], "", "image"),
        (["label", "image"], "label", "label"),
        (["url", "path", "label"], "", "path"),  # in the order of the usual names, not of the table
        (["anything"], "", "anything"),
        (["anything"], "anything", "anything"),
        (["uri", "other"], "", "uri"),
        *(([name, "zzz"], "", name) for name in USUAL_COLUMNS),
    ],
)
def test_the_column_that_names_images(columns, asked, chosen):
    assert chosen_column(columns, asked, "m.csv") == chosen


@pytest.mark.parametrize(
    ("columns", "asked", "message", "hint"),
    [
        (["a", "b"], "c", "m.csv has no column 'c'; it has: a, b", "--column takes one of these"),
        (["image"], "Image", "m.csv has no column 'Image'; it has: image", "--column takes one of these"),
        (
            ["a", "b"],
            "",
            f"m.csv has no column that is called as one of images is ({', '.join(USUAL_COLUMNS)}); it has: a, b",
            "--column says which one names images",
        ),
        ([], "image", "m.csv has no column 'image'; it has: none", "--column takes one of these"),
    ],
)
def test_a_column_that_is_not_there(columns, asked, message, hint):
    with pytest.raises(DataError) as refused:
        chosen_column(columns, asked, "m.csv")
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_a_thousand_columns_are_not_all_said():
    with pytest.raises(DataError) as refused:
        chosen_column([f"column {number}" for number in range(1000)], "x", "m.csv")
    assert len(refused.value.message) < 300
    assert "column 0, column 1" in refused.value.message and refused.value.message.endswith("column 999")


@pytest.mark.parametrize("make", [lambda path: csv_at(path, "a,b\n1,2\n"), lambda path: table_at(path, {"a": ["x"]})])
def test_the_column_is_looked_up_in_every_kind(tmp_path, make):
    path = make(tmp_path / ("m.csv" if "csv_at" in make.__code__.co_names else "m.parquet"))
    with pytest.raises(DataError, match=r"has no column 'image'; it has: a"):
        read(path, 1, "image")
