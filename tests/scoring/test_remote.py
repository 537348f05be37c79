"""Images and rows in a store, and on a web server: stand-ins for both on this machine."""

from __future__ import annotations

import csv
import http.server
import io
import json
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lifedeploy.artifact import Workspace
from lifedeploy.errors import DataError, EngineError, NotInstalledError, UsageError
from lifedeploy.scoring.images import Reader
from lifedeploy.scoring.places import Entry, Place, place_of
from lifedeploy.scoring.scorer import Scorer
from lifedeploy.scoring.sources import find, listed
from lifedeploy.workflows.score import ScoreReport, ScoreRequest, score
from tests.pictures import encoded, shard
from tests.scoring.photos import asked, photos

# What libraries below the client and the stand-in warn of is theirs to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:aiobotocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A stand-in for Amazon S3, where clients of this process look for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import s3fs
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
        server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        yield address
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


class Bucket:
    """One bucket, as somebody else sees it."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        self.client.create_bucket(Bucket=name)

    def put(self, name: str, content: bytes | Path) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        self.client.put_object(Bucket=self.name, Key=name, Body=data)

    def get(self, name: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=name)["Body"].read()

    def names(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def stamps(self, prefix: str = "") -> dict[str, Any]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return {entry["Key"]: (entry["LastModified"], entry["ETag"]) for page in pages for entry in page["Contents"]}

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)

    def address(self, name: str) -> str:
        return f"s3://{self.name}/{name}"


@pytest.fixture(scope="module")
def client(endpoint: str) -> Any:
    """Amazon's own."""
    import boto3

    return boto3.client("s3")


@pytest.fixture
def bucket(client: Any, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty one."""
    monkeypatch.chdir(tmp_path)
    return Bucket(client, f"b{abs(hash(request.node.nodeid)) % 10**12}")


def scanned(folder: Path, *named: str, images: int = 2, **options: str) -> tuple[list[list[str]], list[int | str], Any]:
    """Names in parts, what each image shows, and what was said of the input."""
    folder.mkdir(exist_ok=True)
    there = listed(find(named, **options), images, folder, place_of(str(folder / "out")))
    if there.listing is not None:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / "_input.csv").write_bytes(there.listing.read_bytes())
    reader = Reader(there.source)
    parts = [list(reader.items(part)) for part in there.parts]
    shown: list[int | str] = []
    for item in (item for part in parts for item in part):
        try:
            shown.append(int(item.read().getpixel((0, 0))[0]))
        except Exception as error:
            shown.append(f"{type(error).__name__}: {error}")
    return [[item.name for item in part] for part in parts], shown, there


def run(model: Path, *images: str, output: str, **options: Any) -> ScoreReport:
    settings = {"part": 4, "batch": 3, "threads": 1, "workers": 2, "keep": "logits"} | options
    return score(ScoreRequest(model=model, images=images, output=output, **settings), Workspace(Path("artifacts")))


# --- a store as a place -----------------------------------------------------------------------------------------


def test_a_store_is_a_place_like_others(bucket):
    bucket.put("a/1.bin", b"0123456789")
    bucket.put("a/deep/2.bin", b"x")
    bucket.put("empty", b"")
    root = place_of(bucket.address(""))
    assert str(root) == f"s3://{bucket.name}"
    file = root.child("a/1.bin")
    assert (file.name, str(file), str(file.folder)) == ("1.bin", bucket.address("a/1.bin"), bucket.address("a"))
    assert str(file.beside("2.bin")) == bucket.address("a/2.bin")
    assert [place.kind() for place in (root, root.child("a"), file, root.child("no"))] == [
        *("folder", "folder", "file", "nothing")
    ]
    assert root.child("a").entries() == [Entry("1.bin", "file", 10), Entry("deep", "folder", 0)]
    assert [entry.name for entry in root.entries()] == ["a", "empty"]
    assert root.child("no").entries() == []
    assert file.size() == 10
    assert [file.read(), file.read(3), file.read(3, 5), file.read(0, 4), file.read(8, 99), file.read(10, 12)] == [
        *(b"0123456789", b"3456789", b"34", b"0123", b"89", b"")
    ]
    assert (root.child("empty").read(0, 100), root.child("empty").read()) == (b"", b"")
    with file.open() as opened:
        opened.seek(4)
        assert opened.read(2) == b"45"
    with file.here() as path:
        assert path.read_bytes() == b"0123456789"
    assert not path.exists()
    before = file.fingerprint()
    assert file.fingerprint() == before
    bucket.put("a/1.bin", b"9876543210")
    assert place_of(str(file)).kind() == "file" and file.fingerprint() != before


@pytest.mark.parametrize("done", ["read", "size", "open", "here", "fingerprint"])
def test_what_is_not_there_is_said_to_be_missing(bucket, done):
    place = place_of(bucket.address("nowhere"))
    with pytest.raises(FileNotFoundError):
        if done == "here":
            with place.here():
                pass
        else:
            getattr(place, done)()


def test_an_object_appears_when_it_is_whole(bucket):
    place = place_of(bucket.address("new/x.bin"))
    with place.writing() as path:
        path.write_bytes(b"content")
        assert bucket.names() == []
    assert bucket.get("new/x.bin") == b"content"
    with pytest.raises(EngineError), place.writing() as path:
        path.write_bytes(b"half")
        raise EngineError("it failed")
    assert bucket.get("new/x.bin") == b"content"
    assert not path.exists()
    with place_of(bucket.address("new/empty")).writing():
        pass
    assert bucket.get("new/empty") == b""
    place.remove()
    place.remove()
    assert bucket.names() == ["new/empty"]
    place.folder.remove_empty()
    assert bucket.names() == ["new/empty"]


def test_what_others_write_is_seen(bucket):
    root = place_of(bucket.address("x"))
    assert (root.kind(), root.entries()) == ("nothing", [])
    bucket.put("x/1", b"")
    assert (root.kind(), [entry.name for entry in root.entries()]) == ("folder", ["1"])
    bucket.put("x/2", b"")
    assert (root.child("2").kind(), [entry.name for entry in root.entries()]) == ("file", ["1", "2"])
    bucket.remove("x/1")
    assert [entry.name for entry in root.entries()] == ["2"]


def test_a_bucket_that_is_not_there_is_told_when_something_is_written(endpoint):
    place: Place = place_of("s3://no-such-bucket/x")
    assert place.kind() == "nothing"
    with pytest.raises(DataError, match=r"^s3://no-such-bucket/x cannot be written: "), place.writing() as path:
        path.write_bytes(b"x")


# --- a store as input -------------------------------------------------------------------------------------------


def store_images(bucket: Bucket, names: Sequence[str], first: int = 1) -> None:
    for number, name in enumerate(names, first):
        bucket.put(name, encoded(number))


def test_a_folder_of_a_store(bucket, tmp_path):
    store_images(bucket, ["p/b.png", "p/a/2.png", "p/a/10.png", "q/x.png"])
    bucket.put("p/", b"")  # as browsers leave them
    bucket.put("p/notes.txt", b"")
    bucket.put("p/.hidden.png", b"")
    names, shown, there = scanned(tmp_path / "s", bucket.address("p/"))
    assert names == [["a/10.png", "a/2.png"], ["b.png"]]
    assert shown == [3, 2, 1]
    assert {left.reason: left.count for left in there.left_out} == {"no image by name (.txt)": 1, "hidden": 1}


def test_a_whole_bucket(bucket, tmp_path):
    store_images(bucket, ["2.png", "a/1.png"])
    assert scanned(tmp_path / "s", f"s3://{bucket.name}")[:2] == ([["2.png", "a/1.png"]], [1, 2])


def test_more_names_than_a_store_lists_at_once(bucket, tmp_path):
    from moto.backends import get_backend

    store = get_backend("s3")["123456789012"]["aws"]  # itself: a thousand requests take seconds
    for number in range(1005):
        store.put_object(bucket.name, f"many/{number:04d}.png", b"")
    names, shown, _ = scanned(tmp_path / "s", bucket.address("many/100[0-9].png"), images=100)
    assert names == [[f"{number:04d}.png" for number in range(1000, 1005)]]
    assert len(set(shown)) == 5 and all("is not an image" in str(one) for one in shown)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("p/*.png", ["b.png"]),
        ("p/*/*.png", ["a/1.png", "c/3.png"]),
        ("p/**/[13].png", ["a/1.png", "c/3.png", "c/d/1.png"]),
        ("*/c/?.png", ["p/c/3.png"]),
    ],
)
def test_a_pattern_of_a_store(bucket, tmp_path, pattern, expected):
    store_images(bucket, ["p/b.png", "p/a/1.png", "p/c/3.png", "p/c/d/1.png", "p/c/3.txt"])
    names, _, there = scanned(tmp_path / "s", bucket.address(pattern), images=10)
    assert names == [expected]
    assert there.left_out == ()


def test_images_named_one_by_one(bucket, tmp_path):
    store_images(bucket, ["1.png", "2.png"])
    names = [bucket.address(name) for name in ("2.png", "none.png", "1.png")]
    assert scanned(tmp_path / "s", *names, images=9)[:2] == (
        [names],
        [2, f"ImageError: image {names[1]} does not exist", 1],
    )
    assert scanned(tmp_path / "s", names[0])[1] == [2]


def manifest(kind: str, names: Sequence[str | None]) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        parquet.write_table(pa.table({"path": pa.array(names, pa.string())}), buffer, row_group_size=2)
        return buffer.getvalue()
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["path"], *([name or ""] for name in names)])
    return text.getvalue().encode()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("images", [1, 3])
def test_a_manifest_in_a_store(bucket, tmp_path, kind, images):
    store_images(bucket, ["d/1.png", "d/x/2.png", "other/3.png"])
    bucket.put("d/empty.png", b"")
    bucket.put("d/text.png", b"no image")
    (tmp_path / "4.png").write_bytes(encoded(4))
    rows = ["1.png", "x/2.png", bucket.address("other/3.png"), str(tmp_path / "4.png"), "none.png", "empty.png"]
    rows += ["text.png", None]
    bucket.put(f"d/m.{kind}", manifest(kind, rows))
    names, shown, there = scanned(tmp_path / "s", bucket.address(f"d/m.{kind}"), images=images)
    expected = [row or "" for row in rows]
    assert names == [expected[start : start + images] for start in range(0, 8, images)]
    assert shown[:5] == [1, 2, 3, 4, "ImageError: image none.png does not exist"]
    assert str(shown[5]).startswith("ImageError: empty.png is not an image that can be read: ")
    assert str(shown[6]).startswith("ImageError: text.png is not an image that can be read: ")
    assert shown[7] == "ImageError: the manifest names no image here"
    assert there.images == 8
    again = scanned(tmp_path / "s", bucket.address(f"d/m.{kind}"), images=images)[2]
    assert again.digest == there.digest
    bucket.put(f"d/m.{kind}", manifest(kind, [*rows[:-1], "1.png"]))
    assert scanned(tmp_path / "s", bucket.address(f"d/m.{kind}"), images=images)[2].digest != there.digest


def test_a_manifest_and_its_images_may_be_in_different_places(bucket, tmp_path):
    store_images(bucket, ["d/1.png"])
    (tmp_path / "m.csv").write_text(f"image\n1.png\n{bucket.address('d/1.png')}\n")
    assert scanned(tmp_path / "s", "m.csv", root=bucket.address("d"))[1] == [1, 1]
    bucket.put("lists/m.csv", b"image\n1.png\n")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "1.png").write_bytes(encoded(9))
    assert scanned(tmp_path / "s", bucket.address("lists/m.csv"), root="local")[1] == [9]


def test_a_manifest_is_read_in_parts_and_never_as_a_whole(bucket, tmp_path, monkeypatch):
    rows = [f"{number:06d}.png" for number in range(20_000)]
    bucket.put("m.csv", manifest("csv", rows))
    there = listed(find([bucket.address("m.csv")]), 100, tmp_path, place_of(str(tmp_path / "out")))
    asked_for: list[tuple[int, int | None]] = []
    real = type(place_of(bucket.address("")))
    read = real.read

    def counted(place: Place, begin: int = 0, end: int | None = None) -> bytes:
        asked_for.append((begin, end))
        return read(place, begin, end)

    monkeypatch.setattr(real, "read", counted)
    reader = Reader(there.source)
    part = there.parts[150]
    assert [item.name for item in reader.items(part)] == rows[15_000:15_100]
    assert asked_for == [(part.begin, part.end)]
    assert part.end - part.begin == 100 * 12


def test_shards_in_a_store(bucket, tmp_path):
    for number in range(2):
        path = tmp_path / f"{number}.tar"
        shard(path, {f"{number}a.png": encoded(10 * number + 1), f"{number}b.png": encoded(10 * number + 2)})
        bucket.put(f"w/{number}.tar", path)
    bucket.put("w/2.tar", (tmp_path / "1.tar").read_bytes()[:1550])
    bucket.put("w/3.tar", b"")
    expected = [
        ["0.tar/0a.png", "0.tar/0b.png"],
        ["1.tar/1a.png", "1.tar/1b.png"],
        ["2.tar/1a.png", "2.tar"],
        ["3.tar"],
    ]
    names, shown, there = scanned(tmp_path / "s", bucket.address("w"))
    assert names == expected
    assert shown[:5] == [1, 2, 11, 12, 11]
    assert str(shown[5]).startswith("ImageError: 2.tar cannot be read on: it is damaged")
    assert shown[6] == "ImageError: 3.tar cannot be read on: it is empty"
    assert [part.size for part in there.parts] == [len(bucket.get(f"w/{number}.tar")) for number in range(4)]
    assert scanned(tmp_path / "s", bucket.address("w/[01].tar"))[1] == [1, 2, 11, 12]
    two = [bucket.address("w/1.tar"), bucket.address("w/0.tar")]
    assert scanned(tmp_path / "s", *two)[0] == [
        [f"{two[0]}/1a.png", f"{two[0]}/1b.png"],
        [f"{two[1]}/0a.png", f"{two[1]}/0b.png"],
    ]
    bucket.remove("w/1.tar")
    with pytest.raises(DataError, match=rf"{two[0]} does not exist any more"):
        list(Reader(there.source).items(there.parts[1]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "{here} does not exist"),
        ("nowhere/m.csv", "{here} does not exist"),
        ("nowhere.png", "{here} does not exist"),
        ("texts", "{here} holds no images and no shards; 1 file of {here} is not used: no image by name (.txt): 1.txt"),
        ("texts/*.jpg", "{here} holds no images and no shards"),
        ("texts/1.txt", "{here} is neither an image nor a shard by its ending"),
    ],
)
def test_what_is_no_input_in_a_store(bucket, tmp_path, name, message):
    bucket.put("texts/1.txt", b"")
    with pytest.raises(DataError) as refused:
        scanned(tmp_path / "s", bucket.address(name))
    assert refused.value.message == message.format(here=bucket.address(name))


def test_a_bucket_that_is_not_there(endpoint, tmp_path):
    for named in ("s3://no-such-bucket/x", "s3://no-such-bucket", "s3://no-such-bucket/*.png"):
        with pytest.raises(DataError, match=r"s3://no-such-bucket\S* (does not exist|holds no images|cannot be read)"):
            scanned(tmp_path / "s", named)


# --- a store as output ------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, bucket: Bucket) -> list[Path]:
    """Eleven images, here and in the store."""
    paths = photos(tmp_path / "photos", 11)
    for path in paths:
        bucket.put(f"photos/{path.name}", path)
    return paths


def rows_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines()]


@pytest.mark.parametrize("output", ["out", "out.jsonl"])
def test_from_a_store_into_it(model, bucket, data, output):
    report = run(model, bucket.address("photos"), output=bucket.address(f"x/{output}"), format="jsonl")
    names = bucket.names("x/")
    if output == "out":
        key = next(name for name in names if "part-" in name).split("-")[2].removesuffix(".jsonl")
        parts = [f"x/out/part-0000{number}-{key}.jsonl" for number in range(3)]
        assert names == ["x/out/_input.csv", "x/out/_score.json", *parts]
        rows = [row for name in parts for row in rows_of(bucket.get(name))]
    else:
        assert names == ["x/out.jsonl", "x/out.jsonl.json"]
        rows = rows_of(bucket.get("x/out.jsonl"))
    assert [row["image"] for row in rows] == [path.name for path in data]
    np.testing.assert_allclose([row["logits"] for row in rows], asked(model, data), **CLOSE)
    assert (report.images, report.scored, report.parts) == (11, 11, 3)
    before = bucket.stamps("x/")
    assert run(model, bucket.address("photos"), output=bucket.address(f"x/{output}"), format="jsonl").scored == 0
    assert bucket.stamps("x/") == before


def test_a_table_in_a_store(model, bucket, data):
    run(model, "photos", output=bucket.address("out.parquet"))
    table = parquet.read_table(io.BytesIO(bucket.get("out.parquet")))
    assert table.column("image").to_pylist() == [path.name for path in data]
    np.testing.assert_allclose(np.array(table.column("logits").to_pylist()), asked(model, data), **CLOSE)
    assert [name for name in bucket.names() if not name.startswith("photos/")] == ["out.parquet", "out.parquet.json"]


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_a_job_in_a_store_goes_on_where_it_was(model, bucket, data, output, monkeypatch):
    address = bucket.address(f"x/{output}")
    folder = "x/out/" if output == "out" else "x/out.parquet.parts/"
    real = Scorer._infer
    asked_of: list[int] = []

    def infer(scorer: Scorer, pixels: list[Any]) -> Any:
        if sum(asked_of) >= 4:
            raise EngineError("the engine failed")
        asked_of.append(len(pixels))
        return real(scorer, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "_infer", infer)
        with pytest.raises(EngineError, match="the engine failed"):
            run(model, bucket.address("photos"), output=address)
    done = {name: stamp for name, stamp in bucket.stamps(folder).items() if "part-" in name}
    assert [name.split("-")[1] for name in done] == ["00000"]
    monkeypatch.setattr(Scorer, "_infer", lambda scorer, pixels: asked_of.append(len(pixels)) or real(scorer, pixels))
    report = run(model, bucket.address("photos"), output=address)
    assert (sum(asked_of), report.scored, report.parts_before) == (11, 7, 1)
    if output == "out":
        assert {name: bucket.stamps(folder)[name] for name in done} == done
    else:
        assert bucket.names("x/") == ["x/out.parquet", "x/out.parquet.json"]
    run(model, bucket.address("photos"), output=bucket.address(f"y/{output}"))
    files = [[bucket.get(name) for name in bucket.names(f"{root}/") if name.endswith(".parquet")] for root in "xy"]
    assert files[0] == files[1]


def test_another_job_in_a_store_is_refused_and_may_be_replaced(model, bucket, data):
    output = bucket.address("out")
    run(model, bucket.address("photos"), output=output)
    bucket.put("out/mine.txt", b"mine")
    before = bucket.stamps("out/")
    with pytest.raises(UsageError, match="out holds rows of another job: --part 4, not 5"):
        run(model, bucket.address("photos"), output=output, part=5)
    assert bucket.stamps("out/") == before
    report = run(model, bucket.address("photos"), output=output, part=5, overwrite=True)
    assert report.scored == 11
    assert bucket.get("out/mine.txt") == b"mine"
    assert len(bucket.names("out/part-")) == 3
    assert not set(bucket.names("out/part-")) & set(before)


def test_an_object_of_the_user_is_never_replaced_unasked(model, bucket, data):
    bucket.put("out.csv", b"mine")
    with pytest.raises(UsageError, match=r"out\.csv is there already, and is not of this job"):
        run(model, "photos", output=bucket.address("out.csv"))
    assert bucket.get("out.csv") == b"mine"
    with pytest.raises(UsageError, match=r"photos/00\.png is a file; rows go to a folder, or to one file that ends in"):
        run(model, "photos", output=bucket.address("photos/00.png"))


def test_the_command_from_store_to_store(lifedeploy, model, bucket, data):
    bucket.put("photos/05.png", b"no image")
    ended = lifedeploy(
        *("score", model, bucket.address("photos/*.png"), "-o", bucket.address("rows"), "--part", "4", "--json", "-")
    )
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert (report["images"], report["bad"], report["output"]) == (11, 1, bucket.address("rows"))
    assert report["source"] == bucket.address("photos/*.png")
    assert "05.png is not an image that can be read" in ended.err


def test_a_bucket_for_rows_that_is_not_there_is_told_in_one_line(lifedeploy, model, bucket, data):
    ended = lifedeploy("score", model, "photos", "-o", "s3://no-such-bucket/rows")
    assert (ended.code, ended.out) == (1, "")
    assert "s3://no-such-bucket/rows" in ended.lines[-1] and "cannot be written: " in ended.lines[-1]
    assert len(ended.lines) == 1


# --- what cannot be reached -------------------------------------------------------------------------------------


@pytest.fixture
def nobody(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody answers where the store is looked for."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("images", "output"),
    [
        ("s3://b/photos", "out"),
        ("s3://b/*.png", "out"),
        ("s3://b/m.parquet", "out"),
        ("photos", "s3://b/out"),
        ("photos", "s3://b/out.csv"),
    ],
)
def test_a_store_that_nobody_answers_for_is_told_in_one_line(
    lifedeploy, model, nobody, tmp_path, monkeypatch, images, output
):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 2)
    began = time.monotonic()
    ended = lifedeploy("score", model, images, "-o", output)
    assert time.monotonic() - began < 10
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.lines
    assert line.startswith("error: s3://b/") and "cannot be read: " in line
    assert "127.0.0.1" in line
    assert not (tmp_path / "out").exists()


def test_images_in_a_store_that_nobody_answers_for_are_no_bad_images(model, nobody, tmp_path, monkeypatch):
    """Later it may be reached, and the same command goes on."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 4)
    names = [*(f"photos/0{number}.png" for number in range(4)), "s3://b/1.png"]
    (tmp_path / "m.csv").write_text("\n".join(["image", *names]))
    with pytest.raises(DataError, match=r"^s3://b/1\.png cannot be read: "):
        run(model, "m.csv", output="out", format="jsonl")
    (done,) = (tmp_path / "out").glob("part-*")
    assert len(done.read_text().splitlines()) == 4


def test_a_store_whose_client_is_not_installed(monkeypatch):
    import fsspec

    def missing(*given: object, **options: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(NotInstalledError, match=r"^s3:// cannot be opened: Install s3fs to access S3$"):
        place_of("s3://b/x")


def test_addresses_need_fsspec(monkeypatch):
    monkeypatch.setattr("lifedeploy.optional.installed", lambda module: module != "fsspec")
    with pytest.raises(NotInstalledError, match="fsspec is not installed") as refused:
        place_of("s3://b/x")
    assert refused.value.hint == "pip install 'lifedeploy[score]'"


# --- web servers ------------------------------------------------------------------------------------------------


class Web(http.server.SimpleHTTPRequestHandler):
    """A web server, which gives what was asked for of a file, or always all of it."""

    ranges = True

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not self.ranges or wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        begin, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1) + 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])

    def end_headers(self) -> None:
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Connection", "close")
        self.close_connection = True
        super().end_headers()

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server of a folder, ``web``."""
    (tmp_path / "web").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=str(tmp_path / "web"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield "http://{}:{}".format(*server.server_address[:2])
        server.shutdown()
        thread.join()


def test_images_of_web_servers_are_bad_where_theirs_is_not_reached(model, web, tmp_path, monkeypatch):
    """Each host is one of its own: that one is gone is no reason to end a job."""
    monkeypatch.chdir(tmp_path)
    good = photos(tmp_path / "web", 2)
    (tmp_path / "web" / "text.png").write_text("no image")
    gone = f"http://127.0.0.1:{free_port()}/x.png"
    names = [f"{web}/00.png", f"{web}/none.png", gone, f"{web}/text.png", f"{web}/01.png"]
    (tmp_path / "m.csv").write_text("\n".join(["url", *names]) + "\n")
    report = run(model, "m.csv", output="out.jsonl")
    rows = rows_of((tmp_path / "out.jsonl").read_bytes())
    assert [row["image"] for row in rows] == names
    np.testing.assert_allclose([rows[0]["logits"], rows[4]["logits"]], asked(model, good), **CLOSE)
    assert rows[1]["error"] == f"image {names[1]} does not exist"
    assert rows[2]["error"].startswith(f"{gone} cannot be read: ")
    assert rows[3]["error"].startswith(f"{names[3]} is not an image that can be read: ")
    assert (report.images, report.bad) == (5, 3)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_manifest_of_a_web_server(model, web, tmp_path, monkeypatch, ranges):
    """Some give all of a file whatever was asked for, as Python's own does."""
    monkeypatch.setattr(Web, "ranges", ranges)
    monkeypatch.chdir(tmp_path)
    good = photos(tmp_path / "web" / "x", 3)
    (tmp_path / "web" / "x" / "m.csv").write_text("image\n" + "".join(f"{path.name}\n" for path in good))
    run(model, f"{web}/x/m.csv", output="out.jsonl", part=2)
    rows = rows_of((tmp_path / "out.jsonl").read_bytes())
    assert [row["image"] for row in rows] == [path.name for path in good]
    np.testing.assert_allclose([row["logits"] for row in rows], asked(model, good), **CLOSE)


def test_nothing_is_written_to_a_web_server(model, web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 1)
    with pytest.raises(UsageError, match=rf"^{web}/out cannot be written: http takes no files$"):
        run(model, "photos", output=f"{web}/out")
