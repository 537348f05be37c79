"""Manifests: tables with a column that names images. Read in parts, from where each begins; never as a whole.

A part of a CSV file is some of its bytes, which are found once, while it is read to its end; a part of a Parquet file
is some of its rows, of which only their column is read.
"""

from __future__ import annotations

import csv
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from lifedeploy.errors import DataError
from lifedeploy.optional import require
from lifedeploy.reading import foreign
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import Place
from lifedeploy.text import quoted, shortened

TEXTS = {".csv": ",", ".tsv": "\t"}  # ending → what is between the fields
PARQUET = (".parquet", ".pq")
ENDINGS = (*TEXTS, *PARQUET)
# What a column of images is called, where nobody says: as Hugging Face, torchvision's readers and others have it.
USUAL_COLUMNS = ("image", "file_name", "filename", "path", "file", "filepath", "image_path", "url", "uri")
_LONGEST_LINE = 1024**2  # bytes
_ROWS_READ = 4096  # of a Parquet file at a time
_BOM = "\ufeff"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A manifest in parts; ``digest`` is another one for other content."""

    parts: tuple[Part, ...]
    images: int
    digest: str


class Manifest(ABC):
    """A table at a place, and the column of it that names images."""

    def __init__(self, place: Place, column: str = "") -> None:
        self.place, self.column = place, column

    @abstractmethod
    def resolved(self) -> Manifest:
        """The same with its column looked up, which may have been left to us; parts are asked of no other.

        Raises:
            DataError: it cannot be read, has no such column, or several that may be meant.
        """

    @abstractmethod
    def planned(self, images: int) -> Planned:
        """Parts of ``images`` each.

        Raises:
            DataError: it is damaged, or holds no rows.
        """

    @abstractmethod
    def names(self, part: Part) -> Iterator[str]:
        """What is in the column, in a part; '' where there is nothing."""


def manifest_at(place: Place, column: str = "") -> Manifest:
    """The manifest at a place, by its ending."""
    ending = "." + place.name.rpartition(".")[2].lower()
    return TextManifest(place, column, TEXTS[ending]) if ending in TEXTS else ParquetManifest(place, column)


class TextManifest(Manifest):
    """Text with a line of column names first: RFC 4180, in UTF-8."""

    def __init__(self, place: Place, column: str = "", delimiter: str = ",", index: int = 0) -> None:
        super().__init__(place, column)
        self.delimiter, self.index = delimiter, index

    def resolved(self) -> TextManifest:
        with _opened(self.place) as file, foreign(str(self.place), DataError):
            columns = next(csv.reader(_Lines(file), delimiter=self.delimiter), [])
        column = chosen_column(columns, self.column, self.place)
        return TextManifest(self.place, column, self.delimiter, columns.index(column))

    def planned(self, images: int) -> Planned:
        parts: list[Part] = []
        with _opened(self.place) as file, foreign(str(self.place), DataError):
            lines = _Lines(file)
            rows = csv.reader(lines, delimiter=self.delimiter, strict=True)
            columns = next(rows, [])
            count, begin = 0, lines.offset
            for row in rows:
                if not row:
                    continue  # an empty line
                if len(row) != len(columns):
                    fields = f"{len(row)} field{'' if len(row) == 1 else 's'}"
                    raise DataError(f"{self.place} has {fields} in line {rows.line_num:,}; expected {len(columns)}")
                count += 1
                if count % images == 0:
                    parts.append(Part(number=len(parts), begin=begin, end=lines.offset, images=images))
                    begin = lines.offset
        if count % images:
            parts.append(Part(number=len(parts), begin=begin, end=lines.offset, images=count % images))
        return Planned(parts=tuple(parts), images=count, digest=lines.digest)

    def names(self, part: Part) -> Iterator[str]:
        with foreign(str(self.place), DataError):
            text = io.StringIO(self.place.read(part.begin, part.end).decode("utf-8"), newline="")
            for row in csv.reader(text, delimiter=self.delimiter, strict=True):
                if row:
                    yield row[self.index]


class ParquetManifest(Manifest):
    """An Apache Parquet file with a column of text."""

    def resolved(self) -> ParquetManifest:
        with self._file() as file:
            schema = file.schema_arrow
            column = chosen_column(schema.names, self.column, self.place)
            kind = schema.field(column).type
        if not _is_text(kind):
            raise DataError(
                f"column {quoted(column)} of {self.place} is of type {shortened(str(kind))}; expected text, the paths "
                "or addresses of images"
            )
        return ParquetManifest(self.place, column)

    def planned(self, images: int) -> Planned:
        with self._file() as file:
            rows = file.metadata.num_rows
        begins = range(0, rows, images)
        parts = (
            Part(number=number, begin=begin, end=min(begin + images, rows), images=min(images, rows - begin))
            for number, begin in enumerate(begins)
        )
        return Planned(parts=tuple(parts), images=rows, digest=self.place.fingerprint())

    def names(self, part: Part) -> Iterator[str]:
        with self._file() as file:
            begin, groups = _groups_with(file.metadata, part)
            for batch in file.iter_batches(_ROWS_READ, row_groups=groups, columns=[self.column], use_threads=False):
                inside = batch.slice(max(part.begin - begin, 0), max(part.end - max(begin, part.begin), 0))
                for value in inside.column(0).to_pylist():
                    yield value or ""
                begin += batch.num_rows
                if begin >= part.end:
                    return

    @contextmanager
    def _file(self) -> Iterator[Any]:
        parquet = require("pyarrow.parquet", extra="score")
        with _opened(self.place) as source, foreign(str(self.place), DataError):
            yield parquet.ParquetFile(source)


def chosen_column(columns: Sequence[str], asked: str, place: Place | str) -> str:
    """The column that names images: the one asked for, the only one, or the first of the usual names.

    Raises:
        DataError: there is no such column, or none that can be told.
    """
    offered = shortened(", ".join(columns)) or "none"
    if asked and asked not in columns:
        raise DataError(f"{place} has no column {quoted(asked)}; it has: {offered}", hint="--column takes one of these")
    chosen = asked or next((name for name in USUAL_COLUMNS if name in columns), "")
    chosen = chosen or (columns[0] if len(columns) == 1 else "")
    if not chosen:
        raise DataError(
            f"{place} has no column that is called as one of images is ({', '.join(USUAL_COLUMNS)}); it has: {offered}",
            hint="--column says which one names images",
        )
    return chosen


def _opened(place: Place) -> IO[bytes]:
    try:
        return place.open()
    except FileNotFoundError as error:
        raise DataError(f"{place} does not exist") from error


def _is_text(kind: Any) -> bool:
    types = require("pyarrow", extra="score").types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def _groups_with(metadata: Any, part: Part) -> tuple[int, list[int]]:
    """The row groups that hold a part, and the row that the first of them begins with."""
    begin, first = 0, 0
    groups: list[int] = []
    for number in range(metadata.num_row_groups):
        end = begin + metadata.row_group(number).num_rows
        if end > part.begin and begin < part.end:
            first = first if groups else begin
            groups.append(number)
        begin = end
    return first, groups


class _Lines:
    """The lines of a file as text, for a reader that asks for as many as a row takes; where the next one begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.offset = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            raise ValueError(f"a line is longer than {_LONGEST_LINE:,} bytes")
        begin = self.offset
        self.offset += len(line)
        self._hash.update(line)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 at byte {begin + error.start:,}") from error
        return text if begin else text.removeprefix(_BOM)

    @property
    def digest(self) -> str:
        """SHA-256 of what was read."""
        return self._hash.hexdigest()
