"""Pixels: how many an image may have, and that few are computed where few are kept."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from lifedeploy import limits
from lifedeploy.data import preprocess
from lifedeploy.data.preprocess import decode_image, read_image, to_pixels
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.limits import limit_pixels, require_within
from lifedeploy.spec import PreprocessSpec
from lifedeploy.training.loader import TrainingImages
from tests.data.test_preprocess import by_timm, by_us
from tests.pictures import OneImage

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
SPECS = st.builds(
    PreprocessSpec,
    image_size=st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.integers(1, 40).map(lambda extent: (extent,) * 2),
    crop_pct=st.floats(0.3, 1.0),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70)) | st.tuples(st.integers(1, 3), st.integers(1, 900))


@pytest.fixture(autouse=True)
def _limit(monkeypatch):
    """What a test sets is gone after it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("LIFEDEPLOY_MAX_PIXELS", "1")
    monkeypatch.delenv("LIFEDEPLOY_MAX_PIXELS")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_of(width: int, height: int, *, kind: int = 0, data: bytes | None = None) -> bytes:
    """A PNG of 8-bit grey that says it is of that size, and of zeros unless told."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    data = zlib.compress(bytes((width + 1) * height), 9) if data is None else data
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# --- long thin images -------------------------------------------------------------------------------------------


@given(SIZES, SPECS, st.booleans())
def test_images_of_any_shape_are_prepared_as_timm_does_it(size, spec, turned):
    image = noise(*(size[::-1] if turned else size))
    assert by_us(image, spec).tobytes() == by_timm(image, spec).tobytes()


def between_two(begin: int, end: int, have: int, want: int) -> np.ndarray:
    """Which of the places ``begin`` to ``end`` of a side of ``want`` pixels lie on the edge of two of its ``have``."""
    middles = (np.arange(begin, end) + 0.5) * have / want
    return np.abs(middles - np.round(middles)) < 1e-3


@given(SIZES, SPECS, st.booleans())
@example((2, 3), PreprocessSpec(image_size=(1, 10), crop_pct=1.0, interpolation="nearest"), True)  # all on an edge
def test_computing_only_what_is_kept_differs_by_a_rounding(size, spec, turned):
    image = noise(*(size[::-1] if turned else size)).point(lambda value: 96 + value // 4)  # nothing overshoots
    resized, asked = preprocess._resized, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "_resized", lambda *of: asked.append(of) or resized(*of))
        whole = to_pixels(image, spec).astype(int)
        patch.setattr(preprocess, "_LONG", 0)
        part = to_pixels(image, spec).astype(int)
        patch.setattr(preprocess, "_WHOLE", 0)
        rows_first = to_pixels(image, spec).astype(int)
    assert whole.shape == part.shape == rows_first.shape
    if spec.interpolation == "nearest":  # on the edge of two pixels either is the nearest
        _, (width, height), (left, top, right, bottom), _ = asked[0]
        sure = ~between_two(top, bottom, image.height, height)[:, None] & ~between_two(left, right, image.width, width)
        assert (whole[sure] == part[sure]).all()
        assert (whole[sure] == rows_first[sure]).all()
        return
    assert np.abs(whole - part).max() <= 2
    assert np.abs(whole - rows_first).max() <= 2


def test_a_crop_larger_than_the_image_is_black_around_it_either_way(monkeypatch):
    spec = PreprocessSpec(image_size=(30, 20), crop_pct=1.5)
    whole = to_pixels(noise(40, 70), spec)
    monkeypatch.setattr(preprocess, "_LONG", 0)
    assert np.abs(to_pixels(noise(40, 70), spec).astype(int) - whole).max() <= 1
    assert not whole[0].any() and whole[15].any()


LONG = """
import re, sys, time
from pathlib import Path
from lifedeploy.data.preprocess import read_image, to_pixels
from lifedeploy.spec import PreprocessSpec
began = time.perf_counter()
for mode in ("center", "squash"):
    spec = PreprocessSpec(image_size=(224, 224), crop_mode=mode)
    assert to_pixels(read_image(Path(sys.argv[1])), spec).shape == (224, 224, 3)
seconds = time.perf_counter() - began
print(seconds, int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (60_000, 3), (1, 20_000), (1, 1)])
def test_a_long_thin_image_takes_neither_time_nor_memory(tmp_path, size):
    path = tmp_path / "long.png"
    path.write_bytes(png_of(*size))
    done = subprocess.run([sys.executable, "-c", LONG, path], capture_output=True, text=True, check=True, timeout=60)
    seconds, mib = map(float, done.stdout.split())
    assert seconds < 1
    assert mib < 500


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_long_thin_image_can_be_trained_on(size, tiny):
    from lifedeploy.training.config import TrainConfig

    images = TrainingImages(OneImage(noise(*size)), PreprocessSpec(image_size=(32, 32)), TrainConfig())
    began = time.perf_counter()
    pixels, target, index = images[0, 0]
    assert isinstance(pixels, torch.Tensor) and (pixels.shape, target, index) == ((3, 32, 32), 0, 0)
    assert time.perf_counter() - began < 5


# --- the limit --------------------------------------------------------------------------------------------------


def test_an_image_of_more_pixels_than_are_allowed_is_refused_by_its_header(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_of(20_000, 10_000, data=b"nothing"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as refused:
        read_image(path)
    assert refused.value.message == f"{path} has 200,000,000 pixels, more than the 178,956,970 that --max-pixels allows"
    assert refused.value.hint == "--max-pixels 200000000 allows them"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_the_limit_is_what_was_asked_for(tmp_path):
    path = tmp_path / "small.png"
    path.write_bytes(png_of(40, 30))
    limit_pixels(1199)
    with pytest.raises(ImageError, match=r"small\.png has 40 x 30 = 1,200 pixels, more than the 1,199 that --max"):
        read_image(path)
    limit_pixels(500)
    with pytest.raises(
        ImageError, match=r"small\.png has 40 x 30 = 1,200 pixels, more than the 500 that --max-pixels allows"
    ):
        read_image(path)
    limit_pixels(1200)
    assert read_image(path).size == (40, 30)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow warns at half of what it refuses
def test_a_higher_limit_than_pillows_lets_larger_images_in():
    limit_pixels(200_000_000)
    with pytest.raises(ImageError, match="is not an image that can be read"):  # nothing is in it
        decode_image(io.BytesIO(png_of(20_000, 10_000, data=b"nothing")), "x")


class Read(torch.utils.data.Dataset):
    """Says what reading an image came to."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        try:
            return str(decode_image(io.BytesIO(png_of(40, 30)), "x").size)
        except ImageError as error:
            return error.message


def test_processes_that_decode_have_the_limit_too():
    limit_pixels(100)
    (said,) = DataLoader(Read(), num_workers=1)
    assert "1,200 pixels, more than the 100" in said[0]
    asked = "from lifedeploy.limits import pixel_limit; print(pixel_limit())"
    started = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert started.stdout == "100\n"


@pytest.mark.parametrize("count", [0, -1, 2**31, 10**30])
def test_a_limit_that_is_none_is_refused(count):
    with pytest.raises(UsageError, match="pixels is not allowed; expected 1 to 2,147,483,647"):
        limits.limit_pixels(count)
    assert "LIFEDEPLOY_MAX_PIXELS" not in os.environ


@pytest.mark.parametrize("text", ["", "many", "²", "-5", "0", "1e9", "99999999999"])
def test_an_environment_without_a_number_is_refused(text, monkeypatch):
    monkeypatch.setenv("LIFEDEPLOY_MAX_PIXELS", text)
    with pytest.raises(UsageError, match=r"LIFEDEPLOY_MAX_PIXELS is .*; expected 1 to 2147483647"):
        decode_image(io.BytesIO(png_of(4, 3)), "x")


def test_numbers_have_a_range():
    require_within(5, 5, "images")
    require_within(np.int64(5), 5, "images")
    require_within(None, 5, "images", optional=True)
    for value in (0, -1, 6, 2.0, 2.5, float("nan"), float("inf"), 10**40, "4", None):
        with pytest.raises(UsageError, match="images are not allowed"):
            require_within(value, 5, "images")


# --- files that are none ----------------------------------------------------------------------------------------


def test_a_file_of_more_bytes_than_its_pixels_could_need_is_not_read(tmp_path):
    """Pillow reads all of a WebP at once; holes take no place on the disk."""
    path = tmp_path / "holes.webp"
    path.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
    os.truncate(path, 2**40)
    with pytest.raises(ImageError, match=r"holes\.webp is of 1,099,511,627,776 bytes, more than the"):
        read_image(path)


def test_pipes_devices_and_links_in_a_circle_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    for name, said in (
        ("pipe", "is a pipe; expected a regular file"),
        ("link", "is a pipe; expected a regular file"),
        ("device", "is a device; expected a regular file"),
        ("circle", "cannot be opened: Too many levels of symbolic links"),
    ):
        with pytest.raises(ImageError, match=f"{name}.jpg {said}"):
            read_image(tmp_path / f"{name}.jpg")


def test_names_that_no_file_can_have_are_refused():
    for name, said in (("a\0b.jpg", r"a\\x00b\.jpg cannot be opened"), ("x" * 300 + ".jpg", "File name too long")):
        with pytest.raises(ImageError, match=said):
            read_image(Path(name))


@pytest.mark.parametrize("kind", ["text", "profile", "frames"])
def test_small_files_that_grow_when_read_are_refused_or_read(kind):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    whole = png_of(4, 4)
    bomb = zlib.compress(bytes(80 * 1024**2), 9)
    buffer = io.BytesIO()
    noise(8, 8).save(buffer, "GIF", save_all=True, append_images=[noise(8, 8, seed) for seed in range(200)])
    content = {
        "text": whole[:33] + chunk(b"zTXt", b"note\0\0" + bomb) + whole[33:],
        "profile": whole[:33] + chunk(b"iCCP", b"icc\0\0" + bomb) + whole[33:],
        "frames": buffer.getvalue(),
    }[kind]
    try:
        assert max(decode_image(io.BytesIO(content), "x").size) <= 8
    except ImageError as error:
        assert error.message.startswith("x is not an image that can be read: ")
