"""Files of rows: what is written comes back, from one file or several that were put together."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lifedeploy.errors import DataError, NotInstalledError
from lifedeploy.scoring import formats
from lifedeploy.scoring.answers import Answers, Column, Rows
from lifedeploy.scoring.formats import FORMATS, Format, format_of

EVERY = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
COLUMNS = (Column("class_1", "index"), Column("name_1", "text"), Column("probability_1", "number"))
VECTOR = (Column("logits", "vector", 3),)


def rows(names: Sequence[str], problems: Sequence[str], *values: Any) -> Rows:
    return Rows(tuple(names), tuple(problems), values)


TOP = rows(
    ["a.png", "b.png", "ä, \"b\"\n'c'.png", "d.png"],
    ["", "b.png is no image", "", ""],
    np.array([2, 0, 1], np.int32),
    ["cat, or dog", 'a "cup"', "猫"],
    np.array([0.1, 1e-10, 1], np.float32),
)
NUMBERS = np.array([[0.1, -3.4028235e38, 1e-45], [1 / 3, 16777217, -0.0]], np.float32)
LOGITS = rows(["a.png", "b.png", "c.png"], ["", "a reason, with \"quotes\"\nand 'lines'", ""], NUMBERS)


def written(form: Format, path: Path, columns: Sequence[Column], *blocks: Rows) -> Path:
    with form.writer(path, columns) as writer:
        for block in blocks:
            writer.write(block)
    return path


def read_back(form: Format, path: Path, columns: Sequence[Column]) -> list[list[Any]]:
    """Rows as any other program reads them: name, values of each column (a vector is a list), problem; None is none."""
    if form.name == "parquet":
        table = parquet.read_table(path)
        assert table.schema.names == ["image", *(column.name for column in columns), "error"]
        return [list(row.values()) for row in table.to_pylist()]
    if form.name == "jsonl":
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        assert all(list(row) == ["image", *(column.name for column in columns), "error"] for row in read)
        return [list(row.values()) for row in read]
    header, *lines = csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""), strict=True)
    kinds = {"index": int, "text": str, "number": float, "vector": float}
    names = [
        f"{column.name}_{index}" if column.kind == "vector" else column.name
        for column in columns
        for index in range(column.width)
    ]
    assert header == ["image", *names, "error"]
    read = []
    for name, *fields, problem in lines:
        assert len(fields) == len(names)
        values: list[Any] = []
        for column in columns:
            taken, fields = fields[: column.width], fields[column.width :]
            plain = [kinds[column.kind](field) if not problem else None for field in taken]
            assert not problem or taken == [""] * column.width
            values.append((None if problem else plain) if column.kind == "vector" else plain[0])
        read.append([name, *values, problem or None])
    return read


def expected(*blocks: Rows) -> list[list[Any]]:
    """The same, of what was to be written."""
    told = []
    for block in blocks:
        answers = iter(zip(*(np.asarray(column).tolist() for column in block.values), strict=True))
        for name, problem in zip(block.names, block.problems, strict=True):
            values = [None] * len(block.values) if problem else list(next(answers))
            told.append([name, *values, problem or None])
    return told


def same(read: list[list[Any]], told: list[list[Any]]) -> None:
    """Make sure that rows are alike, numbers to the last bit of single precision."""
    single = [[_single(value) for value in row] for row in read]
    assert single == [[_single(value) for value in row] for row in told]


def _single(value: Any) -> Any:
    if isinstance(value, (float, list)):
        return np.asarray(value, np.float32).tobytes()
    return value


# --- what is written comes back ---------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(("columns", "block"), [(COLUMNS, TOP), (VECTOR, LOGITS)], ids=["columns", "vector"])
def test_rows_come_back(form, tmp_path, columns, block):
    path = written(form, tmp_path / "x", columns, block, block)
    same(read_back(form, path, columns), expected(block, block))


@EVERY
def test_a_file_without_rows_has_its_columns(form, tmp_path):
    path = written(form, tmp_path / "x", COLUMNS)
    assert read_back(form, path, COLUMNS) == []
    with path.open("rb") as file:
        assert list(form.problems(file)) == []


@EVERY
@pytest.mark.parametrize("columns", [COLUMNS, VECTOR], ids=["columns", "vector"])
def test_rows_without_a_single_answer(form, tmp_path, columns):
    empty: list[Any] = [np.empty((0, 3), np.float32)] if columns is VECTOR else [np.empty(0, np.int32), [], np.empty(0)]
    path = written(form, tmp_path / "x", columns, rows(["a", "b"], ["bad", "worse"], *empty))
    assert read_back(form, path, columns) == [
        ["a", *[None] * len(columns), "bad"],
        ["b", *[None] * len(columns), "worse"],
    ]


def test_parquet_has_the_types_that_it_says(tmp_path):
    path = written(FORMATS["parquet"], tmp_path / "x", [*COLUMNS, *VECTOR])
    assert parquet.read_schema(path).types == [
        pa.string(),
        pa.int32(),
        pa.string(),
        pa.float32(),
        pa.list_(pa.float32(), 3),
        pa.string(),
    ]


def test_what_is_no_answer_is_null_and_what_is_one_has_no_error(tmp_path):
    table = parquet.read_table(written(FORMATS["parquet"], tmp_path / "x", VECTOR, LOGITS))
    assert [column.null_count for column in table.columns] == [0, 1, 2]
    said = written(FORMATS["jsonl"], tmp_path / "y", COLUMNS, TOP).read_text().splitlines()[0]
    assert said == '{"image": "a.png", "class_1": 2, "name_1": "cat, or dog", "probability_1": 0.1, "error": null}'


@EVERY
def test_answers_of_every_kind_come_back(form, tmp_path):
    given = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    for kept, classes in (("top", ("a", "b", "c", "d")), ("top", ()), ("logits", ()), ("embeddings", ())):
        answers = Answers(kept=kept, top=3, width=4, classes=classes)
        block = rows("abcde", [""] * 5, *answers.values(given))
        path = written(form, tmp_path / "x", answers.columns, block)
        same(read_back(form, path, answers.columns), expected(block))


@pytest.mark.parametrize("form", [FORMATS["jsonl"], FORMATS["csv"]], ids=["jsonl", "csv"])
@given(numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_in_text_are_the_same_to_the_last_bit_and_no_longer_than_that(form, tmp_path, numbers):
    block = rows(["x"], [""], np.asarray([numbers], np.float32))
    columns = (Column("v", "vector", len(numbers)),)
    path = written(form, tmp_path / "x", columns, block)
    same(read_back(form, path, columns), expected(block))
    written_as = re.findall(r"-?([0-9.]+)(?:e[+-][0-9]+)?", path.read_text().splitlines()[-1])
    assert len(written_as) == len(numbers)
    assert max(len(digits.replace(".", "").strip("0")) for digits in written_as) <= 9


_names = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('\r\n\t",; \u2028\x85\0'), max_size=6)


@EVERY
@given(names=st.lists(_names, max_size=6), bad=st.lists(_names, min_size=6, max_size=6))
@example(names=["\r"], bad=[""] * 6)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_and_reasons_may_hold_anything(form, tmp_path, names, bad):
    """An image's name is what its file system, its manifest or its shard says."""
    problems = bad[: len(names)]
    good = problems.count("")
    block = rows(names, problems, np.zeros(good, np.int32), ["x"] * good, np.zeros(good, np.float32))
    path = written(form, tmp_path / "x", COLUMNS, block)
    same(read_back(form, path, COLUMNS), expected(block))
    with path.open("rb") as file:
        assert list(form.problems(file)) == list(zip(names, problems, strict=True))


@EVERY
@pytest.mark.parametrize("name", ["Icon\r.png", "a\nb.png", "a\r\nb.png", '"', ",", "\u2028", "", " a "])
def test_names_that_end_lines_elsewhere(form, tmp_path, name):
    block = rows([name, "b"], ["", f"{name} is none"], np.ones((1, 3), np.float32))
    path = written(form, tmp_path / "x", VECTOR, block)
    same(read_back(form, path, VECTOR), expected(block))
    with path.open("rb") as file:
        assert list(form.problems(file)) == [(name, ""), ("b", f"{name} is none")]


# --- what is wrong with which -----------------------------------------------------------------------------------


@EVERY
def test_the_problems_of_a_file_are_read_with_their_names(form, tmp_path):
    path = written(form, tmp_path / "x", VECTOR, LOGITS, rows(["d"], [""], np.zeros((1, 3), np.float32)))
    with path.open("rb") as file:
        told = list(form.problems(file))
    assert told == [*zip(LOGITS.names, LOGITS.problems, strict=True), ("d", "")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parquet", b"PAR1 no more"),
        ("parquet", b""),
        ("jsonl", b"{"),
        ("jsonl", b'{"image": "a"}\n'),
        ("jsonl", b"[1]\n"),
        ("csv", b""),
        ("csv", b"image,error\n\xff,\n"),
        ("csv", b"image,error\n\n"),
    ],
)
def test_a_file_that_is_none_of_ours(name, content):
    with pytest.raises(DataError, match="a file of scores cannot be read: "):
        list(FORMATS[name].problems(io.BytesIO(content)))


# --- several files ----------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(("columns", "block"), [(COLUMNS, TOP), (VECTOR, LOGITS)], ids=["columns", "vector"])
def test_one_file_of_several_has_their_rows_in_order(form, tmp_path, columns, block):
    empty: tuple[Rows, ...] = ()
    blocks = [empty, (block,), empty, (block, block), empty]
    paths = [written(form, tmp_path / str(number), columns, *some) for number, some in enumerate(blocks)]
    files = [path.open("rb") for path in paths]
    form.join(iter(files), tmp_path / "whole")
    for file in files:
        file.close()
    same(read_back(form, tmp_path / "whole", columns), expected(block, block, block))
    assert not list(tmp_path.glob("*.tmp"))


@EVERY
def test_one_file_of_one_is_the_same(form, tmp_path):
    path = written(form, tmp_path / "x", COLUMNS, TOP)
    with path.open("rb") as file:
        form.join([file], tmp_path / "whole")
    same(read_back(form, tmp_path / "whole", COLUMNS), expected(TOP))


def test_a_file_of_several_takes_one_at_a_time(tmp_path):
    """Each is closed before the next one is opened, so that thousands need no thousand open files."""
    form = FORMATS["parquet"]
    paths = [written(form, tmp_path / str(number), VECTOR, LOGITS) for number in range(5)]
    open_now: list[int] = []

    def opened() -> Any:
        for path in paths:
            with path.open("rb") as file:
                open_now.append(1)
                yield file
            open_now.pop()

    form.join(opened(), tmp_path / "whole")
    assert open_now == []
    assert parquet.read_metadata(tmp_path / "whole").num_rows == 15


def test_groups_of_a_table_are_of_so_many_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_GROUP", 12)
    path = written(FORMATS["parquet"], tmp_path / "x", VECTOR, *[LOGITS] * 5)
    groups = parquet.read_metadata(path)
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [6, 6, 3]
    same(read_back(FORMATS["parquet"], path, VECTOR), expected(*[LOGITS] * 5))


# --- which format -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [("x.parquet", "parquet"), ("a.b.jsonl", "jsonl"), ("X.CSV", "csv"), ("x", None), ("x.json", None), ("csv", None)],
)
def test_a_format_is_told_by_the_ending(name, form):
    told = format_of(name)
    assert (told.name if told else None) == form


def test_what_a_format_needs_is_said_before_it_is_used(monkeypatch):
    monkeypatch.setattr("lifedeploy.optional.installed", lambda module: module != "pyarrow")
    for name in ("jsonl", "csv"):
        FORMATS[name].require()
    with pytest.raises(NotInstalledError, match="pyarrow is not installed") as refused:
        FORMATS["parquet"].require()
    assert refused.value.hint == "pip install 'lifedeploy[score]'"
