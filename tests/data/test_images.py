"""Labelled images in folders; halves, and splits that are written down."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lifedeploy.data.images import read_images, read_split, write_split
from lifedeploy.errors import DataError, ImageError
from tests.pictures import class_folders as folder
from tests.pictures import names, picture


def test_a_folder_is_read_as_timm_reads_it(tmp_path):
    images = read_images(str(folder(tmp_path / "data", {"10": 1, "2": 2, "cat": 1})))
    assert images.classes == ("2", "10", "cat")  # natural order
    assert names(images) == ["2/0.png", "2/1.png", "10/0.png", "cat/0.png"]
    assert images.targets.tolist() == [0, 0, 1, 2]
    assert images.image(2).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_kind_of_image_comes_as_rgb(tmp_path, mode):
    (tmp_path / "a").mkdir()
    picture(100, mode).save(tmp_path / "a" / "x.png")
    assert read_images(str(tmp_path)).image(0).mode == "RGB"


def test_halves_are_taken_as_they_lie(tmp_path):
    folder(tmp_path / "train", {"a": 3, "b": 2})
    folder(tmp_path / "validation", {"a": 1, "b": 1})
    split = read_split(str(tmp_path))
    assert (len(split.train), len(split.val), split.held_out) == (5, 2, "")
    assert names(read_images(str(tmp_path))) == ["a/0.png", "b/0.png"]
    assert len(read_images(str(tmp_path), split="train")) == 5


def test_without_halves_a_share_of_every_class_is_held_out(tmp_path):
    source = str(folder(tmp_path / "data", {"a": 20, "b": 10, "pair": 2, "single": 1}))
    split = read_split(source, val_share=0.2, seed=3)
    assert split.held_out == "0.2 of every class, seed 3"
    assert np.bincount(split.val.targets, minlength=4).tolist() == [4, 2, 1, 0]
    assert np.bincount(split.train.targets, minlength=4).tolist() == [16, 8, 1, 1]
    assert set(names(split.train)) | set(names(split.val)) == set(names(read_images(source)))
    assert names(read_split(source, val_share=0.2, seed=3).val) == names(split.val)
    assert names(read_split(source, val_share=0.2, seed=4).val) != names(split.val)


def test_a_split_is_written_down_and_read_again(tmp_path):
    source = str(folder(tmp_path / "data", {"a": 10, "b": 10}))
    split = read_split(source, val_share=0.3)
    write_split(tmp_path / "split.csv", split)
    again = read_images(source, split=str(tmp_path / "split.csv"))
    assert sorted(names(again)) == sorted(names(split.val))
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)  # names are below the folder, wherever it lies
    assert len(read_images(str(moved), split=str(tmp_path / "split.csv"))) == 6
    for path in list((moved / "a").iterdir()):
        path.unlink()
    with pytest.raises(DataError, match="lists 6 validation images, and 3 of them are in"):
        read_images(str(moved), split=str(tmp_path / "split.csv"))


def test_a_written_split_of_given_halves_is_read_from_its_own_half(tmp_path):
    folder(tmp_path / "data" / "train", {"a": 3})
    folder(tmp_path / "data" / "val", {"a": 2})  # names that training images have too
    write_split(tmp_path / "split.csv", read_split(str(tmp_path / "data")))
    images = read_images(str(tmp_path / "data"), split=str(tmp_path / "split.csv"))
    assert (names(images), images.source) == (["a/0.png", "a/1.png"], str(tmp_path / "data" / "val"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no validation images"),
        (b"name,half\nx,val\n", r"is no split file: expected columns file and split \(.*'split' is missing"),
        (None, "is no split file: .*does not exist"),
        ("file,split\nk\xe4se,val\n".encode("latin-1"), "is no split file: .*it is not UTF-8 at byte 12"),
        (b"file,split\n" + b"x" * 200_000 + b",val\n", "is no split file: .*field larger than field limit"),
        (b"file,split\n\0,val\n", r"(is no split file|lists 1 validation images, and 0 of them are in)"),
        (b'file,split\n"a/0.png,val\n', "lists no validation images"),
    ],
    ids=["empty", "columns", "missing", "latin-1", "one field", "nul", "quote"],
)
def test_a_split_file_that_is_none(tmp_path, content, message):
    source = str(folder(tmp_path / "data", {"a": 2}))
    if content is not None:
        (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_images(source, split=str(tmp_path / "split.csv"))


def test_a_split_file_that_is_a_pipe_or_endless_is_refused(tmp_path):
    source = str(folder(tmp_path / "data", {"a": 2}))
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    for name, kind in (("pipe", "pipe"), ("endless", "device")):
        with pytest.raises(DataError, match=f"is a {kind}; expected a regular file"):
            read_images(source, split=str(tmp_path / f"{name}.csv"))


def test_a_split_file_of_another_editor_is_read(tmp_path):
    source = str(folder(tmp_path / "data", {"a": 2}))
    (tmp_path / "split.csv").write_bytes("\ufefffile,split\r\na/1.png,val\r\n".encode())
    assert names(read_images(source, split=str(tmp_path / "split.csv"))) == ["a/1.png"]


def test_a_folder_whose_name_is_no_utf8_is_read(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    folder(root / "data", {"a": 2})
    (root / "data" / "notes.txt").touch()
    images = read_images(str(root / "data"))
    assert [str(left).split(" of ")[1] for left in images.left_out] == [
        f"{tmp_path}/caf\\xe9/data is not used: no image by ending (.txt): notes.txt"
    ]
    (root / "data" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"caf\\xe9/data/a/1\.png is not an image"):
        images.image(1)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder") as refused:
        read_images(str(tmp_path / "nowhere"))
    assert "wds/FOLDER or hfds/NAME" in (refused.value.hint or "")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        read_images(str(tmp_path / "empty"))
    folder(tmp_path / "loose", {"a": 1})
    picture(1).save(tmp_path / "loose" / "b.png")
    with pytest.raises(DataError, match=r"holds images that are in no class: b\.png"):
        read_images(str(tmp_path / "loose"))
    source = str(folder(tmp_path / "data", {"a": 2}))
    with pytest.raises(DataError, match=r"has no split 'test'; it has: all"):
        read_images(source, split="test")
    for share in (0, 1, 1.5):
        with pytest.raises(DataError, match="cannot be held out"):
            read_split(source, val_share=share)


def test_halves_of_other_classes_are_refused(tmp_path):
    folder(tmp_path / "train", {"a": 2, "b": 2})
    folder(tmp_path / "val", {"a": 2, "c": 2})
    with pytest.raises(DataError, match="have other classes: b, c"):
        read_split(str(tmp_path))


def test_a_broken_image_is_named(tmp_path):
    folder(tmp_path / "data", {"a": 2})
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a/1\.png is not an image"):
        read_images(str(tmp_path / "data")).image(1)
