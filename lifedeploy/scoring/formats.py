"""Files of rows: Parquet, JSON Lines and CSV. Written block by block, put together without being read as a whole."""

from __future__ import annotations

import csv
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from lifedeploy.engines.lanes import Array
from lifedeploy.errors import DataError
from lifedeploy.optional import require, require_installed
from lifedeploy.reading import foreign
from lifedeploy.scoring.answers import NAME, PROBLEM, Column, Rows

_GROUP = 2**20  # numbers of a column that are in memory before they are written


class Writer(ABC):
    """A file that is being written, inside a ``with`` block."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self.path, self.columns = path, tuple(columns)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @abstractmethod
    def write(self, rows: Rows) -> None:
        """Add rows, behind those that are there."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...


class Format(ABC):
    """A kind of file."""

    name: str
    ending: str

    needs: tuple[str, ...] = ()  # libraries

    def require(self) -> None:
        """Make sure that what it needs is installed.

        Raises:
            NotInstalledError: it is not.
        """
        require_installed(*self.needs, extra="score")

    @abstractmethod
    def writer(self, path: Path, columns: Sequence[Column]) -> Writer:
        """A new file."""

    @abstractmethod
    def problems(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        """The name of each row in a file, and what is wrong with its image; ''.

        Raises:
            DataError: it is no such file.
        """

    @abstractmethod
    def join(self, files: Iterable[IO[bytes]], path: Path) -> None:
        """One file of several that have the same columns, with their rows in the same order."""


class Parquet(Format):
    """Apache Parquet: vectors are lists of a fixed size."""

    name, ending = "parquet", ".parquet"
    needs = ("pyarrow",)

    def writer(self, path: Path, columns: Sequence[Column]) -> Writer:
        return _ParquetWriter(path, columns)

    def problems(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        with foreign("a file of scores", DataError):
            for batch in _parquet().ParquetFile(file).iter_batches(columns=[NAME, PROBLEM], use_threads=False):
                for name, problem in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield name, problem or ""

    def join(self, files: Iterable[IO[bytes]], path: Path) -> None:
        parquet = _parquet()
        with ExitStack() as stack:
            writer = None
            for file in files:
                part = parquet.ParquetFile(file)
                writer = writer or stack.enter_context(parquet.ParquetWriter(path, part.schema_arrow))
                for group in range(part.num_row_groups):
                    writer.write_table(part.read_row_group(group, use_threads=False))


class _ParquetWriter(Writer):
    def _begin(self) -> None:
        pa = require("pyarrow", extra="score")
        kinds = {"index": pa.int32(), "text": pa.string(), "number": pa.float32()}
        fields = [
            (column.name, kinds.get(column.kind) or pa.list_(pa.float32(), column.width)) for column in self.columns
        ]
        self._schema = pa.schema([(NAME, pa.string()), *fields, (PROBLEM, pa.string())])
        self._pa, self._numbers = pa, 0
        self._waiting: list[Any] = []
        self._file = _parquet().ParquetWriter(self.path, self._schema)

    def write(self, rows: Rows) -> None:
        pa = self._pa
        good = np.asarray([not problem for problem in rows.problems], dtype=np.bool_)
        arrays = [pa.array(rows.names, pa.string())]
        for column, values in zip(self.columns, rows.values, strict=True):
            arrays.append(self._array(column, values, good))
        arrays.append(pa.array([problem or None for problem in rows.problems], pa.string()))
        self._waiting.append(pa.record_batch(arrays, schema=self._schema))
        self._numbers += len(rows.names) * max((column.width for column in self.columns), default=1)
        if self._numbers >= _GROUP:
            self._flush()

    def _array(self, column: Column, values: Sequence[Any] | Array, good: NDArray[np.bool_]) -> Any:
        pa = self._pa
        if column.kind == "text":
            texts = iter(values)
            return pa.array([next(texts) if there else None for there in good], pa.string())
        numbers = np.zeros((len(good), column.width), np.asarray(values).dtype)
        numbers[good] = np.asarray(values).reshape(-1, column.width)
        if column.kind != "vector":
            return pa.array(numbers[:, 0], mask=~good)
        return pa.FixedSizeListArray.from_arrays(numbers.ravel(), column.width, mask=pa.array(~good))

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(self._pa.Table.from_batches(self._waiting))
            self._waiting, self._numbers = [], 0

    def _end(self) -> None:
        self._flush()
        self._file.close()


class JsonLines(Format):
    """An object a line, https://jsonlines.org: null where there is no answer."""

    name, ending = "jsonl", ".jsonl"

    def writer(self, path: Path, columns: Sequence[Column]) -> Writer:
        return _JsonWriter(path, columns)

    def problems(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        with foreign("a file of scores", DataError):
            for line in file:
                row = json.loads(line)
                yield row[NAME], row[PROBLEM] or ""

    def join(self, files: Iterable[IO[bytes]], path: Path) -> None:
        with path.open("wb") as whole:
            for file in files:
                shutil.copyfileobj(file, whole)


class _TextWriter(Writer):
    def _begin(self) -> None:
        self._file = self.path.open("w", encoding="utf-8", newline="")

    def _end(self) -> None:
        self._file.close()

    def _rows(self, rows: Rows) -> Iterator[list[Any]]:
        """The values of each row, as plain types: a number, a text, a list of numbers; None."""
        answers = zip(*map(_plain, rows.values), strict=True)
        for name, problem in zip(rows.names, rows.problems, strict=True):
            yield [name, *([None] * len(self.columns) if problem else next(answers)), problem or None]


class _JsonWriter(_TextWriter):
    def write(self, rows: Rows) -> None:
        keys = [NAME, *(column.name for column in self.columns), PROBLEM]
        for row in self._rows(rows):
            self._file.write(json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) + "\n")


class Csv(Format):
    """RFC 4180 in UTF-8, with a line of names: a vector is a column for each of its numbers."""

    name, ending = "csv", ".csv"

    def writer(self, path: Path, columns: Sequence[Column]) -> Writer:
        return _CsvWriter(path, columns)

    def problems(self, file: IO[bytes]) -> Iterator[tuple[str, str]]:
        with foreign("a file of scores", DataError):
            rows = csv.reader(line.decode("utf-8") for line in file)
            next(rows)
            for row in rows:
                yield row[0], row[-1]

    def join(self, files: Iterable[IO[bytes]], path: Path) -> None:
        with path.open("wb") as whole:
            for number, file in enumerate(files):
                header = file.readline()
                if not number:
                    whole.write(header)
                shutil.copyfileobj(file, whole)


class _CsvWriter(_TextWriter):
    def _begin(self) -> None:
        super()._begin()
        self._table = csv.writer(self._file)
        self._table.writerow([NAME, *chain.from_iterable(map(_names, self.columns)), PROBLEM])

    def write(self, rows: Rows) -> None:
        for name, *values, problem in self._rows(rows):
            pairs = zip(self.columns, values, strict=True)
            flat = chain.from_iterable(_flat(column, value) for column, value in pairs)
            self._table.writerow([name, *flat, problem])


FORMATS: dict[str, Format] = {form.name: form for form in (Parquet(), JsonLines(), Csv())}


def format_of(name: str) -> Format | None:
    """The format that a file's ending means; None: none does."""
    return next((form for form in FORMATS.values() if name.lower().endswith(form.ending)), None)


def _parquet() -> Any:
    return require("pyarrow.parquet", extra="score")


def _names(column: Column) -> list[str]:
    return [f"{column.name}_{index}" for index in range(column.width)] if column.kind == "vector" else [column.name]


def _flat(column: Column, value: Any) -> list[Any]:
    return (value or [None] * column.width) if column.kind == "vector" else [value]


def _plain(values: Sequence[Any] | Array) -> list[Any]:
    """As Python's own types; of a number in single precision as few digits as tell it from all others."""
    if not isinstance(values, np.ndarray):
        return list(values)
    if values.dtype != np.float32:
        return list(values.tolist())
    if values.ndim == 1:
        return [float(str(value)) for value in values]
    return [[float(str(value)) for value in row] for row in values]
