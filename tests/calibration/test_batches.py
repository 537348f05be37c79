"""Which images, in which batches, under which digest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lifedeploy.calibration.batches import draw
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.errors import DataError, ImageError
from tests.calibration.conftest import make_loose


def names(images):
    return [images.filename(index) for index in range(len(images))]


def test_draws_are_seeded_and_apart(loose):
    images = read_unlabelled(str(loose))
    first, again, other = (draw(images, 10, 6, seed) for seed in (0, 0, 1))
    assert names(first.calibration) == names(again.calibration) != names(other.calibration)
    assert not set(names(first.calibration)) & set(names(first.check))
    assert (len(first.calibration), len(first.check), first.shared) == (10, 6, False)


def test_too_few_images_are_shared_and_said_to_be(loose):
    few = draw(read_unlabelled(str(loose)), 1000, 6, 0)
    assert (len(few.calibration), len(few.check), few.shared) == (24, 6, True)


def test_fewer_are_left_to_check_on_than_asked_for(loose):
    few = draw(read_unlabelled(str(loose)), 21, 6, 0)
    assert (len(few.calibration), len(few.check), few.shared) == (21, 3, False)
    assert not set(names(few.calibration)) & set(names(few.check))


def test_batches_and_a_fixed_one_that_is_filled_up(batches):
    assert [(images.shape, count) for images, count in batches] == [((5, 3, 32, 32), 5)] * 4 + [((4, 3, 32, 32), 4)]
    last, count = list(replace(batches, fixed=True))[-1]
    assert (len(last), count) == (5, 4)
    np.testing.assert_array_equal(last[4], last[3])
    assert len(batches.first(7)) == 7


def test_the_digest_is_of_pixels_and_preparation(batches):
    assert batches.digest() == replace(batches, batch=3).digest()
    assert batches.digest() != batches.first(23).digest()
    darker = replace(batches, preprocess=replace(batches.preprocess, mean=(0.1, 0.1, 0.1)))
    assert batches.digest() != darker.digest()


def test_an_image_that_cannot_be_read_is_an_error(batches, tmp_path):
    folder = make_loose(tmp_path / "bad", 3)
    (folder / "001.png").write_text("no image")
    with pytest.raises(ImageError, match=r"001\.png is not an image that can be read"):
        replace(batches, images=read_unlabelled(str(folder))).digest()


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        read_unlabelled(str(tmp_path))
    with pytest.raises(DataError, match="is no folder"):
        read_unlabelled(str(tmp_path / "nowhere"))


def test_a_picture_beside_folders_of_pictures_could_mean_either(tmp_path):
    make_loose(tmp_path / "train/a", 2)
    make_loose(tmp_path, 1)
    with pytest.raises(DataError, match=r"holds images and folders with images: 000\.png, train/a/00"):
        read_unlabelled(str(tmp_path))


def test_linked_class_folders_are_folders_and_hidden_ones_are_not(tmp_path):
    make_loose(tmp_path / "elsewhere", 3)
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/a").symlink_to(tmp_path / "elsewhere")
    assert len(read_unlabelled(str(tmp_path / "data"))) == 3
    make_loose(tmp_path / "elsewhere/.thumbnails", 2)
    assert len(read_unlabelled(str(tmp_path / "elsewhere"))) == 3


def test_a_folder_of_pictures_has_no_halves_and_a_folder_is_no_picture(tmp_path):
    folder = make_loose(tmp_path / "loose", 2)
    (folder / "looks-like.jpg").mkdir()
    assert len(read_unlabelled(str(folder))) == len(read_unlabelled(str(folder), split="all")) == 2
    with pytest.raises(DataError, match="is one set of images, so it has no split 'val'"):
        read_unlabelled(str(folder), split="val")


def test_class_folders_give_their_training_half_and_a_lone_validation_half_is_taken(tmp_path):
    make_loose(tmp_path / "both/train/a", 3)
    make_loose(tmp_path / "both/val/a", 2)
    assert len(read_unlabelled(str(tmp_path / "both"))) == 3
    assert len(read_unlabelled(str(tmp_path / "both"), split="val")) == 2
    make_loose(tmp_path / "one/val/a", 2)
    assert len(read_unlabelled(str(tmp_path / "one"))) == 2
