"""``score`` from end to end: every image a row, equal to what the model says of it; and going on after any end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines.fake import Fake
from lifedeploy.errors import ArtifactError, DataError, EngineError, UsageError, WeightsError
from lifedeploy.exporters import onnx as exporter
from lifedeploy.model.request import ModelRequest
from lifedeploy.progress import Step
from lifedeploy.scoring.filing import Filer, Order
from lifedeploy.scoring.scorer import Scorer
from lifedeploy.workflows import score as scoring
from lifedeploy.workflows.export import ExportRequest, export
from lifedeploy.workflows.score import ScoreReport, ScoreRequest, score
from tests.conftest import TINY, TINY_SIZE, full_disk
from tests.pictures import encoded, shard
from tests.scoring.photos import asked, photo, photos, probabilities, read_rows

NAMES = ("cat", "cup", "rocket")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    """Eleven images."""
    return photos(tmp_path / "photos", 11)


def run(model: Path, *images: object, output: str = "out", **options: Any) -> ScoreReport:
    settings = {"part": 4, "batch": 3, "threads": 1, "workers": 2, "format": "" if "." in output else "jsonl"} | options
    named = tuple(map(str, images or ("photos",)))
    return score(ScoreRequest(model=model, images=named, output=output, **settings), Workspace(Path("artifacts")))


def files(root: str = ".") -> dict[str, int]:
    """Everything in a folder, and when it was written."""
    there = Path(root)
    return {str(path.relative_to(there)): path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}


def parts(root: str = "out") -> list[str]:
    return sorted(name for name in files(root) if name.startswith("part-"))


class Engine:
    """Counts the images that a model is asked of, and ends it at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self.ends_at: int | None = None
        self.error: BaseException = EngineError("the engine failed")
        self.spoils: Callable[[NDArray[Any]], NDArray[Any]] = lambda given: given
        real = Scorer._infer

        def infer(scorer: Scorer, pixels: Sequence[Any]) -> NDArray[np.float32]:
            if self.ends_at is not None and self.images + len(pixels) >= self.ends_at:
                raise self.error
            self.asked.append(len(pixels))
            return self.spoils(real(scorer, list(pixels)))

        monkeypatch.setattr(Scorer, "_infer", infer)

    @property
    def images(self) -> int:
        return sum(self.asked)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


# --- answers ----------------------------------------------------------------------------------------------------


def test_classes_are_what_the_model_says(model, data):
    report = run(model, output="out.jsonl", top=2)
    rows = read_rows(Path("out.jsonl"))
    shares = probabilities(asked(model, data))
    best = np.argsort(-shares, axis=1)
    assert [row["image"] for row in rows] == [path.name for path in data]
    assert [[row["class_1"], row["class_2"]] for row in rows] == best[:, :2].tolist()
    assert [[row["name_1"], row["name_2"]] for row in rows] == [[NAMES[index] for index in pair[:2]] for pair in best]
    told = np.array([[row["probability_1"], row["probability_2"]] for row in rows])
    np.testing.assert_allclose(told, -np.sort(-shares, axis=1)[:, :2], **CLOSE)
    assert {row["error"] for row in rows} == {None}
    assert (report.images, report.bad, report.parts, report.scored, report.parts_before) == (11, 0, 3, 11, 0)


def test_logits_are_what_the_model_gives(model, data):
    run(model, output="out.parquet", keep="logits")
    table = parquet.read_table("out.parquet")
    assert table.schema.names == ["image", "logits", "error"]
    assert table.column("image").to_pylist() == [path.name for path in data]
    assert table.schema.field("logits").type == pa.list_(pa.float32(), 3)
    np.testing.assert_allclose(np.array(table.column("logits").to_pylist()), asked(model, data), **CLOSE)


def test_embeddings_are_what_a_model_without_a_head_gives(headless, data):
    """Which takes three images at a time: eleven of them, in parts of four."""
    report = run(headless, output="out.parquet", batch=32)
    table = parquet.read_table("out.parquet")
    assert report.keep == "embeddings"
    given = asked(headless, data)
    assert table.schema.field("embeddings").type == pa.list_(pa.float32(), given.shape[1])
    np.testing.assert_allclose(np.array(table.column("embeddings").to_pylist()), given, **CLOSE)
    assert np.abs(given[0] - given[1]).max() > 0.01


def test_a_table_of_text_has_a_column_for_each_number(model, data):
    run(model, output="out.csv", keep="logits")
    header, *rows = csv.reader(Path("out.csv").read_text().splitlines())
    assert header == ["image", "logits_0", "logits_1", "logits_2", "error"]
    np.testing.assert_allclose(np.array([row[1:4] for row in rows], float), asked(model, data), **CLOSE)


def test_top_is_no_more_than_there_are_classes(model, data):
    run(model, output="out.parquet", top=100)
    names = parquet.read_schema("out.parquet").names
    assert names == ["image", *(f"{kind}_{n}" for n in (1, 2, 3) for kind in ("class", "name", "probability")), "error"]


def test_a_folder_has_a_file_for_each_part(model, data):
    run(model, format="")
    names = parts()
    key = json.loads(Path("out/_score.json").read_text())
    assert [name.split("-")[1] for name in names] == ["00000", "00001", "00002"]
    assert all(name.endswith(".parquet") for name in names)
    assert sorted(files("out")) == sorted([*names, "_score.json", "_input.csv"])
    assert (key["complete"], key["parts"], key["tally"]["images"]) == (True, 3, 11)
    assert parquet.read_table("out").num_rows == 11  # as anybody reads a data set
    assert Path("out/_input.csv").read_bytes().decode().split() == ["image", *(path.name for path in data)]


@pytest.mark.parametrize("changes", [{"batch": 1}, {"batch": 11, "workers": 1}, {"threads": 2, "batch": 2}])
def test_rows_do_not_depend_on_how_they_are_scored(model, data, changes):
    run(model, keep="logits", output="first.jsonl")
    run(model, keep="logits", output="second.jsonl", **changes)
    first, second = (read_rows(Path(f"{name}.jsonl")) for name in ("first", "second"))
    assert [row["image"] for row in first] == [row["image"] for row in second]
    np.testing.assert_allclose([row["logits"] for row in first], [row["logits"] for row in second], **CLOSE)


def test_batches_hold_images_of_one_part_and_no_bad_ones(model, data, engine):
    data[1].write_text("no image")
    run(model, part=5, batch=3)
    assert engine.asked == [3, 1, 3, 2, 1]


def test_many_bad_images_in_a_row_are_no_batch(model, data, engine):
    for path in data[:-1]:
        path.write_text("no image")
    report = run(model, part=100, batch=2)
    assert engine.asked == [1]
    assert (report.images, report.bad) == (11, 10)
    rows = read_rows(Path("out"))
    assert [row["image"] for row in rows] == [path.name for path in data]
    assert [row["error"] is None for row in rows] == [False] * 10 + [True]


def test_shards_are_parts(model, data, tmp_path, monkeypatch):
    Path("shards").mkdir()
    for number in range(3):
        members = {path.name: path.read_bytes() for path in data[4 * number : 4 * number + 4]}
        shard(tmp_path / "shards" / f"{number}.tar", members)
    shard(tmp_path / "shards" / "3.tar", {"x.json": b"{}"})
    whole = Path("shards/1.tar").read_bytes()
    Path("shards/1.tar").write_bytes(whole[: -len(whole) // 3])
    report = run(model, "shards", keep="logits")
    rows = read_rows(Path("out"))
    good = [row for row in rows if not row["error"]]
    (bad,) = (row for row in rows if row["error"])
    assert bad["image"] == "1.tar"
    assert bad["error"].startswith("1.tar cannot be read on: it is damaged")
    assert (report.images, report.bad, report.parts) == (len(rows), 1, 4)
    there = {path.name: path for path in data}
    expected = asked(model, [there[row["image"].rpartition("/")[2]] for row in good])
    np.testing.assert_allclose([row["logits"] for row in good], expected, **CLOSE)
    assert len(good) in range(8, 11)


def test_a_manifest_in_parts(model, data, tmp_path):
    lines = ["label,path", *(f'"a\nb",../photos/{path.name}' for path in data), "x,nowhere.png", 'y,""']
    Path("lists").mkdir()
    Path("lists/m.csv").write_text("\n".join(lines))
    report = run(model, "lists/m.csv", keep="logits")
    rows = read_rows(Path("out"))
    np.testing.assert_allclose([row["logits"] for row in rows[:11]], asked(model, data), **CLOSE)
    assert [row["error"] for row in rows[11:]] == [
        "image nowhere.png does not exist",
        "the manifest names no image here",
    ]
    assert (report.parts, report.images, report.bad, report.source) == (4, 13, 2, "lists/m.csv")
    assert not Path("out/_input.csv").exists()


# --- bad images -------------------------------------------------------------------------------------------------


def spoil(data: list[Path]) -> None:
    data[2].write_text("no image")
    data[3].write_bytes(data[3].read_bytes()[:200])
    Image.new("1", (400, 300)).save(data[5])
    data[7].write_bytes(b"")


def test_bad_images_are_rows_with_a_reason(lifedeploy, model, data):
    spoil(data)
    ended = lifedeploy(
        "score", model, "photos", "-o", "out.jsonl", "--max-pixels", "100000", "--part", "4", "--json", "-"
    )
    assert ended.code == 0, ended.err
    rows = read_rows(Path("out.jsonl"))
    bad = {row["image"]: row["error"] for row in rows if row["error"]}
    assert list(bad) == ["02.png", "03.png", "05.png", "07.png"]
    assert bad["02.png"].startswith("02.png is not an image that can be read: its content is none of JPEG, ")
    assert bad["03.png"].startswith("03.png is not an image that can be read: ")
    assert bad["05.png"] == "05.png has 400 x 300 = 120,000 pixels, more than the 100,000 that --max-pixels allows"
    assert bad["07.png"].startswith("07.png is not an image that can be read: ")
    answers = {name for row in rows if row["error"] for name, value in row.items() if value is not None}
    assert answers == {"image", "error"}
    report = json.loads(ended.out)
    assert (report["images"], report["bad"]) == (11, 4)
    assert [example[0] for example in report["examples"]] == list(bad)
    assert "4 of 11 images have no answer" in ended.err
    assert "02.png is not an image" in ended.err and "02.png: 02.png" not in ended.err


def test_an_answer_that_is_no_number_is_a_bad_row(fake, data, monkeypatch):
    real = Fake._run
    Image.new("RGB", (64, 64), (7, 7, 7)).save(data[4])
    Image.new("RGB", (64, 64), (7, 7, 7)).save(data[6])

    def play(self: Fake, feeds: Any) -> Any:
        (images,) = feeds.values()
        outputs = real(self, feeds)
        flat = np.flatnonzero(np.ptp(images.reshape(len(images), 3, -1), axis=2).max(axis=1) == 0)
        for number, row in enumerate(flat):
            outputs["logits"][row, 1] = (np.nan, np.inf)[number % 2]
        return outputs

    monkeypatch.setattr(Fake, "_run", play)
    report = run(fake, part=100, batch=4)
    rows = read_rows(Path("out"))
    assert [row["image"] for row in rows if row["error"]] == ["04.png", "06.png"]
    assert all("NaN or infinity" in row["error"] for row in rows if row["error"])
    assert all((row["class_1"] is None) == bool(row["error"]) for row in rows)
    assert (report.images, report.bad) == (11, 2)


def test_more_than_ten_bad_images_are_not_all_named(lifedeploy, model, tmp_path):
    paths = photos(tmp_path / "photos", 15)
    for path in paths[1:]:
        path.write_text("no image")
    ended = lifedeploy("score", model, "photos", "-o", "out", "--part", "4")
    assert ended.code == 0, ended.err
    assert "14 of 15 images have no answer" in ended.err
    assert "and 4 more; their rows say why" in ended.err
    assert ended.err.count("is not an image") == 10


def test_too_many_bad_images_end_the_job(lifedeploy, model, data):
    spoil(data)
    line = ("score", model, "photos", "-o", "out.csv", "--part", "4")
    ended = lifedeploy(*line, "--max-bad", "0.2")
    assert ended.code == 1
    said = "error: 3 of 11 images have no answer, more than --max-bad 0.2 allows; the first: 02.png is not an image"
    assert ended.lines[-2].startswith(said)
    assert ended.lines[-1] == "hint: what is done is kept: with a larger --max-bad the same command goes on"
    assert not Path("out.csv").exists()
    assert len(parts("out.csv.parts")) >= 2
    again = lifedeploy(*line, "--max-bad", "0.2")
    assert again.code == 1
    assert again.lines[-2].startswith(said)
    larger = lifedeploy(*line, "--max-bad", "0.5")
    assert larger.code == 0, larger.err
    assert sorted(files()) == sorted([f"photos/{path.name}" for path in data] + ["out.csv", "out.csv.json"])


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_too_many_bad_images_in_the_last_part_end_it_every_time(model, data, output):
    """Nothing is left to do, and it is as wrong as it was."""
    data[9].write_text("no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"^1 of 11 images have no answer, more than --max-bad 0.05 allows"):
            run(model, output=output, max_bad=0.05)
    report = run(model, output=output, max_bad=0.1)
    assert (report.images, report.bad, report.scored, report.parts_before) == (11, 1, 0, 3)


def test_where_no_image_can_be_read_it_is_an_error_every_time(model, data):
    for path in data:
        path.write_text("no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"^11 of 11 images have no answer; the first: 00\.png is not an image"):
            run(model)


# --- going on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "at"), [("out", 1), ("out", 5), ("out", 9), ("out", 11), ("out.jsonl", 5), ("out.parquet", 9)]
)
def test_a_job_goes_on_where_it_was_and_comes_to_the_same_rows(model, data, engine, output, at):
    undisturbed = run(model, output=output.replace("out", "whole"), keep="logits")
    engine.asked.clear()
    engine.ends_at = at
    folder = output if output == "out" else f"{output}.parts"
    with pytest.raises(EngineError, match="the engine failed"):
        run(model, output=output, keep="logits")
    before = {name: time for name, time in files(folder).items() if name.startswith("part-")}
    done = {1: 0, 5: 1, 9: 2, 11: 2}[at]
    assert len(before) == done
    assert not Path(output).is_file()
    assert not [name for name in files() if "lifedeploy-tmp" in name]
    engine.ends_at = None
    engine.asked.clear()
    if output == "out":  # what is there stays as it is, to the end
        report = run(model, output=output, keep="logits")
        after = files(folder)
        assert {name: after[name] for name in before} == before
    else:
        report = run(model, output=output, keep="logits")
    assert engine.images == 11 - 4 * done
    assert (report.parts_before, report.scored, report.images) == (done, 11 - 4 * done, 11)
    assert report.images == undisturbed.images
    if output == "out":
        mine, other = ([Path(root, name).read_bytes() for name in parts(root)] for root in ("out", "whole"))
        assert mine == other
    else:
        assert Path(output).read_bytes() == Path(output.replace("out", "whole")).read_bytes()


def test_a_job_that_is_over_opens_no_model(model, data, monkeypatch):
    for output in ("out", "out.jsonl"):
        run(model, output=output)
    before = files()
    monkeypatch.setattr(Filer, "__enter__", lambda self: pytest.fail("a model was opened"))
    for output in ("out", "out.jsonl"):
        report = run(model, output=output)
        assert (report.images, report.parts, report.parts_before, report.scored) == (11, 3, 3, 0)
        assert report.images_per_s is None and report.engine_images_per_s is None
    assert files() == before


def test_a_part_that_was_taken_away_is_scored_again(model, data, engine):
    run(model)
    whole = read_rows(Path("out"))
    (Path("out") / parts()[1]).unlink()
    engine.asked.clear()
    report = run(model)
    assert engine.images == 4
    assert (report.scored, report.parts_before) == (4, 2)
    assert read_rows(Path("out")) == whole


def test_it_goes_on_with_other_batches_and_threads(model, data, engine):
    engine.ends_at = 6
    with pytest.raises(EngineError):
        run(model, batch=2)
    engine.ends_at = None
    engine.asked.clear()
    assert run(model, batch=11, threads=2, workers=1).parts_before == 1
    assert engine.asked == [4, 3]


def test_a_single_file_leaves_nothing_beside_it(model, data):
    run(model, output="rows/out.parquet")
    assert sorted(files("rows")) == ["out.parquet", "out.parquet.json"]
    assert not Path("rows/out.parquet.parts").exists()


def test_a_merge_that_was_interrupted_is_made_again(model, data, monkeypatch):
    from lifedeploy.scoring.formats import JsonLines

    real = JsonLines.join
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "join", lambda *given: (real(*given), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run(model, output="out.jsonl")
    assert not Path("out.jsonl").exists()
    assert len(parts("out.jsonl.parts")) == 3
    report = run(model, output="out.jsonl")
    assert (report.scored, report.parts_before) == (0, 3)
    assert len(read_rows(Path("out.jsonl"))) == 11


def test_an_interrupt_ends_it_and_leaves_what_is_done(lifedeploy, model, data, engine):
    engine.ends_at, engine.error = 9, KeyboardInterrupt()
    ended = lifedeploy("score", model, "photos", "-o", "out", "--part", "4", "--batch", "2")
    assert ended.code == 1
    assert "interrupted" in ended.lines[-1]
    assert len(parts()) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feed", "decode", "file"))]
    assert not [name for name in files() if "lifedeploy-tmp" in name]
    engine.ends_at = None
    assert lifedeploy("score", model, "photos", "-o", "out", "--part", "4").code == 0


def test_a_full_disk_is_told_and_leaves_nothing_half_written(lifedeploy, model, data):
    line = ("score", model, "photos", "-o", "out", "--part", "4")
    with full_disk(1500):
        ended = lifedeploy(*line)
    assert ended.code == 1
    assert "part-00000-" in ended.lines[-1] and "File too large" in ended.lines[-1]
    assert parts() == []
    assert not [name for name in files() if "lifedeploy-tmp" in name]
    assert lifedeploy(*line).code == 0
    assert parquet.read_table("out").num_rows == 11


def test_images_that_cannot_be_reached_end_it_and_leave_what_is_done(model, data, monkeypatch):
    """A store that is gone is not the image's fault."""
    real = scoring.Filer

    class Cut(real):
        def __init__(self, order: Order) -> None:
            super().__init__(order)
            items = self._reader.items

            def cut(part: Any) -> Iterator[Any]:
                if part.number == 2:
                    raise DataError("the store cannot be reached")
                yield from items(part)

            self._reader.items = cut

    monkeypatch.setattr(scoring, "Filer", Cut)
    with pytest.raises(DataError, match="the store cannot be reached"):
        run(model)
    assert len(parts()) == 2
    monkeypatch.undo()
    monkeypatch.chdir(data[0].parent.parent)
    assert run(model).parts_before == 2


# --- other jobs -------------------------------------------------------------------------------------------------


def test_another_model_is_another_job(exported, model, data):
    run(model)
    before = files()
    other = next(exported.glob("*/openvino-fp32"))
    with pytest.raises(UsageError) as refused:
        run(other)
    assert "out holds rows of another job: model " in refused.value.message
    assert "; engine onnxruntime, not openvino" in refused.value.message
    assert files() == before
    report = run(other, overwrite=True)
    assert report.scored == 11
    assert len(parts()) == 3
    assert not set(parts()) & set(before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top": 2}, "--top 5, not 2"),
        ({"part": 3}, "--part 4, not 3"),
        ({"keep": "logits"}, "--keep top, not logits; --top 5, not 1"),
        ({"format": "csv"}, "format jsonl, not csv"),
    ],
)
def test_other_options_are_another_job(lifedeploy, model, data, changes, said):
    run(model)
    Path("out/mine.txt").write_text("mine")
    with pytest.raises(UsageError) as refused:
        run(model, **changes)
    assert refused.value.message.endswith(f"out holds rows of another job: {said}")
    assert run(model, overwrite=True, **changes).scored == 11
    assert Path("out/mine.txt").read_text() == "mine"
    assert len(parts()) == (4 if "part" in changes else 3)


def test_other_limits_are_another_job(lifedeploy, model, data):
    assert lifedeploy("score", model, "photos", "-o", "out").code == 0
    ended = lifedeploy("score", model, "photos", "-o", "out", "--max-pixels", "10000")
    assert ended.code == 2
    assert ended.lines[-2].endswith("out holds rows of another job: --max-pixels 178956970, not 10000")
    assert ended.lines[-1] == "hint: --overwrite replaces what is there; or name another place"


def test_more_images_are_another_job(model, data):
    run(model)
    photos(data[0].parent, 1, first=20)
    with pytest.raises(
        UsageError, match=r"out holds rows of another job: images photos \(\w{8}\), not photos \(\w{8}\)"
    ):
        run(model)


def test_another_folder_with_images_of_the_same_names_is_another_job(model, data):
    """``day1/00.png`` is not ``day2/00.png``: rows of the one must not pass for those of the other."""
    shutil.copytree("photos", "other")
    photo(99).save("other/00.png")
    run(model, "photos")
    with pytest.raises(UsageError, match=r"out holds rows of another job: images .*photos, not .*other"):
        run(model, "other")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_another_column_of_a_manifest_is_another_job(model, data, kind):
    columns = {"image": ["photos/00.png", "photos/01.png"], "mask": ["photos/02.png", "photos/03.png"]}
    if kind == "parquet":
        parquet.write_table(pa.table(columns), "m.parquet")
    else:
        Path("m.csv").write_text("image,mask\nphotos/00.png,photos/02.png\nphotos/01.png,photos/03.png\n")
    run(model, f"m.{kind}")
    with pytest.raises(UsageError, match=r"out holds rows of another job: --column image, not mask$"):
        run(model, f"m.{kind}", column="mask")
    run(model, f"m.{kind}", column="mask", overwrite=True)
    assert [row["image"] for row in read_rows(Path("out"))] == columns["mask"]


def test_another_root_of_a_manifest_is_another_job(model, data):
    shutil.copytree("photos", "other")
    Path("m.csv").write_text("image\n00.png\n01.png\n")
    run(model, "m.csv", root="photos")
    with pytest.raises(UsageError, match=r"out holds rows of another job: images /\S*/photos, not /\S*/other$"):
        run(model, "m.csv", root="other")


@pytest.mark.parametrize("named", ["photos", "./photos/", "{here}/photos", "{here}/photos/../photos", "link"])
def test_a_folder_by_another_name_is_the_same_job(model, data, tmp_path, named):
    Path("link").symlink_to("photos")
    run(model, "photos")
    assert run(model, named.format(here=tmp_path)).scored == 0


@pytest.mark.parametrize("named", ["photos/00.png photos/01.png", "photos/*.png", "x.tar", "m.csv"])
def test_the_same_files_are_the_same_job_wherever_the_command_is_given(model, data, tmp_path, monkeypatch, named):
    """They are named from the root of all, and so is where their rows go."""
    shard(tmp_path / "x.tar", {path.name: path.read_bytes() for path in data})
    Path("m.csv").write_text("image\nphotos/00.png\nphotos/01.png\n")
    images = [tmp_path / name for name in named.split()]
    run(model, *images, output=str(tmp_path / "out"))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(model, *images, output=str(tmp_path / "out")).scored == 0


def test_links_are_what_they_are_called(model, data, tmp_path):
    """As caches of data sets have them: what a link leads to lies elsewhere, and is called anything."""
    Path("blobs").mkdir()
    Path("blobs/4f2a").write_text("image\n00.png\n01.png\n")
    Path("photos/m.csv").symlink_to("../blobs/4f2a")
    report = run(model, "photos/m.csv")
    assert (report.images, report.bad) == (2, 0)
    assert [row["image"] for row in read_rows(Path("out"))] == ["00.png", "01.png"]


def test_rows_go_through_a_link(model, data, tmp_path):
    Path("blobs").mkdir()
    Path("rows.jsonl").symlink_to("blobs/77aa")
    assert run(model, output="rows.jsonl").images == 11
    assert Path("rows.jsonl").is_symlink() and Path("blobs/77aa").is_file()
    assert len(read_rows(Path("rows.jsonl"))) == 11
    assert run(model, output="rows.jsonl").scored == 0


def test_a_file_of_the_user_is_never_replaced_unasked(lifedeploy, model, data):
    Path("out.csv").write_text("mine")
    ended = lifedeploy("score", model, "photos", "-o", "out.csv")
    assert ended.code == 2
    assert ended.lines[-2].endswith("out.csv is there already, and is not of this job")
    assert Path("out.csv").read_text() == "mine"
    assert not Path("out.csv.parts").exists()
    assert lifedeploy("score", model, "photos", "-o", "out.csv", "--overwrite").code == 0
    assert Path("out.csv").read_text().startswith("image,class_1,")


def captured(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders that processes get from here on."""
    orders: list[Order] = []
    real = scoring.Filer
    monkeypatch.setattr(scoring, "Filer", lambda order: orders.append(order) or real(order))
    return orders


def test_a_process_refuses_another_model_than_the_job_was_begun_with(model, data, monkeypatch):
    orders = captured(monkeypatch)
    run(model)
    (order,) = orders
    with pytest.raises(ArtifactError, match="is another model than the job was begun with"):
        Filer(replace(order, job=replace(order.job, sha256="0" * 64)))


def test_a_part_that_somebody_has_done_meanwhile_is_only_read(model, data, monkeypatch, engine):
    orders = captured(monkeypatch)
    data[1].write_text("no image")
    whole = run(model)
    engine.asked.clear()
    part = scoring.Part(number=0, begin=7, end=39, images=4)
    with Filer(orders[0]) as filer:
        done = filer.there(part)
        assert (done.number, done.tally.images, done.tally.bad, done.engine_s) == (0, 4, 1, 0.0)
        assert engine.images == 0
        before = Path("out", parts()[0]).read_bytes()
        Path("out", parts()[0]).unlink()
        assert filer.there(part) is None
        (again,) = filer.filed([part], lambda count: None)
    assert again.tally == done.tally
    assert engine.images == 3
    assert Path("out", parts()[0]).read_bytes() == before
    assert whole.images == 11


# --- which model ------------------------------------------------------------------------------------------------


def test_random_weights_name_no_classes(workspace, data):
    path = next(workspace.glob("*/fake-fp32/model.json"))
    path.write_text(path.read_text().replace('"weights": "file"', '"weights": "random"'))
    with pytest.raises(WeightsError, match="has random weights: any class it named would be made up") as refused:
        run(path.parent)
    assert refused.value.hint == "export with --weights pretrained or --weights FILE"
    assert not Path("out").exists()
    assert run(path.parent, keep="logits").images == 11


def test_a_model_gives_what_it_has(model, headless, data):
    with pytest.raises(UsageError, match="has a classification head, behind which there are no embeddings") as refused:
        run(model, keep="embeddings")
    assert "lifedeploy export --num-classes 0" in refused.value.hint
    for keep in ("top", "logits"):
        with pytest.raises(UsageError, match="has no classification head: test_vit gives embeddings") as refused:
            run(headless, keep=keep)
        assert refused.value.hint == "--keep embeddings"
    assert not Path("out").exists()


def test_a_model_without_a_head_is_made_of_the_same_weights_as_it_is_advised(weights_file, monkeypatch, tracing_once):
    monkeypatch.setattr(exporter, "trace", tracing_once)
    request = ModelRequest(backbone=TINY, keep_rate=0.7, weights=str(weights_file), image_size=TINY_SIZE, num_classes=0)
    export(ExportRequest(request, output=Path("headless")), Workspace(Path("artifacts")))
    assert Artifact.read(Path("headless/model.json")).manifest.spec.num_classes == 0


# --- the command ------------------------------------------------------------------------------------------------


def test_a_report_says_what_was_done(lifedeploy, model, data):
    (data[0].parent / "notes.txt").touch()
    ended = lifedeploy("score", model, "photos", "-o", "out", "--part", "4", "--threads", "1", "--json", "r.json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("r.json").read_text())
    assert report["schema"] == 1
    assert report["command"].startswith("lifedeploy score ")
    assert {"cpu", "versions", "threads"} <= set(report["machine"])
    expected = {"on": "here", "engine": "onnxruntime", "precision": "fp32", "keep": "top", "source": "photos"}
    expected |= {"output": "out", "images": 11, "bad": 0, "examples": [], "parts": 3, "parts_before": 0, "scored": 11}
    assert {name: report[name] for name in expected} == expected
    assert report["images_per_s"] > 0 and report["engine_images_per_s"] > report["images_per_s"] / 2
    assert report["warnings"] == ["1 file of photos is not used: no image by name (.txt): notes.txt"]
    for said in ("11 of photos", "out (top; 3 parts)", "img/s", "in the engine alone", "No benchmark"):
        assert said in ended.out
    assert "no image by name (.txt): notes.txt" in ended.err
    again = lifedeploy("score", model, "photos", "-o", "out", "--part", "4")
    assert "nothing was left to do" in again.out
    assert "3 parts, 3 of them before" in again.out


def test_tables_fit_eighty_columns(lifedeploy, model, data, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    data[3].write_text("no image")
    ended = lifedeploy("score", model, "photos", "-o", "out")
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "11 of photos, 1 without an answer" in ended.out


def test_how_far_it_is_is_told(model, data):
    steps: list[Step] = []
    said: list[str] = []
    request = ScoreRequest(model=model, images=("photos",), output="out.jsonl", part=4, batch=3, threads=1)
    score(request, Workspace(Path("artifacts")), said.append, steps.append)
    assert said == [
        "looking at the model",
        "listing photos",
        f"opening {Artifact.read(model / 'model.json').name}",
        "finishing",
    ]
    shares = [step.share for step in steps]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert steps[-1].detail.startswith("11 of 11 images, ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["photos"], 2, "Missing option '--out'"),
        (["-o", "out"], 2, "Missing argument 'IMAGES"),
        (["nowhere", "-o", "out"], 1, "nowhere does not exist"),
        (["nowhere/*.png", "-o", "out"], 1, "nowhere/*.png holds no images and no shards"),
        (["empty", "-o", "out"], 1, "empty holds no images and no shards"),
        (["notes.txt", "-o", "out"], 1, "notes.txt is neither an image nor a shard by its ending"),
        (["m.csv", "-o", "out"], 1, "m.csv has no column that is called as one of images is"),
        (["m.csv", "-o", "out", "--column", "c"], 1, "m.csv has no column 'c'; it has: a, b"),
        (["memory://x", "-o", "out"], 2, "'memory://x' is no address that is read here; there are: s3, "),
        (["zip::s3://b/x.zip", "-o", "out"], 2, "'zip::s3://b/x.zip' is no address that is read here"),
        (["photos", "-o", "memory://x"], 2, "'memory://x' is no address that is read here"),
        (["photos", "-o", "http://127.0.0.1:9/x"], 2, "http://127.0.0.1:9/x cannot be written: http takes no files"),
        (["photos", "-o", "out.csv", "--format", "jsonl"], 2, "out.csv ends as csv does, and --format says 'jsonl'"),
        (["photos", "-o", "out.json"], 2, "out.json is no file of rows by its ending"),
        (["photos", "-o", "notes.txt/out"], 2, "cannot be written: "),
        (["photos", "-o", "photos/00.png"], 2, "photos/00.png"),
        (["photos", "-o", "out", "--keep", "all"], 2, "--keep 'all' is unknown; there are: top, logits, embeddings"),
        (["photos", "-o", "out", "--format", "xml"], 2, "--format 'xml' is unknown; there are: parquet, jsonl, csv"),
        (["photos", "-o", "out", "--on", "moon"], 2, "--on 'moon' is unknown; there are: here, ray"),
        (["photos", "-o", "out", "--top", "0"], 2, "'--top': 0 is not allowed"),
        (["photos", "-o", "out", "--top", "101"], 2, "'--top': 101 is not allowed"),
        (["photos", "-o", "out", "--part", "0"], 2, "0 images are not allowed: at least 1 is needed"),
        (["photos", "-o", "out", "--batch", "0"], 2, "0 images per batch are not allowed"),
        (["photos", "-o", "out", "--max-bad", "1.5"], 2, "'--max-bad': 1.5 is not allowed; it must be in [0, 1]"),
        (["photos", "-o", "out", "--max-bad", "nan"], 2, "'--max-bad': nan is not allowed"),
        (["photos", "-o", "out", "--workers", "0"], 2, "'--workers': 0 is not allowed"),
        (["photos", "-o", ""], 2, "'--out': '' is no path"),
        (["photos", "-o", "out", "--json", "no/such/r.json"], 2, "no/such/r.json cannot be written"),
        (["photos", "-o", "out.csv", "--json", "out.csv"], 2, "are one file, out.csv: each needs its own"),
        (["photos", "-o", "out.csv", "--json", "out.csv.json"], 2, "out.csv.json"),
        (["m.csv", "-o", "m.csv"], 2, "m.csv is read too, and would be replaced"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(lifedeploy, model, data, arguments, code, said):
    Path("empty").mkdir()
    Path("notes.txt").touch()
    Path("m.csv").write_text("a,b\n1,2\n")
    before = files()
    ended = lifedeploy("score", model, *arguments)
    assert ended.code == code, ended.err
    assert ended.lines[0].startswith("error: ")
    assert said in ended.lines[0]
    assert len(ended.lines) <= 2
    assert ended.out == ""
    assert files() == before
    assert not Path("out").exists() and not Path("out.csv.parts").exists()


def test_a_model_that_is_not_there(lifedeploy, data):
    ended = lifedeploy("score", "nowhere", "photos", "-o", "out")
    assert (ended.code, ended.out) == (1, "")
    assert "nowhere does not exist" in ended.lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on": "moon"}, "--on 'moon' is unknown; there are: here, ray"),
        ({"keep": "all"}, "--keep 'all' is unknown; there are: top, logits, embeddings"),
        ({"format": "xml"}, "--format 'xml' is unknown; there are: parquet, jsonl, csv"),
        ({"top": 0}, "0 classes of an image are not allowed: at least 1 is needed, and at most 100"),
        ({"part": 0}, "0 images in a part are not allowed"),
        ({"batch": 65_537}, "65537 images per batch are not allowed"),
        ({"threads": 0}, "0 threads are not allowed"),
        ({"workers": 2.5}, "2.5 decoding threads are not allowed; expected a whole number"),
        ({"max_bad": -0.1}, r"--max-bad -0.1 is no share: it must be in \[0, 1\]"),
        ({"max_bad": float("nan")}, "--max-bad nan is no share"),
        ({"images": ()}, "no images are named"),
    ],
)
def test_requests_that_cannot_be_meant(changes, message):
    with pytest.raises(UsageError, match=message):
        ScoreRequest(**{"model": Path("m"), "images": ("photos",), "output": "out"} | changes)


def test_images_in_the_folder_that_rows_go_to(lifedeploy, model, data):
    """Rows are no images: the same command finds the same images again."""
    assert lifedeploy("score", model, "photos", "-o", "photos").code == 0
    assert lifedeploy("score", model, "photos", "-o", "photos/rows").code == 0
    again = lifedeploy("score", model, "photos", "-o", "photos")
    assert again.code == 0, again.err
    assert "nothing was left to do" in again.out


def test_one_image(lifedeploy, model, data):
    ended = lifedeploy("score", model, "photos/03.png", "-o", "one.jsonl", "--keep", "logits")
    assert ended.code == 0, ended.err
    (row,) = read_rows(Path("one.jsonl"))
    assert row["image"] == "photos/03.png"
    np.testing.assert_allclose([row["logits"]], asked(model, [data[3]]), **CLOSE)
    assert "1 part)" in ended.out


def test_what_is_read_may_have_any_name(lifedeploy, model, tmp_path):
    """Control characters stay in the file, and out of the terminal."""
    photos(tmp_path / "photos", 1)[0].rename(tmp_path / "photos" / 'a\n\x1b[31m,".png')
    (tmp_path / "photos" / "b\x1b[32m.png").write_bytes(encoded(1)[:50])
    ended = lifedeploy("score", model, "photos", "-o", "out.jsonl")
    assert ended.code == 0, ended.err
    assert [row["image"] for row in read_rows(Path("out.jsonl"))] == ['a\n\x1b[31m,".png', "b\x1b[32m.png"]
    assert "\x1b[3" not in ended.err + ended.out
    assert r"b\x1b[32m.png" in ended.err


def test_a_name_that_is_no_text_is_told_in_one_line(lifedeploy, model, data):
    os.rename(b"photos/00.png", b"photos/caf\xe9.png")  # noqa: PTH104
    ended = lifedeploy("score", model, os.fsdecode(b"photos/caf\xe9.png"), "photos/01.png", "-o", "out")
    assert ended.code in (1, 2)
    assert r"caf\xe9.png" in ended.lines[0] and "unexpected" not in ended.lines[0]
    assert len(ended.lines) <= 2
