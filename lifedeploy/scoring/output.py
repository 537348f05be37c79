"""Where rows go: a folder with a file for each part, or one file; what of a job is done, told by the files there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, ClassVar

from lifedeploy.errors import DataError, UsageError
from lifedeploy.files import now, readable_json
from lifedeploy.reading import decode_json
from lifedeploy.scoring.formats import FORMATS, Format
from lifedeploy.scoring.jobs import Job, Record, Tally
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import Kind, Place
from lifedeploy.scoring.sources import LISTING
from lifedeploy.text import quoted

RECORD = "_score.json"  # readers of data sets pass over names with "_" before them
_UNDERWAY = ".parts"  # what is behind the name of a file in that of the folder where its parts wait
_PART = re.compile(r"part-(?P<number>[0-9]{5,})-(?P<key>[0-9a-f]{12})\.(?P<format>[a-z]+)")
_READ_TOGETHER = 16  # files that were there before
_ENDINGS = tuple(form.ending for form in FORMATS.values())
_NO_FORMATS = (".json", ".ndjson", ".tsv", ".txt", ".pq", ".feather", ".arrow", ".npy", ".npz", ".xlsx", ".gz", ".zst")
_REPLACED = "--overwrite replaces what is there; or name another place"


class Output:
    """Where rows go: a folder with a file for each part, and the job's record."""

    kind: ClassVar[Kind] = "folder"

    def __init__(self, place: Place, form: Format) -> None:
        self.place, self.format = place, form
        self.folder = place  # of the parts
        self.record = place.child(RECORD)

    def require_writable(self) -> None:
        """Find out before the work that nothing can be written there, as far as that can be told.

        Raises:
            UsageError: it cannot.
        """
        kind = self.place.kind()
        if kind not in ("nothing", self.kind):
            endings = ", ".join(_ENDINGS)
            raise UsageError(f"{self.place} is a {kind}; rows go to a folder, or to one file that ends in {endings}")
        self.folder.require_writable()

    def begin(self, job: Job, version: str, *, overwrite: bool) -> Record:
        """The record of ``job``, which is there from here on; of a job that is over, the complete one.

        What is of this very job stays, whether the rest is to be replaced or not: the same command goes on.

        Raises:
            UsageError: there is something of another job, and it is not to be replaced.
            DataError: a record is damaged, or where it is cannot be reached.
        """
        underway = self._read(self.folder.child(RECORD))
        ended = self._read(self.record)
        if not overwrite:
            self._require_of(job, [record for record in (underway, ended) if record is not None])
        if ended is not None and ended.job.key == job.key and ended.complete and self._is_whole(job, ended):
            return ended
        if underway is not None and underway.job.key == job.key:
            return replace(underway, complete=False)  # it may say so of parts that somebody took away since
        self._clear()
        record = Record(lifedeploy=version, created=now(), job=job)
        self._write(self.folder.child(RECORD), record)
        return record

    def _require_of(self, job: Job, records: Sequence[Record]) -> None:
        """Make sure that there is nothing but what is of ``job``, or of nobody.

        Raises:
            UsageError: there is.
        """
        other = next((record.job for record in records if record.job.key != job.key), None)
        if other is not None:
            said = "; ".join(job.differences(other))
            raise UsageError(f"{self.place} holds rows of another job: {said}", hint=_REPLACED)
        if (self._is_unknown() and not records) or any(key != job.key for _, key in self._parts()):
            raise UsageError(f"{self.place} is there already, and is not of this job", hint=_REPLACED)

    def _is_unknown(self) -> bool:
        """Whether there is something that only a record could tell of."""
        return False

    def _is_whole(self, job: Job, record: Record) -> bool:
        """Whether all that a record tells of is there."""
        return len(self.done(job.key)) >= record.parts

    def _clear(self) -> None:
        """Take away what other jobs have left here: the records last, so that they are told until then."""
        for entry in self.folder.entries():
            if _PART.fullmatch(entry.name) or entry.name == LISTING:
                self.folder.child(entry.name).remove()
        self.folder.child(RECORD).remove()
        self.record.remove()

    def keep_listing(self, listing: Path) -> None:
        """Put a table of the input beside the parts."""
        with self.folder.child(LISTING).writing() as path:
            shutil.copyfile(listing, path)

    def part(self, number: int, job_key: str) -> Place:
        """The file of a part."""
        return self.folder.child(f"part-{number:05d}-{job_key}{self.format.ending}")

    def done(self, key: str) -> set[int]:
        """Numbers of the parts whose rows are there."""
        return {number for number, other in self._parts() if other == key}

    def _parts(self) -> list[tuple[int, str]]:
        names = (_PART.fullmatch(entry.name) for entry in self.folder.entries() if entry.kind == "file")
        return [(int(match["number"]), match["key"]) for match in names if match is not None]

    def tally_of(self, place: Place) -> Tally:
        """What is in a file of rows."""
        with place.open() as file:
            return Tally.of(self.format.problems(file))

    def tallies(self, numbers: Sequence[int], key: str) -> dict[int, Tally]:
        """What is in the files of some parts."""
        with ThreadPoolExecutor(_READ_TOGETHER, "tally") as pool:
            read = pool.map(lambda number: self.tally_of(self.part(number, key)), numbers)
            return dict(zip(numbers, read, strict=True))

    def finish(self, record: Record, parts: Sequence[Part]) -> None:
        """Say that all is done."""
        self._write(self.record, record)

    def tidy(self) -> None:
        """Take away what is of no use behind a job that is over."""

    def _read(self, place: Place) -> Record | None:
        try:
            data = place.read()
        except FileNotFoundError:
            return None
        return decode_json(data, Record, str(place), DataError)

    def _write(self, place: Place, record: Record) -> None:
        with place.writing() as path:
            path.write_text(readable_json(asdict(record)), encoding="utf-8")


class OneFile(Output):
    """One file, whose parts wait in a folder beside it. An older one stays until the new one is made of them."""

    kind: ClassVar[Kind] = "file"

    def __init__(self, place: Place, form: Format) -> None:
        super().__init__(place, form)
        self.folder = place.beside(place.name + _UNDERWAY)
        self.record = place.beside(place.name + ".json")

    def _is_unknown(self) -> bool:
        return self.place.kind() != "nothing"

    def _is_whole(self, job: Job, record: Record) -> bool:
        return self.place.kind() == "file"

    def finish(self, record: Record, parts: Sequence[Part]) -> None:
        with self.place.writing() as path:
            self.format.join(self._opened(parts, record.job.key), path)
        super().finish(record, parts)
        self.tidy()

    def tidy(self) -> None:
        for entry in self.folder.entries():  # and nothing else that may be in it
            if _PART.fullmatch(entry.name) or entry.name in (LISTING, RECORD):
                self.folder.child(entry.name).remove()
        self.folder.remove_empty()

    def _opened(self, parts: Sequence[Part], key: str) -> Iterator[IO[bytes]]:
        for part in parts:
            with self.part(part.number, key).open() as file:
                yield file


@contextmanager
def held(output: Output) -> Iterator[None]:
    """Hold the folder of parts for this process; nothing is left of it where nothing came of it."""
    new = output.folder.kind() == "nothing"
    with output.folder.held():
        try:
            yield
        finally:
            if new:
                output.folder.remove_empty()


def output_at(place: Place, form: Format | None, asked: str) -> Output:
    """Where rows go: to one file where the place is called like one, else to a folder.

    Raises:
        UsageError: the name means one format, and another one was asked for; or a kind of file that is not written.
    """
    if form is None and place.name.lower().endswith(_NO_FORMATS):
        raise UsageError(f"{place} is no file of rows by its ending; there are: {', '.join(_ENDINGS)}; or a folder")
    if form is None:
        return Output(place, FORMATS[asked or "parquet"])
    if asked and asked != form.name:
        raise UsageError(f"{place} ends as {form.name} does, and --format says {quoted(asked)}")
    return OneFile(place, form)
