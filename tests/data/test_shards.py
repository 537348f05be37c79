"""WebDataset shards: which member is an image, and which label is whose."""

from __future__ import annotations

import gzip
import os
import tarfile

import pytest

from lifedeploy.data.images import read_images, read_split
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.errors import DataError, ImageError
from tests.pictures import LINK, encoded, names, reasons, shard

NO_LABEL = "image without a label"
UNUSED = "label of no image that is used"


def test_shards_are_read_by_offset(tmp_path):
    first = {"x/a.png": encoded(1), "x/a.cls": b"1", "x/a.json": b"{}", "b.seg.png": b"a mask", "b.png": encoded(2)}
    shard(tmp_path / "data-0.tar", first | {"b.cls": b"0", "c.png": encoded(9)})  # c has no class
    shard(tmp_path / "data-1.tar", {"d.PNG": encoded(3), "d.cls": b"2\n"})
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    images = read_images(f"wds/{tmp_path}")
    assert images.classes == ("ant", "bee", "cow")
    assert names(images) == ["data-0.tar/x/a", "data-0.tar/b", "data-1.tar/d"]
    assert images.targets.tolist() == [1, 0, 2]
    assert [images.image(index).getpixel((0, 0))[0] for index in (2, 0, 1)] == [3, 1, 2]
    assert [str(left) for left in images.left_out] == [
        f"1 member of wds/{tmp_path} is not used: neither image nor label by ending (.json): data-0.tar/x/a.json",
        f"1 member of wds/{tmp_path} is not used: image without a label: data-0.tar/c.png",
        f"1 member of wds/{tmp_path} is not used: another image of its sample: data-0.tar/b.seg.png",
    ]


IMAGE = encoded(7)
# name: (members, key and label of those that are used, reasons for the others)
ZOO: dict[str, tuple[list[tuple[str, bytes]], dict[str, int], dict[str, int]]] = {
    "dots in the name": (
        [("IMG_1.3.jpg", IMAGE), ("IMG_1.3.cls", b"1"), ("IMG_1.4.jpg", IMAGE), ("IMG_1.4.cls", b"0")],
        {"IMG_1.3": 1, "IMG_1.4": 0},
        {},
    ),
    "label of the sample": ([("IMG_1.3.jpg", IMAGE), ("IMG_1.cls", b"1")], {"IMG_1.3": 1}, {}),
    "own label before the sample's": (
        [("a.x.png", IMAGE), ("a.x.cls", b"2"), ("a.y.png", IMAGE), ("a.cls", b"1")],
        {"a.x": 2, "a.y": 1},
        {},
    ),
    "two endings": (
        [("a.jpg", IMAGE), ("a.png", IMAGE), ("a.cls", b"1"), ("b.png", IMAGE), ("b.cls", b"0")],
        {"b": 0},
        {"one of several images for one label": 2, UNUSED: 1},
    ),
    "two views": (
        [("s.left.jpg", IMAGE), ("s.right.jpg", IMAGE), ("s.cls", b"1"), ("t.jpg", IMAGE), ("t.cls", b"0")],
        {"t": 0},
        {"one of several images for one label": 2, UNUSED: 1},
    ),
    "two plain of three": (
        [("a.seg.png", IMAGE), ("a.jpg", IMAGE), ("a.PNG", IMAGE), ("a.cls", b"1"), ("b.webp", IMAGE), ("b.cls", b"0")],
        {"b": 0},
        {"one of several images for one label": 3, UNUSED: 1},
    ),
    "no label": (
        [("a.png", IMAGE), ("b.png", IMAGE), ("b.cls", b"-1\n"), ("c.cls", b"0"), ("d.tif", IMAGE), ("d.cls", b"0")],
        {"d": 0},
        {NO_LABEL: 1, "image of label -1, which means none": 1, UNUSED: 2},
    ),
    "hidden": (
        [("./a.png", IMAGE), ("./a.cls", b"0"), ("._a.png", b"x"), ("./._a.cls", b"\0"), (".cache/b.png", IMAGE)],
        {"./a": 0},
        {"hidden": 3},
    ),
    "written twice": (
        [("a.png", b"old"), ("a.cls", b"0"), ("a.cls", b"1"), ("a.png", IMAGE)],
        {"a": 1},
        {"replaced by a later member of the same name": 2},
    ),
    "links and others": (
        [("a.png", IMAGE), ("a.cls", b"0"), ("b.png", LINK), ("c.json", LINK), ("README", b""), ("d", b"")],
        {"a": 0},
        {"no plain file": 1, "neither image nor label by ending (none, .json)": 3},
    ),
    "folders": (
        [("x.1/a.png", IMAGE), ("x.1/a.cls", b"0"), ("y/a.png", IMAGE), ("y/a.cls", b"1"), ("x.cls", b"1")],
        {"x.1/a": 0, "y/a": 1},
        {UNUSED: 1},
    ),
}


@pytest.mark.parametrize(("members", "used", "left"), ZOO.values(), ids=list(ZOO))
def test_every_member_is_used_or_counted(tmp_path, members, used, left):
    shard(tmp_path / "x.tar", members)
    images = read_images(f"wds/{tmp_path}")
    assert dict(zip(names(images), images.targets.tolist(), strict=True)) == {
        f"x.tar/{key}": label for key, label in used.items()
    }
    assert reasons(images) == left
    assert 2 * len(images) + sum(left.values()) == len(members)  # an image and its label
    assert [images.image(index).getpixel((0, 0))[0] for index in range(len(images))] == [7] * len(images)
    assert names(read_unlabelled(f"wds/{tmp_path}")) == names(images)


def pair(label: int = 0) -> dict[str, bytes]:
    return {f"{label}.png": encoded(label), f"{label}.cls": str(label).encode()}


def test_shards_of_two_halves_and_what_lies_beside_them(tmp_path):
    for name in ("Train-0.tar", "train-1.tar", "val-0.tar", "test-0.tar", "extra.tar", "more/train-2.tar", "._x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shard(tmp_path / name, pair(0) | pair(1))
    for name in ("train-3.tar.gz", "val-1.tgz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "classes.txt").write_text("no\nyes")
    split = read_split(f"wds/{tmp_path}")
    assert names(split.train) == ["Train-0.tar/0", "Train-0.tar/1", "train-1.tar/0", "train-1.tar/1"]
    assert names(split.val) == ["val-0.tar/0", "val-0.tar/1"]
    assert split.train.left_out == split.val.left_out
    assert reasons(split.val) == {
        "hidden": 1,
        "no shard by ending (.gz, .tgz, .txt)": 3,
        "shard in a folder beside the others": 1,
        "shard of neither half by name": 2,
    }
    files = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert 3 + sum(reasons(split.val).values()) + 1 == files  # 3 shards, and classes.txt


def test_test_shards_are_the_validation_half_where_there_is_no_other(tmp_path):
    shard(tmp_path / "train-0.tar", pair(0))
    shard(tmp_path / "test-0.tar", pair(0))
    assert names(read_images(f"wds/{tmp_path}")) == ["test-0.tar/0"]


@pytest.mark.parametrize(
    ("members", "classes", "message"),
    [
        ({"a.txt": b"x"}, None, "without a single pair of image and .cls in them; 1 member of .* neither image nor"),
        ({"a.png": b"x", "a.cls": b"-1"}, None, "without a single pair .* image of label -1, which means none"),
        (
            {"a.png": b"x", "a.cls": b"seven"},
            None,
            "x.tar is no WebDataset shard .*: a.cls holds 'seven'; expected the",
        ),
        ({"a.png": b"x", "a.cls": b"1_0"}, None, "a.cls holds '1_0'; expected the index of a class"),
        ({"a.png": b"x", "a.cls": b"-2"}, None, "a.cls holds '-2'; expected the index of a class"),
        ({"a.png": b"x", "a.cls": b"4"}, "one\ntwo", "has a class 4, and classes.txt names 2"),
        ({"a.png": b"x", "a.cls": b"0"}, "one\n\ntwo\n", "has no name on line 2; expected the name of class 1"),
    ],
)
def test_shards_that_are_none(tmp_path, members, classes, message):
    shard(tmp_path / "x.tar", members)
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(DataError, match=message):
        read_images(f"wds/{tmp_path}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"1000000000", "a.cls holds '1000000000'; expected the index of a class"),
        (b"999999999", "has a label 999,999,999 and no names of classes; expected below 100,000"),
        (b"-1000", "a.cls holds '-1000'"),
        ("²".encode(), "a.cls holds '²'"),
        (b"9" * 10_000, "a.cls holds '9{20}'; expected the index"),
        (b"\xff\xfe1\x00", r"a.cls holds '.*'; expected the index"),
        (b"1" + b" " * 10**6, "a.cls holds '1 '; expected the index"),
        (b"\x1b[31m", r"a.cls holds '\\x1b\[31m'; expected the index"),
        (b"", "a.cls holds ''; expected the index"),
    ],
)
def test_a_label_that_is_none(tmp_path, label, message):
    shard(tmp_path / "x.tar", {"a.png": encoded(1), "a.cls": label})
    with pytest.raises(DataError, match=message):
        read_images(f"wds/{tmp_path}")


def test_a_label_with_a_byte_order_mark_is_read(tmp_path):
    shard(tmp_path / "x.tar", {"a.png": encoded(1), "a.cls": b"\xef\xbb\xbf2\r\n"})
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ncup\rdog".encode())
    images = read_images(f"wds/{tmp_path}")
    assert (images.classes, images.targets.tolist()) == (("cat", "cup", "dog"), [2])


def test_more_names_than_any_data_set_has_are_refused(tmp_path):
    shard(tmp_path / "x.tar", pair(0))
    (tmp_path / "classes.txt").write_text("a\n" * 1_000_001)
    with pytest.raises(DataError, match="names 1,000,001 classes; expected at most 1,000,000"):
        read_images(f"wds/{tmp_path}")
    with (tmp_path / "classes.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"classes\.txt is larger than the 64 MiB that such a file may have"):
        read_images(f"wds/{tmp_path}")


def test_an_image_of_more_bytes_than_its_pixels_could_need_is_not_read(tmp_path):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        for name, size in (("a.cls", 1), ("a.webp", 2**40)):
            entry = tarfile.TarInfo(name)
            entry.size = size
            file.write(entry.tobuf(tarfile.GNU_FORMAT))
            file.write(b"0".ljust(512, b"\0") if size == 1 else b"RIFF")
        file.truncate(2**40 + 4096)  # a hole
    with pytest.raises(ImageError, match=r"x\.tar/a is of 1,099,511,627,776 bytes, more than"):
        read_images(f"wds/{tmp_path}").image(0)


def test_names_that_no_report_can_hold_are_passed_over(tmp_path):
    bad, long = "caf\udce9.png", "x/" * 2000 + "a.\x1b[31mtxt"
    shard(tmp_path / "x.tar", [*pair(0).items(), (bad, encoded(1)), (long, b"")])
    left = read_images(f"wds/{tmp_path}").left_out
    assert {one.reason for one in left} == {
        "name that is not UTF-8",
        r"neither image nor label by ending (.\x1b[31mtxt)",
    }
    assert all(str(one).isprintable() and len(one.first) <= 160 for one in left)
    assert r"x.tar/caf\xe9.png" in [one.first for one in left]


def test_a_pipe_and_a_device_are_no_shards(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    (tmp_path / "1.tar").symlink_to("/dev/zero")
    (tmp_path / "2.tar").symlink_to("2.tar")
    (tmp_path / "3.tar").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"holds no \.tar shards; .*no regular file.*; .*link that leads nowhere"):
        read_images(f"wds/{tmp_path}")
    shard(tmp_path / "4.tar", pair(0))
    os.mkfifo(tmp_path / "classes.txt")
    assert reasons(read_images(f"wds/{tmp_path}")) == {
        "no regular file": 2,
        "link that leads nowhere": 2,
        "no shard by ending (.txt)": 1,
    }


def test_a_damaged_shard_and_no_shard(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.tar shards"):
        read_images(f"wds/{tmp_path}")
    (tmp_path / "x.tgz").touch()
    with pytest.raises(DataError, match=r"holds no \.tar shards; 1 file of .* no shard by ending \(\.tgz\): x\.tgz"):
        read_images(f"wds/{tmp_path}")
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError, match=r"x\.tar is no WebDataset shard"):
        read_images(f"wds/{tmp_path}")


def test_a_shard_that_ends_early_or_is_damaged_inside_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    shard(path, pair(0) | pair(1))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        second = archive.getmember("1.png")
    for broken in (
        whole[: second.offset_data + 10],
        whole[: second.offset] + b"\1" * 512 + whole[second.offset + 512 :],
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.tar is no WebDataset shard that can be read: (it is damaged|unexp)"):
            read_images(f"wds/{tmp_path}")


def test_a_compressed_shard_and_a_pointer_are_named(tmp_path):
    path = tmp_path / "x.tar"
    shard(path, pair(0))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.tar is no WebDataset shard") as refused:
        read_images(f"wds/{tmp_path}")
    assert refused.value.hint == "it is compressed: gunzip it"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"x\.tar is a Git LFS pointer, not the shard") as refused:
        read_images(f"wds/{tmp_path}")
    assert refused.value.hint == "git lfs pull"


def test_a_file_with_holes_is_passed_over(tmp_path):
    shard(tmp_path / "x.tar", pair(0))
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        entry = tarfile.TarInfo("s.png")
        entry.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(entry)
    assert reasons(read_images(f"wds/{tmp_path}")) == {"no plain file": 1}


def test_a_list_of_classes_in_another_encoding_is_refused(tmp_path):
    shard(tmp_path / "x.tar", pair(0))
    (tmp_path / "classes.txt").write_bytes("käse".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is no list of class names"):
        read_images(f"wds/{tmp_path}")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfant\r\n")  # as Windows writes it
    assert read_images(f"wds/{tmp_path}").classes == ("ant",)


def test_a_shard_and_a_link_to_it_are_one(tmp_path):
    members = {f"{key}.png": encoded(index) for index, key in enumerate("abcd")}
    shard(tmp_path / "train-0.tar", members | {f"{key}.cls": b"0" for key in "abcd"})
    (tmp_path / "val-0.tar").symlink_to("train-0.tar")
    split = read_split(f"wds/{tmp_path}", val_share=0.5)
    assert not set(names(split.train)) & set(names(split.val))
    assert reasons(split.train) == {"link to a file that is read under another name": 1}
    assert len(read_images(f"wds/{tmp_path}")) == 4


def test_a_label_that_no_data_set_reaches_is_named(tmp_path):
    shard(tmp_path / "x.tar", {"a.png": encoded(1), "a.cls": b"200000000"})
    with pytest.raises(DataError, match=r"has a label 200,000,000 and no names of classes; expected below 100,000"):
        read_images(f"wds/{tmp_path}")
