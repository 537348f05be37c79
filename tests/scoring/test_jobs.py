"""Jobs: what is done is told by the files that are there, and nothing of another job is ever taken for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifedeploy.errors import DataError, UsageError
from lifedeploy.scoring.answers import Column, Rows
from lifedeploy.scoring.formats import FORMATS, format_of
from lifedeploy.scoring.jobs import EXAMPLES, Job, Record, Tally
from lifedeploy.scoring.output import RECORD, Output, held, output_at
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import LocalPlace
from lifedeploy.scoring.sources import LISTING
from tests.scoring.test_formats import read_back, rows

JOB = Job(
    model="tiny",
    source="photos",
    root="/data/photos",
    column="image",
    sha256="a" * 64,
    engine="onnxruntime",
    precision="fp32",
    keep="logits",
    top=1,
    input="b" * 64,
    part=2,
    format="parquet",
    max_pixels=1000,
)
COLUMNS = (Column("logits", "vector", 2),)
PARTS = [Part(number=number, images=2) for number in range(3)]
EVERY = pytest.mark.parametrize("form", list(FORMATS))


def block(number: int, problems: Sequence[str] = ("", "")) -> Rows:
    names = [f"{number}-{index}.png" for index in range(len(problems))]
    return rows(names, problems, np.full((problems.count(""), 2), number, np.float32))


class Place:
    """Somewhere rows go, and what is done to it."""

    def __init__(self, root: Path, name: str = "out", asked: str = "") -> None:
        self.path = root / name
        self.output: Output = output_at(LocalPlace(self.path), format_of(name), asked)
        self.job = replace(JOB, format=self.output.format.name)

    def begin(self, *, overwrite: bool = False, **changes: Any) -> Record:
        self.job = replace(self.job, **changes)
        return self.output.begin(self.job, "1.0", overwrite=overwrite)

    def score(self, *numbers: int, problems: Sequence[str] = ("", "")) -> None:
        for number in numbers:
            with (
                self.output.part(number, self.job.key).writing() as path,
                self.output.format.writer(path, COLUMNS) as writer,
            ):
                writer.write(block(number, problems))

    def finish(self, record: Record) -> None:
        done = sorted(self.output.done(self.job.key))
        tallies = self.output.tallies(done, self.job.key).values()
        self.output.finish(replace(record, complete=True, parts=len(PARTS), tally=sum(tallies, Tally())), PARTS)

    def whole(self) -> None:
        """A job from begin to end."""
        record = self.begin()
        self.score(0, 1, 2)
        self.finish(record)

    @property
    def files(self) -> list[str]:
        """All there is, below the folder that the place is in."""
        root = self.path.parent
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(params=["out", "out.parquet", "out.jsonl", "out.csv"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


# --- begin, go on, end ------------------------------------------------------------------------------------------


def test_a_job_begins_and_goes_on(place):
    first = place.begin()
    assert (first.complete, first.parts, first.tally, first.job) == (False, 0, Tally(), place.job)
    assert place.output.done(place.job.key) == set()
    place.score(0, 2)
    assert place.begin() == first
    assert place.output.done(place.job.key) == {0, 2}


def test_a_job_that_is_over_says_so(place):
    place.whole()
    over = place.begin()
    assert over.complete
    assert (over.parts, over.tally.images, over.tally.bad) == (3, 6, 0)
    assert place.begin(overwrite=True) == over  # what is to be replaced is what is of another job


@EVERY
def test_the_parts_of_one_file_are_gone_in_the_end(tmp_path, form):
    place = Place(tmp_path, f"out.{form}")
    place.output.folder.path.mkdir()
    record = place.begin()
    place.score(0, 1, 2)
    (tmp_path / "listing").write_text("image\n")
    place.output.keep_listing(tmp_path / "listing")
    assert f"out.{form}.parts/{LISTING}" in place.files
    place.finish(record)
    (tmp_path / "listing").unlink()
    assert place.files == [f"out.{form}", f"out.{form}.json"]
    assert not (tmp_path / f"out.{form}.parts").exists()
    read = read_back(place.output.format, place.path, COLUMNS)
    assert [row[0] for row in read] == ["0-0.png", "0-1.png", "1-0.png", "1-1.png", "2-0.png", "2-1.png"]
    assert [row[1] for row in read] == [[number, number] for number in (0, 0, 1, 1, 2, 2)]


def test_the_files_of_a_folder_are_called_by_their_part_and_job(tmp_path):
    for asked in FORMATS:
        place = Place(tmp_path / asked, asked=asked)
        place.whole()
        key = place.job.key
        assert len(key) == 12
        assert place.files == [f"out/{RECORD}", *(f"out/part-0000{number}-{key}.{asked}" for number in range(3))]


def test_parts_have_as_many_digits_as_they_need(tmp_path):
    place = Place(tmp_path)
    place.begin()
    place.score(7, 123_456)
    assert place.output.done(place.job.key) == {7, 123_456}


def test_the_record_says_what_the_rows_are_of(place):
    place.whole()
    told = json.loads(place.output.record.path.read_text())
    assert told["job"] == {
        "model": "tiny",
        "source": "photos",
        "root": "/data/photos",
        "column": "image",
        "sha256": "a" * 64,
        "engine": "onnxruntime",
        "precision": "fp32",
        "keep": "logits",
        "top": 1,
        "input": "b" * 64,
        "part": 2,
        "format": place.output.format.name,
        "max_pixels": 1000,
    }
    assert (told["lifedeploy"], told["complete"], told["parts"]) == ("1.0", True, 3)
    assert told["tally"] == {"images": 6, "bad": 0, "examples": []}


# --- what is missing of a job that is over ----------------------------------------------------------------------


def test_a_part_that_was_taken_away_is_no_part_of_a_job_that_is_over(tmp_path):
    place = Place(tmp_path)
    place.whole()
    place.output.part(1, place.job.key).remove()
    record = place.begin()
    assert not record.complete
    assert place.output.done(place.job.key) == {0, 2}


def test_a_file_that_was_taken_away_is_made_again(tmp_path):
    place = Place(tmp_path, "out.csv")
    place.whole()
    place.path.unlink()
    assert not place.begin().complete
    assert place.files == [f"out.csv.parts/{RECORD}"]


def test_a_merge_that_was_killed_is_finished(place, tmp_path):
    """The file is there, and so are its parts; who made it did not get so far as to say so."""
    if place.output.kind != "file":
        place = Place(tmp_path, "other.jsonl")
    record = place.begin()
    place.score(0, 1, 2)
    with place.output.place.writing() as path:
        path.write_text("half of it, or all")
    again = place.begin()
    assert again == record
    assert place.output.done(place.job.key) == {0, 1, 2}
    place.finish(again)
    assert place.files == [place.path.name, f"{place.path.name}.json"]
    assert len(read_back(place.output.format, place.path, COLUMNS)) == 6


def test_a_job_killed_after_it_said_that_it_was_over_is_over(tmp_path):
    """Its parts wait to be taken away."""
    place = Place(tmp_path, "out.jsonl")
    record = place.begin()
    place.score(0, 1, 2)
    parts = [(path, path.read_bytes()) for path in place.output.folder.path.iterdir()]
    place.finish(record)
    place.output.folder.path.mkdir()
    for path, content in parts:
        path.write_bytes(content)
    over = place.begin()
    assert over.complete
    place.output.tidy()
    assert place.files == ["out.jsonl", "out.jsonl.json"]


# --- other jobs -------------------------------------------------------------------------------------------------

CHANGES = {
    "model": ({"model": "large", "sha256": "c" * 64}, "model tiny (aaaaaaaa), not large (cccccccc)"),
    "engine": ({"engine": "openvino"}, "engine onnxruntime, not openvino"),
    "precision": ({"precision": "int8"}, "precision fp32, not int8"),
    "keep": ({"keep": "top", "top": 5}, "--keep logits, not top; --top 1, not 5"),
    "images": ({"source": "s3://b/x", "input": "d" * 64}, "images photos (bbbbbbbb), not s3://b/x (dddddddd)"),
    "folder": ({"source": "other", "root": "/data/other"}, "images /data/photos, not /data/other"),
    "column": ({"column": "mask"}, "--column image, not mask"),
    "part": ({"part": 3}, "--part 2, not 3"),
    "pixels": ({"max_pixels": 2000}, "--max-pixels 1000, not 2000"),
}


@pytest.mark.parametrize(("changes", "said"), CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("over", [False, True], ids=["begun", "over"])
def test_another_job_is_refused_in_words(place, changes, said, over):
    if over:
        place.whole()
    else:
        place.begin()
        place.score(0)
    before = place.files
    with pytest.raises(UsageError) as refused:
        place.begin(**changes)
    assert refused.value.message == f"{place.path} holds rows of another job: {said}"
    assert refused.value.hint == "--overwrite replaces what is there; or name another place"
    assert place.files == before


@pytest.mark.parametrize(("changes", "said"), CHANGES.values(), ids=list(CHANGES))
def test_another_job_has_another_key(changes, said):
    assert replace(JOB, **changes).key != JOB.key


def test_what_is_only_shown_changes_no_key():
    assert replace(JOB, model="x", source="y").key == JOB.key
    assert JOB.key == replace(JOB).key


def test_every_field_that_makes_rows_is_in_the_key_and_can_be_said():
    for name, value in vars(JOB).items():
        if name in ("model", "source"):
            continue
        other = replace(JOB, **{name: value + 1 if isinstance(value, int) else f"x{value}"})
        assert other.key != JOB.key, name
        (said,) = other.differences(JOB)
        assert ", not " in said


def test_a_format_of_a_folder_is_another_job(tmp_path):
    Place(tmp_path, asked="csv").whole()
    with pytest.raises(UsageError, match="out holds rows of another job: format csv, not jsonl"):
        Place(tmp_path, asked="jsonl").begin()


@pytest.mark.parametrize("over", [False, True], ids=["begun", "over"])
def test_overwriting_takes_all_of_the_other_job_and_nothing_else(place, over, tmp_path):
    if over:
        place.whole()
    else:
        place.begin()
        place.score(0, 1)
    folder = place.output.folder.path
    folder.mkdir(exist_ok=True)
    mine = {"notes.txt", "part-1.parquet", "part-00000-abc.parquet", "_SUCCESS", "part-00000-0123456789ab.parquet.bak"}
    for name in mine:
        (folder / name).write_text("mine")
    (folder / "deep").mkdir()
    (folder / "deep" / "part-00000-0123456789ab.parquet").write_text("mine")
    record = place.begin(overwrite=True, part=7)
    assert (record.complete, record.job.part) == (False, 7)
    kept = {f"{folder.name}/{name}" for name in (*mine, "deep/part-00000-0123456789ab.parquet", RECORD)}
    # One file that was whole stays what it was until the new one takes its place.
    assert set(place.files) == kept | ({place.path.name} if over and place.output.kind == "file" else set())
    assert all((folder / name).read_text() == "mine" for name in mine)
    place.score(0, 1, 2)
    place.finish(record)
    assert all((folder / name).read_text() == "mine" for name in mine)
    assert place.begin().complete


def test_overwriting_does_not_begin_its_own_job_anew(place):
    first = place.begin()
    place.score(0)
    assert place.begin(overwrite=True) == first
    assert place.output.done(place.job.key) == {0}


def test_parts_of_another_format_are_taken_away_too(tmp_path):
    Place(tmp_path, asked="csv").whole()
    other = Place(tmp_path, asked="jsonl")
    other.begin(overwrite=True)
    assert other.files == [f"out/{RECORD}"]


def test_other_files_in_a_folder_are_no_matter(tmp_path):
    place = Place(tmp_path)
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    place.whole()
    assert place.begin().complete
    assert "out/notes.txt" in place.files


@EVERY
def test_a_file_that_is_of_nobody_is_refused(tmp_path, form):
    place = Place(tmp_path, f"out.{form}")
    place.path.write_text("mine")
    with pytest.raises(UsageError) as refused:
        place.begin()
    assert refused.value.message == f"{place.path} is there already, and is not of this job"
    assert place.path.read_text() == "mine"
    record = place.begin(overwrite=True)
    assert place.path.read_text() == "mine"
    place.score(0, 1, 2)
    place.finish(record)
    assert place.path.read_bytes() != b"mine"


def test_what_leads_to_a_device_is_no_part_and_no_record(place):
    """A device has no end: nothing of it is read."""
    place.begin()
    place.score(0)
    folder = place.output.folder.path
    part = place.output.part(1, place.job.key)
    (folder / part.name).symlink_to("/dev/zero")
    assert place.output.done(place.job.key) == {0}
    with pytest.raises(DataError, match="is neither a file nor a folder, but a pipe, a device or a socket"):
        part.read()
    (folder / RECORD).unlink()
    (folder / RECORD).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{RECORD} is neither a file nor a folder, but a pipe, a device or a socket"):
        place.begin()


def test_parts_without_a_record_are_refused(place):
    place.begin()
    place.score(0)
    place.output.folder.child(RECORD).remove()
    with pytest.raises(UsageError, match="is there already, and is not of this job"):
        place.begin(part=3)
    assert place.output.done(replace(place.job, part=2).key) == {0}


def test_parts_of_two_jobs_are_refused(place):
    first = place.begin()
    place.output.part(0, replace(JOB, part=99).key).path.write_text("another's")
    with pytest.raises(UsageError, match="is there already, and is not of this job"):
        place.begin()
    assert place.output.done(place.job.key) == set()
    assert first.job == place.job


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"lifedeploy": 1}', b"\xff", b'{"lifedeploy": "1", "created": "", "job": {}}']
)
def test_a_record_that_is_damaged_is_told_with_its_name(place, content):
    place.begin()
    path = place.output.folder.child(RECORD).path
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{RECORD} cannot be read: "):
        place.begin()
    assert path.read_bytes() == content


# --- where ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "form", "single"),
    [
        ("out", "", "parquet", False),
        ("out", "csv", "csv", False),
        ("out.parquet", "", "parquet", True),
        ("out.JSONL", "", "jsonl", True),
        ("out.csv", "csv", "csv", True),
        ("v1.2", "jsonl", "jsonl", False),
    ],
)
def test_where_rows_go(tmp_path, name, asked, form, single):
    place = Place(tmp_path, name, asked)
    assert (place.output.format.name, place.output.kind == "file") == (form, single)


def test_two_formats_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"out\.csv ends as csv does, and --format says 'jsonl'"):
        Place(tmp_path, "out.csv", "jsonl")


@pytest.mark.parametrize("name", ["out.json", "out.TSV", "out.csv.gz", "out.npz"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(UsageError) as refused:
        Place(tmp_path, name)
    said = f"{tmp_path / name} is no file of rows by its ending; there are: .parquet, .jsonl, .csv; or a folder"
    assert refused.value.message == said


def test_a_folder_where_a_file_is_to_be_and_the_other_way_round(tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(
        UsageError, match=r"out\.csv is a folder; rows go to a folder, or to one file that ends in \.par"
    ):
        Place(tmp_path, "out.csv").output.require_writable()
    (tmp_path / "out").touch()
    with pytest.raises(
        UsageError, match=r"out is a file; rows go to a folder, or to one file that ends in \.parquet, "
    ):
        Place(tmp_path, "out").output.require_writable()
    for name in ("out/x", "out/x/y", "out/x.csv"):
        with pytest.raises(UsageError, match=r"cannot be written: .*out is no folder"):
            Place(tmp_path, name).output.require_writable()
    Place(tmp_path, "new/deep/x.csv").output.require_writable()
    assert not (tmp_path / "new").exists()


HOLD = """
import sys
from pathlib import Path
from lifedeploy.scoring.formats import format_of
from lifedeploy.scoring.output import held, output_at
from lifedeploy.scoring.places import LocalPlace
with held(output_at(LocalPlace(Path(sys.argv[1])), format_of(sys.argv[1]), "")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["out", "out.csv"])
def test_two_processes_never_write_to_one_place(tmp_path, name):
    place = Place(tmp_path, name)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as refused, held(place.output):
            pytest.fail("both hold it")
        assert refused.value.message == f"{place.output.folder}/ is being written to by another process"
        assert refused.value.hint == "wait for it to end, or name another folder"
        process.communicate()
    assert process.returncode == 0
    with held(place.output):
        place.begin()
    assert place.begin().job == place.job


def test_a_place_where_nothing_came_of_it_is_left_as_it_was(place, tmp_path):
    with pytest.raises(DataError), held(place.output):
        raise DataError("nothing came of it")
    assert list(tmp_path.iterdir()) == []
    place.output.folder.path.mkdir()
    with held(place.output):
        pass
    assert place.output.folder.path.is_dir()  # it was there before


def test_a_place_that_two_wait_for_is_not_taken_from_under_the_other(tmp_path, monkeypatch):
    """Who is refused takes away nothing of who holds it."""
    place = Place(tmp_path, "out.csv")
    with held(place.output):
        with pytest.raises(UsageError), held(place.output):
            pytest.fail("both hold it")
        assert place.output.folder.path.is_dir()
        place.begin()
        place.score(0)
    assert place.output.done(place.job.key) == {0}


# --- tallies ----------------------------------------------------------------------------------------------------


def test_a_tally_is_read_from_the_files_that_are_there(place):
    place.begin()
    place.score(0)
    place.score(1, problems=["", "1 is bad", "", "3 is bad"])
    place.score(2, problems=["bad"] * 20)
    tallies = place.output.tallies([0, 1, 2], place.job.key)
    assert tallies[0] == Tally(images=2)
    assert tallies[1] == Tally(images=4, bad=2, examples=(("1-1.png", "1 is bad"), ("1-3.png", "3 is bad")))
    assert (tallies[2].images, tallies[2].bad) == (20, 20)
    assert tallies[2].examples == tuple((f"2-{number}.png", "bad") for number in range(EXAMPLES))


def test_tallies_add_up_and_keep_the_first_examples():
    first, second = (tuple((name, str(index)) for index in range(7)) for name in "ab")
    both = Tally(images=9, bad=7, examples=first) + Tally(images=8, bad=7, examples=second)
    assert (both.images, both.bad) == (17, 14)
    assert both.examples == (*first, *second[:3])


def test_a_part_that_is_damaged_is_told(place):
    place.begin()
    place.output.part(0, place.job.key).path.write_bytes(b"\xff no rows")
    with pytest.raises(DataError, match="cannot be read: "):
        place.output.tallies([0], place.job.key)
