"""What the input is, from how it was named: the same images in the same order, whichever process reads them."""

from __future__ import annotations

import csv
import gc
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from lifedeploy.data.preprocess import read_image
from lifedeploy.errors import DataError, ImageError, LifedeployError, UsageError
from lifedeploy.scoring.images import Reader
from lifedeploy.scoring.parts import Item, Part
from lifedeploy.scoring.places import LocalPlace, is_address, place_of
from lifedeploy.scoring.sources import LISTING, Listed, find, listed
from tests.data.test_walk import files, lay_out
from tests.pictures import LINK, encoded, picture, shard


class Scanned:
    """An input in parts, and what a process finds that knows nothing of it but what it is told."""

    def __init__(self, *named: object, images: int = 2, **options: str) -> None:
        self.found = find(list(map(str, named)), **options)
        with pytest.MonkeyPatch.context() as patch:
            output, scratch = Path("out").absolute(), Path("scratch").absolute()
            for folder in (output, scratch):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            self.listed: Listed = listed(self.found, images, scratch, LocalPlace(output))
            if self.listed.listing is not None:
                shutil.copyfile(self.listed.listing, output / LISTING)
            shutil.rmtree(scratch)
            patch.chdir("/")  # as workers elsewhere are
            reader = Reader(self.listed.source)
            self.parts: list[list[Item]] = [list(reader.items(part)) for part in self.listed.parts]

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts for item in part]

    @property
    def names(self) -> list[list[str]]:
        return [[item.name for item in part] for part in self.parts]

    @property
    def shown(self) -> list[int | str]:
        """The number that each image shows, or why it shows none."""
        return [shows(item) for item in self.items]

    @property
    def left(self) -> dict[str, int]:
        return {left.reason: left.count for left in self.listed.left_out}


def shows(item: Item) -> int | str:
    try:
        return int(item.read().getpixel((0, 0))[0])
    except ImageError as error:
        return error.message


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images(root: Path | str, names: Sequence[str], first: int = 1) -> Path:
    """Images by name; each shows its number."""
    for number, name in enumerate(names, first):
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, "PNG")
    return Path(root)


def table(path: str, names: Sequence[str | None], column: str = "image") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".parquet"):
        parquet.write_table(pa.table({column: pa.array(names, pa.string())}), path)
        return path
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.endswith(".tsv") else ",").writerows(
            [[column], *([name] for name in names)]
        )
    return path


# --- folders, patterns, files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["photos", "photos/", "./photos", "{here}/photos"])
def test_a_folder_in_parts(tmp_path, named):
    images("photos", ["b/2.png", "a/1.png", "c.png", "a/deep/0.png", "d.png"])
    (tmp_path / "photos" / "notes.txt").touch()
    scanned = Scanned(named.format(here=tmp_path), images=2)
    assert scanned.names == [["a/1.png", "a/deep/0.png"], ["b/2.png", "c.png"], ["d.png"]]
    assert scanned.shown == [2, 4, 1, 3, 5]
    assert scanned.listed.images == 5
    assert scanned.left == {"no image by name (.txt)": 1}
    assert [(part.number, part.images) for part in scanned.listed.parts] == [(0, 2), (1, 2), (2, 1)]


def test_names_in_a_folder_may_hold_anything(tmp_path):
    names = ['a "b", c.png', "line\nend.png", "back\rhome.png", "ä\u2028.png", "x,y.png", "'.png", " .png"]
    scanned = Scanned(images("photos", names), images=3)
    assert sorted(item.name for item in scanned.items) == sorted(names)
    assert all(isinstance(shown, int) for shown in scanned.shown)


@pytest.mark.parametrize("named", ["photos/a*/*.png", "{here}/photos/[a]?/*.png", "photos/**/x/../../**/[12].png"])
def test_a_pattern(tmp_path, named):
    images("photos", ["a1/1.png", "a2/2.png", "b/3.png", "a1/deep/4.png"])
    if ".." in named:  # a pattern has nothing but names in it
        with pytest.raises(DataError, match="holds no images and no shards"):
            Scanned(named)
        return
    scanned = Scanned(named.format(here=tmp_path))
    assert scanned.names == [["a1/1.png", "a2/2.png"]]
    assert scanned.shown == [1, 2]


def test_a_pattern_in_the_current_folder():
    images(".", ["1.png", "2.jpg", "sub/3.png"])
    assert Scanned("*.png").names == [["1.png"]]
    assert Scanned("**/*.png").names == [["1.png", "sub/3.png"]]


def test_a_file_that_is_called_like_a_pattern_is_itself():
    images(".", ["[1].png", "1.png"])
    scanned = Scanned("[1].png")
    assert (scanned.names, scanned.shown) == ([["[1].png"]], [1])


def test_a_pattern_that_nothing_is_like():
    images("photos", ["1.png"])
    for named in ("photos/*.jpg", "nowhere/*.png", "photos/1.png/*.png"):
        with pytest.raises(DataError, match=f"{named.replace('*', '.')} holds no images and no shards") as refused:
            Scanned(named)
        assert refused.value.hint.startswith("expected a folder, a pattern, a .csv or .parquet manifest, .tar shards")


def test_one_image_and_several(tmp_path):
    images("photos", ["1.png", "2.png", "3.png"])
    assert Scanned("photos/2.png").names == [["photos/2.png"]]
    several = Scanned("photos/3.png", tmp_path / "photos" / "1.png", "photos/3.png", "photos/none.png")
    assert several.names == [["photos/3.png", str(tmp_path / "photos/1.png")], ["photos/3.png", "photos/none.png"]]
    assert several.shown == [3, 1, 3, "image photos/none.png does not exist"]
    assert several.found.shown == "photos/3.png and 3 more"


def test_a_pipe_among_images_is_a_bad_image(tmp_path):
    images(".", ["1.png"])
    os.mkfifo("2.png")
    (tmp_path / "3.png").mkdir()
    one, pipe, folder = Scanned("1.png", "2.png", "3.png").shown
    assert one == 1
    assert str(pipe).endswith("2.png is a pipe; expected a regular file")
    assert str(folder).endswith("3.png is a folder; expected a file")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["nowhere.csv"], "nowhere.csv does not exist"),
        (["nowhere.png"], "nowhere.png does not exist"),
        (["wds/nowhere"], "nowhere does not exist"),
        (["notes.txt"], "notes.txt is neither an image nor a shard by its ending"),
        (["1.png", "notes.txt"], "notes.txt is neither an image nor a shard by its ending"),
        (["1.png", "photos"], "photos is neither an image nor a shard by its ending"),
        (["1.png", "*.png"], None),
        (["1.png", "x.csv"], "x.csv is neither an image nor a shard by its ending"),
        (["1.png", "x.tar"], "x.tar is no such file as 1.png"),
        (["x.tar", "y.tar", "1.png"], "1.png is no such file as x.tar"),
        (["x.tar", "nowhere.tar"], "nowhere.tar does not exist"),
        (["pipe.tar"], "pipe.tar is neither a file nor a folder, but a pipe, a device or a socket"),
        (["a\0b"], "cannot be read: embedded null byte"),
        (["x" * 300 + ".png"], "cannot be read: File name too long"),
        (["empty"], "empty holds no images and no shards"),
        (["texts"], r"texts holds no images and no shards; 2 files of texts are not used: no image by name (.txt)"),
    ],
)
def test_what_is_no_input(tmp_path, named, message):
    lay_out(tmp_path, files("1.png", "notes.txt", "empty/", "texts/1.txt", "texts/2.txt"))
    images("photos", ["1.png"])
    table("x.csv", ["1.png"])
    shard(tmp_path / "x.tar", {"1.png": encoded(1)})
    shard(tmp_path / "y.tar", {"1.png": encoded(1)})
    os.mkfifo("pipe.tar")
    if message is None:  # a name with a wildcard is a name where several files are named
        assert Scanned(*named).shown == [0, "image *.png does not exist"]
        return
    with pytest.raises(DataError) as refused:
        Scanned(*named)
    assert message in refused.value.message
    assert refused.value.hint or "does not exist" in message or "neither" in message or "cannot be read" in message


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_called_a_shard_among_others_and_is_none(tmp_path, make):
    """Before any work: nobody may ever write into a pipe."""
    shard(tmp_path / "x.tar", {"1.png": encoded(1)})
    make("y.tar")
    Path("scratch").mkdir()
    with pytest.raises(DataError, match=r"y\.tar"):
        listed(find(["x.tar", "y.tar"]), 2, Path("scratch"), LocalPlace(tmp_path / "out"))


def test_a_name_that_no_table_can_hold_is_told():
    name = os.fsdecode(b"caf\xe9.png")
    images(".", ["1.png", name])
    for named in ([name], ["1.png", name]):
        with pytest.raises(LifedeployError, match=r"caf\\xe9\.png"):
            Scanned(*named)


# --- manifests --------------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])


@KINDS
def test_a_manifest_names_images_below_its_folder(tmp_path, kind):
    images("data", ["a/1.png", "2.png"])
    images("beside", ["3.png"], first=3)
    names = ["2.png", "a/1.png", "../beside/3.png", "a/none.png", str(tmp_path / "data/2.png"), "./2.png"]
    scanned = Scanned(table(f"data/m.{kind}", names), images=4)
    assert scanned.names == [names[:4], names[4:]]
    assert scanned.shown == [2, 1, 3, "image a/none.png does not exist", 2, 2]
    assert scanned.listed.listing is None  # it is the table of the input itself
    assert scanned.listed.source.manifest == str(tmp_path / f"data/m.{kind}")


@KINDS
def test_a_manifest_names_images_below_a_root(tmp_path, kind):
    images("data", ["a/1.png"])
    name = table(f"lists/m.{kind}", ["a/1.png", str(tmp_path / "data/a/1.png")])
    assert Scanned(name, root="data").shown == [1, 1]
    assert Scanned(name, root=str(tmp_path / "data")).shown == [1, 1]
    assert Scanned(name).shown == ["image a/1.png does not exist", 1]


def test_an_address_may_be_of_this_machine(tmp_path):
    images("data", ["1.png"])
    name = table("lists/m.csv", [f"file://{tmp_path}/data/1.png"])
    assert Scanned(f"file://{tmp_path}/{name}").shown == [1]
    assert Scanned(f"file://{tmp_path}/data").names == [["1.png"]]
    assert Scanned(f"file://{tmp_path}/data/*.png").names == [["1.png"]]
    assert Scanned(table("lists/n.csv", ["1.png"]), root=f"file://{tmp_path}/data").shown == [1]
    assert Scanned(f"file://{tmp_path}/data/1.png").shown == [1]


@KINDS
def test_a_row_that_names_nothing_is_a_bad_image(kind):
    images(".", ["1.png"])
    scanned = Scanned(table(f"m.{kind}", ["1.png", None if kind == "parquet" else "", "1.png"]))
    assert scanned.shown == [1, "the manifest names no image here", 1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("1.png\0", r"1.png\x00 cannot be opened: embedded null byte"),
        ("x" * 300, "cannot be opened: File name too long"),
        ("1.png/x", "cannot be opened: Not a directory"),
        (".", "is a folder; expected a file"),
        ("/dev/zero", "/dev/zero is a device; expected a regular file"),
        ("1.txt", "1.txt is not an image that can be read"),
        (" 1.png", "image 1.png does not exist"),
        ("ftp://127.0.0.1:1/1.png", "'ftp://127.0.0.1:1/1.png' is no address that is read here; there are: "),
        ("memory://1.png", "'memory://1.png' is no address that is read here; there are: "),
        ("file:///1.png", "image file:///1.png does not exist"),
        ("data:image/png;base64,iVBORw0KGgo=", "does not exist"),
        ("simplecache::s3://b/1.png", "'simplecache::s3://b/1.png' is no address that is read here"),
    ],
)
def test_one_odd_name_is_one_bad_image(name, problem):
    """Whatever a row holds, the others are read: of a billion one always is odd."""
    images(".", ["1.png"])
    Path("1.txt").write_text("no image")
    before, odd, after = Scanned(table("m.csv", ["1.png", name, "1.png"])).shown
    assert (before, after) == (1, 1)
    assert problem in str(odd)


def test_the_column_that_was_asked_for():
    images(".", ["1.png", "2.png"])
    Path("m.csv").write_text("image,mask\n1.png,2.png\n")
    assert Scanned("m.csv").shown == [1]
    assert Scanned("m.csv", column="mask").shown == [2]
    with pytest.raises(DataError, match="has no column 'path'; it has: image, mask"):
        Scanned("m.csv", column="path")


def test_a_folder_may_be_called_like_a_manifest():
    images("photos.csv", ["1.png"])
    assert Scanned("photos.csv").shown == [1]


# --- shards -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    shard(folder / "b-1.tar", {"x/1.png": encoded(1), "x/1.cls": b"0", "2.PNG": encoded(2), "x/1.json": b"{}"})
    shard(folder / "b-0.tar", {"./3.png": encoded(3), "x/._3.png": b"no", ".cache/9.png": b"no", "x": b""})
    (folder / "notes.txt").touch()
    return folder


@pytest.mark.parametrize("named", ["shards", "wds/shards", "shards/*.tar", "shards/**", "shards/b-[01].tar"])
def test_shards_are_a_part_each(shards, named):
    scanned = Scanned(named, images=1)
    assert scanned.names == [["b-0.tar/./3.png"], ["b-1.tar/x/1.png", "b-1.tar/2.PNG"]]
    assert scanned.shown == [3, 1, 2]
    assert scanned.listed.images is None
    sizes = [(shards / name).stat().st_size for name in ("b-0.tar", "b-1.tar")]
    assert [(part.number, part.shard, part.size) for part in scanned.listed.parts] == [
        (0, "b-0.tar", sizes[0]),
        (1, "b-1.tar", sizes[1]),
    ]
    other = {} if named.endswith(".tar") else {"no shard by name (.txt)": 1}
    assert scanned.left == other


def test_one_shard_and_several(shards):
    assert Scanned("shards/b-1.tar").names == [["shards/b-1.tar/x/1.png", "shards/b-1.tar/2.PNG"]]
    several = Scanned("shards/b-1.tar", shards / "b-0.tar")
    assert several.names == [["shards/b-1.tar/x/1.png", "shards/b-1.tar/2.PNG"], [f"{shards}/b-0.tar/./3.png"]]
    assert several.shown == [1, 2, 3]


def test_a_folder_of_images_and_shards_is_one_of_images(shards):
    images(shards, ["1.png"])
    scanned = Scanned("shards")
    assert scanned.names == [["1.png"]]
    assert scanned.left == {"no image by name (.tar, .txt)": 3}


def test_shards_in_folders(shards):
    (shards / "deep").mkdir()
    shard(shards / "deep" / "c.tar", {"4.png": encoded(4)})
    assert Scanned("shards").names[2] == ["deep/c.tar/4.png"]


def test_a_shard_without_images_is_a_part_without_any(shards):
    shard(shards / "a.tar", {"1.json": b"{}"})
    assert Scanned("shards").names[0] == []


@pytest.mark.parametrize("cut", ["end", "middle", "header"])
def test_a_damaged_shard_gives_its_good_images_and_one_bad_row(tmp_path, cut):
    path = tmp_path / "x.tar"
    shard(path, {f"{number}.png": encoded(number) for number in (1, 2, 3)})
    shard(tmp_path / "y.tar", {"4.png": encoded(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmember("3.png")
    broken = {
        "end": whole[: third.offset_data + 10],
        "middle": whole[: third.offset + 100],
        "header": whole[: third.offset] + b"\1" * 512 + whole[third.offset + 512 :],
    }
    path.write_bytes(broken[cut])
    scanned = Scanned("x.tar", "y.tar")
    assert scanned.names == [["x.tar/1.png", "x.tar/2.png", "x.tar"], ["y.tar/4.png"]]
    *good, bad, last = scanned.shown
    assert (good, last) == ([1, 2], 4)
    assert str(bad).startswith("x.tar cannot be read on: it is damaged")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"no tar " * 300, "it is damaged at byte 0"),
        (b"\x1f\x8b" * 300, "it is damaged at byte 0"),
    ],
)
def test_what_is_no_shard_is_one_bad_row(content, problem):
    Path("x.tar").write_bytes(content)
    scanned = Scanned("x.tar")
    assert scanned.names == [["x.tar"]]
    assert scanned.shown == [f"x.tar cannot be read on: {problem}"]


def test_links_in_a_shard_are_bad_images(tmp_path):
    shard(tmp_path / "x.tar", [("1.png", encoded(1)), ("2.png", LINK), ("3.json", LINK)])
    with tarfile.open("x.tar", "a") as archive:
        entry = tarfile.TarInfo("4.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "1.png"
        archive.addfile(entry)
    scanned = Scanned("x.tar")
    assert scanned.names == [["x.tar/1.png", "x.tar/2.png", "x.tar/4.png"]]
    assert scanned.shown == [
        1,
        "x.tar/2.png is no plain file in its shard",
        "x.tar/4.png is no plain file in its shard",
    ]


def test_a_member_that_is_no_image_is_a_bad_one(tmp_path):
    shard(tmp_path / "x.tar", {"1.png": encoded(1), "2.png": b"no image", "3.png": b""})
    assert [str(shown)[:38] for shown in Scanned("x.tar").shown] == [
        "1",
        "x.tar/2.png is not an image that can b",
        "x.tar/3.png is not an image that can b",
    ]


def test_a_member_of_more_bytes_than_its_pixels_could_need_is_not_read(tmp_path):
    with (tmp_path / "x.tar").open("wb") as file:
        entry = tarfile.TarInfo("a.webp")
        entry.size = 2**40
        file.write(entry.tobuf(tarfile.GNU_FORMAT) + b"RIFF")
        file.truncate(2**40 + 4096)  # a hole
    (shown,) = Scanned("x.tar").shown
    assert "x.tar/a.webp is of 1,099,511,627,776 bytes, more than the" in str(shown)


def test_an_image_of_a_shard_can_be_read_when_the_shard_is_gone(tmp_path):
    shard(tmp_path / "x.tar", {"1.png": encoded(1), "2.png": encoded(2)})
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    scanned = Scanned("x.tar")
    Path("x.tar").unlink()
    assert scanned.shown == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    del scanned
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_shard_that_goes_in_between_is_told(tmp_path):
    shard(tmp_path / "x.tar", {"1.png": encoded(1)})
    Path("scratch").mkdir()
    there = listed(find(["x.tar"]), 1, Path("scratch"), LocalPlace(tmp_path / "out"))
    Path("x.tar").unlink()
    with pytest.raises(DataError, match=r"x\.tar does not exist any more"):
        list(Reader(there.source).items(there.parts[0]))


# --- digests ----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_names(tmp_path):
    images("photos", ["1.png", "2.png"])
    first = Scanned("photos").listed.digest
    assert Scanned(tmp_path / "photos", images=1).listed.digest == first
    images("photos", ["3.png"])
    second = Scanned("photos").listed.digest
    (tmp_path / "photos" / "3.png").rename(tmp_path / "photos" / "4.png")
    third = Scanned("photos").listed.digest
    assert len({first, second, third}) == 3
    (tmp_path / "photos" / "4.png").unlink()
    assert Scanned("photos").listed.digest == first


def test_the_digest_of_shards_tells_other_sizes(shards):
    first = Scanned("shards").listed.digest
    assert Scanned("shards").listed.digest == first
    shard(shards / "b-0.tar", {str(number) + ".png": encoded(3) for number in range(99)})
    assert Scanned("shards").listed.digest != first


def test_a_folder_and_its_shards_of_the_same_names_are_told_apart(tmp_path):
    images("a", ["1.png"])
    listed_names = Scanned("a").listed.digest
    shard(tmp_path / "1.tar", {"1.png": encoded(1)})
    assert Scanned("1.tar").listed.digest != listed_names


# --- single images ----------------------------------------------------------------------------------------------


def test_images_of_every_place_are_decoded_alike(tmp_path):
    """As ``predict`` does, from a path, out of a shard and by a manifest."""
    photo = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    photo.save("1.png")
    shard(tmp_path / "x.tar", {"1.png": Path("1.png").read_bytes()})
    expected = read_image(Path("1.png")).tobytes()
    for named in ("1.png", "x.tar", table("m.csv", ["1.png"])):
        (item,) = Scanned(named).items
        assert item.read().tobytes() == expected


def test_a_part_that_is_told_again_is_the_same(tmp_path):
    """Ray may give one to several processes, one after the other."""
    images("photos", [f"{number}.png" for number in range(5)])
    scanned = Scanned("photos")
    reader = Reader(scanned.listed.source)
    (tmp_path / "photos" / "9.png").touch()  # what comes later is no part of the job
    for part in (scanned.listed.parts[2], scanned.listed.parts[0], scanned.listed.parts[2]):
        assert [item.name for item in reader.items(part)] == scanned.names[part.number]
    assert isinstance(scanned.listed.parts[0], Part)


# --- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("s3://b/x", "http://h/x", "memory://x", "zip::s3://b/x.zip", "a+b://c")),
        *((text, False) for text in ("x", "/x", "./s3:/b", "://x", "a b://c", "C:/x", "-://", "")),
    ],
)
def test_what_is_an_address(text, expected):
    assert is_address(text) is expected


@pytest.mark.parametrize(
    "address", ["memory://x", "zip::s3://b/x.zip", "reference://x", "local://x", "S4://b", "github://x"]
)
def test_addresses_that_are_not_taken(address):
    with pytest.raises(UsageError) as refused:
        place_of(address)
    assert refused.value.message.startswith(f"'{address}' is no address that is read here; there are: s3, s3a, gs, ")
    assert refused.value.exit_code == 2
    with pytest.raises(UsageError, match="is no address that is read here"):
        Scanned(address)
