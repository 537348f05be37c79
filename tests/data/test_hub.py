"""Hugging Face datasets: which columns are meant, which rows are used, which splits there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lifedeploy.data.batches import decoded_batches
from lifedeploy.data.hub import HubSet
from lifedeploy.data.images import read_images, read_split, write_split
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.errors import DataError, ImageError
from lifedeploy.spec import PreprocessSpec
from tests.pictures import names, picture, reasons

datasets = pytest.importorskip("datasets")
PICTURES = datasets.Image()
ANIMALS = datasets.ClassLabel(names=["ant", "bee"])
NUMBERS = datasets.Value("int64")

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path, monkeypatch) -> Save:
    """A dataset of parquet files, with one for every split: {column: (feature, values)}; its name as a source."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def save(**splits: dict[str, tuple[Any, list[Any]]]) -> str:
        folder = tmp_path / "set" / "data"
        folder.mkdir(parents=True)
        for split, columns in splits.items():
            features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
            rows = {name: values for name, (_, values) in columns.items()}
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return f"hfds/{folder.parent}"

    return save


def rows(count: int, image: str = "image", label: str = "label", kind: Any = ANIMALS) -> dict[str, Any]:
    return {
        image: (PICTURES, [picture(index) for index in range(count)]),
        label: (kind, [index % 2 for index in range(count)]),
    }


def test_halves_of_a_dataset(save, tmp_path):
    source = save(train=rows(4), validation=rows(2))
    split = read_split(source)
    assert split.train.classes == ("ant", "bee")
    assert split.train.targets.tolist() == [0, 1, 0, 1]
    assert names(split.val) == ["validation/0", "validation/1"]
    assert split.train.image(3).getpixel((0, 0)) == (3, 0, 252)
    assert split.train.left_out == ()
    write_split(tmp_path / "split.csv", split)
    assert names(read_images(source, split=str(tmp_path / "split.csv"))) == names(split.val)


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be found"):
        read_images(f"hfds/{tmp_path / 'nothing'}")


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        (rows(2, "img", "labels"), "img", "labels"),
        (rows(2, "picture", "species"), "picture", "species"),  # by type, not by name
        (rows(2, "x", "Label", NUMBERS) | {"width": (NUMBERS, [12, 12])}, "x", "Label"),
        (rows(2) | {"class": (NUMBERS, [5, 5])}, "image", "label"),  # class labels before integers
    ],
)
def test_columns_are_found_by_their_types(save, columns, image, label):
    source = save(train=columns)
    images = read_images(source)
    assert images.targets.tolist() == [0, 1]
    assert images.image(1).getpixel((0, 0)) == (1, 0, 254)
    assert read_images(f"{source}?image={image}&label={label}").targets.tolist() == [0, 1]


def test_one_of_several_columns_is_chosen(save):
    columns = rows(2, "img", "species") | {
        "mask": (PICTURES, [picture(90), picture(91)]),
        "coarse": (datasets.ClassLabel(names=["animal", "plant", "stone"]), [2, 1]),
        "rank": (NUMBERS, [4, 3]),
    }
    source = save(train=columns)
    with pytest.raises(DataError) as refused:
        read_images(source)
    assert refused.value.message == (
        f"Hugging Face dataset {source[5:]}, split train, has 2 columns that may be the image: img, mask; "
        "its columns are: img (Image), species (ClassLabel of 2), mask (Image), coarse (ClassLabel of 3), rank (int64)"
    )
    assert refused.value.hint == f"{source}?image=COLUMN"
    with pytest.raises(DataError, match=r"has 2 columns that may be the label: species, coarse;") as refused:
        read_images(f"{source}?image=mask")
    assert refused.value.hint == f"{source}?image=mask&label=COLUMN"
    chosen = read_images(f"{source}?image=mask&label=coarse")
    assert (chosen.classes, chosen.targets.tolist()) == (("animal", "plant", "stone"), [2, 1])
    assert chosen.image(0).getpixel((0, 0)) == (90, 0, 165)
    assert chosen.source == f"{source}?image=mask&label=coarse"  # what reads the same images again
    assert read_images(f"{source}?label=rank&image=img").classes == ("0", "1", "2", "3", "4")


def test_of_several_columns_the_usual_names_are_meant(save):
    columns = {"mask": (PICTURES, [picture(90), picture(91)]), "coarse": (ANIMALS, [1, 1])} | rows(2)
    images = read_images(save(train=columns))
    assert images.targets.tolist() == [0, 1]
    assert images.image(0).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("image=label", "has no images in 'label'; its columns are: image (Image), label (ClassLabel of 2)"),
        ("label=image", "has no labels in 'image'; its columns are:"),
        ("label=text", "has no label column 'text'; its columns are:"),
        ("imgae=image", "is asked for 'imgae=image'; expected columns of image and label"),
        ("image=", "is asked for 'image='; expected"),
        ("image=image&image=label", "is asked for 'image=image&image=label'; expected"),
        ("image", "is asked for 'image'; expected"),
    ],
)
def test_a_column_that_cannot_be_meant_is_refused(save, query, message):
    source = save(train=rows(2))
    with pytest.raises(DataError, match=re.escape(message)):
        read_images(f"{source}?{query}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": (ANIMALS, [0])}, "has no image column; its columns are: label (ClassLabel of 2)"),
        (
            {"image": (PICTURES, [picture(0)]), "age": (NUMBERS, [3]), "label": (datasets.Value("string"), ["ant"])},
            "has no label column; its columns are: image (Image), age (int64), label (string)",
        ),
    ],
)
def test_a_dataset_without_such_columns_is_refused(save, columns, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_images(save(train=columns))


@pytest.mark.parametrize("kind", [ANIMALS, NUMBERS])
def test_every_row_is_used_or_counted(save, kind):
    labels = [1, -1, None, 0, 0, -1, 1]
    pictures = [picture(index) if index not in (4, 5) else None for index in range(7)]
    images = read_images(save(train={"image": (PICTURES, pictures), "label": (kind, labels)}))
    assert names(images) == ["train/0", "train/3", "train/6"]
    assert images.targets.tolist() == [1, 0, 1]
    assert images.image(2).getpixel((0, 0)) == (6, 0, 249)
    assert reasons(images) == {"no image": 2, "no label in label, or -1 for none": 2}
    assert len(images) + sum(reasons(images).values()) == 7
    assert str(images.left_out[1]).endswith("-1 for none, the first is train/1")
    assert str(images.left_out[1]).startswith("2 rows of hfds/")


def test_a_split_without_labels_says_so(save):
    columns = rows(3) | {"label": (ANIMALS, [-1, -1, -1])}
    source = save(train=rows(2), test=columns)
    with pytest.raises(DataError, match="split test, column label, has no label: all 3 rows have none, or -1"):
        read_images(source)
    assert len(read_unlabelled(source)) == 2  # the training half


@pytest.mark.parametrize(
    ("kind", "labels", "found"),
    [(NUMBERS, [0, -2], "-2; expected 0 or more, or -1"), (NUMBERS, [-3, -2], "has no label|-3; expected 0 or more")],
)
def test_labels_that_are_none_are_refused(save, kind, labels, found):
    with pytest.raises(DataError, match=found):
        read_images(save(train=rows(2) | {"label": (kind, labels)}))


def test_every_split_is_there_under_its_own_name(save):
    source = save(train=rows(4), validation=rows(3), test=rows(2), extra=rows(1))
    for split, first in {
        "": "validation/0",
        "val": "validation/0",
        "validation": "validation/0",
        "train": "train/0",
        "test": "test/0",
        "extra": "extra/0",
    }.items():
        assert names(read_images(source, split=split))[0] == first
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, val, ") as refused:
        read_images(source, split="dev")
    assert set(refused.value.message.split("it has: ")[1].split(", ")) == {
        "train",
        "val",
        "validation",
        "test",
        "extra",
    }
    assert names(read_unlabelled(source, split="extra")) == ["extra/0"]


def test_one_split_is_the_whole_and_never_both_halves(save):
    source = save(test=rows(4))
    split = read_split(source, val_share=0.5)
    assert not set(names(split.train)) & set(names(split.val))
    assert len(read_images(source)) == len(read_images(source, split="test")) == len(read_unlabelled(source)) == 4


def test_splits_of_which_none_is_for_training_are_not_trained_on(save):
    source = save(validation=rows(4), test=rows(2))
    with pytest.raises(DataError, match="has no split 'train'; it has: val, "):
        read_split(source)
    assert names(read_images(source))[0] == "validation/0"


def test_images_are_read_by_many_threads_at_once(save):
    count = 200
    images = read_images(save(train=rows(count)))
    shown = [(index, 0, 255 - index) for index in range(count)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [image.getpixel((0, 0)) for image in pool.map(images.image, range(count))] == shown
    batches = list(decoded_batches(images, [PreprocessSpec(image_size=(8, 8))], batch=32, workers=8))
    assert [name for batch in batches for name in batch.filenames] == names(images)
    assert not any(batch.broken for batch in batches)


def test_images_that_cannot_be_read_are_named(save, tmp_path):
    picture(3).save(tmp_path / "there.png")
    broken = [
        {"bytes": b"no image", "path": "x.png"},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
        {"bytes": None, "path": str(tmp_path / "there.png")},
    ]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # without the library's own notes
    source = save(train={"image": (struct, broken), "label": (NUMBERS, [0, 1, 2])})
    images = HubSet(source[5:], "train")
    with pytest.raises(ImageError, match=r"set train/0 is not an image that can be read"):
        images.image(0)
    with pytest.raises(ImageError, match=r"set train/1 \(.*gone\.png\) does not exist"):
        images.image(1)
    assert images.image(2).getpixel((0, 0)) == (3, 0, 252)
    assert Path(images.source).name == "set"


def test_a_label_that_no_data_set_reaches_is_named(save):
    source = save(train={"image": (PICTURES, [picture(0), picture(1)]), "label": (NUMBERS, [0, 300_000_000])})
    with pytest.raises(DataError, match=r"has a label 300,000,000 and no names of classes; expected below 100,000"):
        read_images(source)
