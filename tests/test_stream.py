"""Decoding ahead: in order, each image once, broken ones named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifedeploy.data.images import FolderSet
from lifedeploy.data.preprocess import to_pixels
from lifedeploy.data.stream import stream
from lifedeploy.spec import PreprocessSpec

SMALL = PreprocessSpec(image_size=(16, 16))
LARGE = PreprocessSpec(image_size=(24, 32), crop_pct=1.0)


@pytest.fixture
def images(tmp_path: Path) -> FolderSet:
    generator = np.random.default_rng(0)
    for index in range(11):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    return FolderSet(tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_image_comes_once_in_order_at_every_size(images, workers):
    batches = list(stream(images, range(11), [SMALL, LARGE], batch=4, workers=workers))
    assert [batch.indices for batch in batches] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)]
    assert batches[1].pixels[0].shape == (4, 16, 16, 3) and batches[1].pixels[1].shape == (4, 24, 32, 3)
    assert np.array_equal(batches[2].pixels[1][2], to_pixels(images.image(10), LARGE))


def test_broken_images_are_named_and_left_out(images):
    names = [images.filename(index) for index in (1, 4, 5, 6, 7)]
    for name in names:
        (Path(images.source) / name).write_bytes(b"no image")
    batches = list(stream(images, range(11), [SMALL], batch=4, workers=2))
    assert [batch.indices for batch in batches] == [(0, 2, 3), (), (8, 9, 10)]
    assert [broken.filename for batch in batches for broken in batch.broken] == names
    assert "is not an image that can be read" in batches[0].broken[0].reason
    assert batches[1].pixels == ()


def test_a_reader_that_stops_early_leaves_no_thread_behind(images):
    import threading

    reading = stream(images, range(11), [SMALL], batch=1, workers=2)
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
