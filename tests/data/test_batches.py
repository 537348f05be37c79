"""Batches of pixels: in order, each image decoded once, broken ones by name, memory bounded."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lifedeploy.data.batches import decoded_batches
from lifedeploy.data.preprocess import to_pixels
from lifedeploy.data.sets import ImageSet
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.spec import PreprocessSpec

SMALL = PreprocessSpec(image_size=(8, 8))
LARGE = PreprocessSpec(image_size=(16, 12))


class Counted(ImageSet):
    """Images that show their number, and know how often they were asked for."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        super().__init__("made", ["even", "odd"], np.arange(count) % 2)
        self.asked: Counter[int] = Counter()
        self._broken = broken
        self._lock = threading.Lock()

    def filename(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int) -> Image.Image:
        with self._lock:
            self.asked[index] += 1
        if index in self._broken:
            raise ImageError(f"{index}.png is not an image that can be read")
        return Image.new("RGB", (20, 20), (index, 0, 0))


def test_batches_come_in_order_whatever_the_threads_do():
    images = Counted(23)
    batches = list(decoded_batches(images, [SMALL], batch=5, workers=4))
    assert [len(batch.filenames) for batch in batches] == [5, 5, 5, 5, 3]
    assert [name for batch in batches for name in batch.filenames] == [f"{index}.png" for index in range(23)]
    shown = np.concatenate([batch.pixels[SMALL][:, 0, 0, 0] for batch in batches])
    assert shown.tolist() == list(range(23))
    assert np.concatenate([batch.targets for batch in batches]).tolist() == images.targets.tolist()


def test_every_spec_gets_its_pixels_from_one_decoding():
    images = Counted(3)
    white = replace(SMALL, mean=(0.5, 0.5, 0.5))
    (batch,) = decoded_batches(images, [SMALL, LARGE, white], batch=4, workers=2)
    assert set(images.asked.values()) == {1}
    assert batch.pixels[LARGE].shape == (3, 16, 12, 3)
    assert batch.pixels[SMALL] is batch.pixels[white]
    assert np.array_equal(batch.pixels[LARGE][1], to_pixels(images.image(1), LARGE))


def test_broken_images_are_named_and_the_others_stay_in_place():
    batches = list(decoded_batches(Counted(8, broken=(1, 4, 5, 6, 7)), [SMALL], batch=4, workers=2))
    first, second = batches
    assert first.filenames == ("0.png", "2.png", "3.png")
    assert first.targets.tolist() == [0, 0, 1]
    assert [(broken.index, broken.filename) for broken in first.broken] == [(1, "1.png")]
    assert "1.png is not an image" in first.broken[0].message
    assert (second.filenames, second.pixels, second.seen) == ((), {}, 4)


def test_processes_share_the_images_out():
    names = [
        [
            name
            for batch in decoded_batches(Counted(10), [SMALL], batch=2, workers=1, rank=rank, world=3)
            for name in batch.filenames
        ]
        for rank in range(3)
    ]
    assert names[1] == ["1.png", "4.png", "7.png"]
    assert sorted(name for part in names for name in part) == sorted(f"{index}.png" for index in range(10))


def test_no_more_is_prepared_than_promised():
    images = Counted(100)
    batches = decoded_batches(images, [SMALL], batch=2, workers=2)
    next(batches)
    batches.close()
    assert len(images.asked) <= 8


def test_a_spec_that_cannot_be_prepared_is_an_error():
    with pytest.raises(UsageError, match="interpolation 'magic' is unknown"):
        list(decoded_batches(Counted(2), [replace(SMALL, interpolation="magic")], batch=2, workers=1))
