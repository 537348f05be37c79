"""Labelled images: folders, shards, Hugging Face data sets; splits that are written down."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifedeploy.data.images import FolderSet, read_images, read_split, write_split
from lifedeploy.errors import DataError, ImageError


def picture(value: int, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (12, 10), (value, 0, 255 - value)).convert(mode)


def folder(root: Path, counts: dict[str, int]) -> Path:
    """Class folders with so many images each."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(10 * number + index).save(root / name / f"{index}.png")
    return root


def names(images) -> list[str]:
    return [images.filename(index) for index in range(len(images))]


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
    assert FolderSet(tmp_path).image(0).mode == "RGB"


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


@pytest.mark.parametrize("content", ["", "name,half\nx,val\n", None])
def test_a_split_file_that_is_none(tmp_path, content):
    source = str(folder(tmp_path / "data", {"a": 2}))
    if content is not None:
        (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError):
        read_images(source, split=str(tmp_path / "split.csv"))


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
        FolderSet(tmp_path / "data").image(1)


# --- shards -----------------------------------------------------------------------------------------------------


def shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


def test_shards_are_read_by_offset(tmp_path):
    first = {"x/a.png": png(1), "x/a.cls": b"1", "x/a.json": b"{}", "b.seg.png": b"not the image", "b.png": png(2)}
    shard(tmp_path / "data-0.tar", first | {"b.cls": b"0", "c.png": png(9)})  # c has no class
    shard(tmp_path / "data-1.tar", {"d.PNG": png(3), "d.cls": b"2\n"})
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    images = read_images(f"wds/{tmp_path}")
    assert images.classes == ("ant", "bee", "cow")
    assert names(images) == ["data-0.tar/x/a", "data-0.tar/b", "data-1.tar/d"]
    assert images.targets.tolist() == [1, 0, 2]
    assert [images.image(index).getpixel((0, 0))[0] for index in (2, 0, 1)] == [3, 1, 2]


def test_shards_of_two_halves(tmp_path):
    shard(tmp_path / "train-0.tar", {"a.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"1"})
    shard(tmp_path / "val-0.tar", {"c.png": png(3), "c.cls": b"1"})
    (tmp_path / "classes.txt").write_text("no\nyes")
    split = read_split(f"wds/{tmp_path}")
    assert (len(split.train), len(split.val)) == (2, 1)


@pytest.mark.parametrize(
    ("members", "classes", "message"),
    [
        ({"a.txt": b"x"}, None, "without a single pair of image and .cls"),
        ({"a.png": b"x", "a.cls": b"seven"}, None, "is no WebDataset shard that can be read"),
        ({"a.png": b"x", "a.cls": b"4"}, "one\ntwo", "has a class 4, and classes.txt names 2"),
    ],
)
def test_shards_that_are_none(tmp_path, members, classes, message):
    shard(tmp_path / "x.tar", members)
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(DataError, match=message):
        read_images(f"wds/{tmp_path}")


def test_a_damaged_shard_and_no_shard(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.tar shards"):
        read_images(f"wds/{tmp_path}")
    (tmp_path / "x.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError, match=r"x\.tar is no WebDataset shard"):
        read_images(f"wds/{tmp_path}")


# --- Hugging Face -----------------------------------------------------------------------------------------------


def test_a_hugging_face_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    for half, count in (("train", 4), ("validation", 2)):
        rows = {"image": [picture(index) for index in range(count)], "label": [index % 2 for index in range(count)]}
        table = datasets.Dataset.from_dict(rows, features=features)
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / "set" / "data" / f"{half}-0.parquet")
    split = read_split(f"hfds/{tmp_path / 'set'}")
    assert split.train.classes == ("ant", "bee")
    assert split.train.targets.tolist() == [0, 1, 0, 1]
    assert names(split.val) == ["validation/0", "validation/1"]
    assert split.train.image(3).getpixel((0, 0)) == (3, 0, 252)
    with pytest.raises(DataError, match="cannot be found"):
        read_images(f"hfds/{tmp_path / 'nothing'}")
