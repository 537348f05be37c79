"""Preprocessing is timm's evaluation transform, bit for bit; what is no image is refused in one line."""

from __future__ import annotations

import io
import random
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from lifedeploy.data.preprocess import model_input, normalise, read_image, to_pixels
from lifedeploy.data.samples import PHOTOS, digest, parity_samples, photo_folder
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.spec import PreprocessSpec

HALF = (0.5, 0.5, 0.5)
SPECS = {
    "deit": PreprocessSpec(image_size=(224, 224), crop_pct=0.9),
    "whole": PreprocessSpec(image_size=(224, 224), crop_pct=1.0),
    "vit": PreprocessSpec(image_size=(224, 224), crop_pct=0.9, mean=HALF, std=HALF),
    "bilinear": PreprocessSpec(image_size=(224, 224), crop_pct=0.875, interpolation="bilinear"),
    "nearest": PreprocessSpec(image_size=(96, 96), interpolation="nearest"),
    "lanczos": PreprocessSpec(image_size=(96, 96), interpolation="lanczos"),
    "squash": PreprocessSpec(image_size=(224, 224), crop_mode="squash"),
    "squash-whole": PreprocessSpec(image_size=(192, 256), crop_pct=1.0, crop_mode="squash"),
    "wide": PreprocessSpec(image_size=(192, 256)),
    "tall": PreprocessSpec(image_size=(256, 160), crop_pct=0.95, interpolation="bilinear"),
    "large": PreprocessSpec(image_size=(518, 518), crop_pct=1.0),
}


def by_timm(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """timm's own evaluation transform: (3, H, W)."""
    transform = create_transform(
        input_size=(3, *spec.image_size),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    tensor = transform(image)
    assert isinstance(tensor, torch.Tensor)
    return tensor.numpy()


def by_us(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    return normalise(to_pixels(image, spec)[None], spec)[0]


# --- equal to timm ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_photographs_come_out_as_timm_has_them_bit_for_bit(photo, spec):
    image = read_image(photo_folder() / photo)
    ours, theirs = by_us(image, spec), by_timm(image, spec)
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape == (3, *spec.image_size)
    assert ours.tobytes() == theirs.tobytes()


def test_images_of_any_size_come_out_as_timm_has_them():
    generator, noise = random.Random(0), np.random.default_rng(0)
    for _ in range(80):
        width, height = generator.randint(9, 120), generator.randint(9, 120)
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        side = generator.choice([16, 32, 48])
        spec = PreprocessSpec(
            image_size=generator.choice([(side, side), (side, 32), (17, side)]),
            crop_pct=generator.choice([0.8, 0.875, 0.9, 0.95, 1.0]),
            crop_mode=generator.choice(["center", "squash"]),
            interpolation=generator.choice(["bilinear", "bicubic"]),
        )
        assert by_us(image, spec).tobytes() == by_timm(image, spec).tobytes(), (image.size, spec)


def test_the_spec_uses_timms_own_words():
    assert {"crop_pct", "crop_mode", "interpolation", "mean", "std"} <= set(asdict(SPECS["deit"]))


# --- shapes and types -------------------------------------------------------------------------------------------


def test_pixels_are_uint8_with_channels_last():
    pixels = to_pixels(read_image(photo_folder() / PHOTOS[0]), SPECS["wide"])
    assert (pixels.shape, pixels.dtype) == ((192, 256, 3), np.uint8)


def test_normalise_by_hand():
    spec = PreprocessSpec(image_size=(1, 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = np.array([[[[0, 51, 255], [255, 102, 0]]]], dtype=np.uint8)  # (1, 1, 2, 3)
    expected = [[[-0.2, 1.8]], [[0.0, 0.8]], [[0.35, -0.15]]]
    assert normalise(pixels, spec)[0] == pytest.approx(np.array(expected), abs=1e-6)
    assert normalise(pixels, spec).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("in_graph", [True, False])
def test_the_graph_takes_pixels_where_it_normalises_itself(in_graph):
    spec = PreprocessSpec(image_size=(8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = model_input(pixels, spec, in_graph=in_graph)
    expected = pixels if in_graph else normalise(pixels, spec)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found", "allowed"),
    [
        ({"interpolation": "random"}, "interpolation 'random' is unknown", "nearest, bilinear, bicubic, lanczos"),
        ({"crop_mode": "border"}, "crop mode 'border' is not supported", "center, squash"),
    ],
)
def test_a_spec_that_is_not_supported_is_refused(changes, found, allowed):
    image = Image.new("RGB", (20, 20))
    with pytest.raises(UsageError) as refusal:
        to_pixels(image, PreprocessSpec(image_size=(16, 16), **changes))
    assert found in refusal.value.message and allowed in refusal.value.message


def png(size: int = 300) -> bytes:
    """A PNG of several IDAT chunks."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def second_chunk_destroyed(content: bytes) -> bytes:
    at = content.index(b"IDAT", content.index(b"IDAT") + 4)
    return content[:at] + b"\0\1\2\3" + content[at + 4 :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image at all",
        b"\x89PNG\r\n\x1a\n",
        png()[: len(png()) // 2],
        second_chunk_destroyed(png()),
        (photo_folder() / PHOTOS[0]).read_bytes()[:4000],
    ],
    ids=["empty", "text", "signature-only", "truncated-png", "destroyed-png", "truncated-jpeg"],
)
def test_what_is_no_whole_image_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as refusal:
        read_image(path)
    assert refusal.value.message.startswith(f"{path} is not an image that can be read: ")
    assert "\n" not in refusal.value.message


def test_a_missing_image_is_refused(tmp_path):
    path = tmp_path / "none.jpg"
    with pytest.raises(ImageError, match=re.escape(f"image {path} does not exist")):
        read_image(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is a folder; expected a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / "image.tiff"
    original = read_image(photo_folder() / PHOTOS[0]).resize((40, 30)).convert(mode)
    original.save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


# --- samples ----------------------------------------------------------------------------------------------------


def test_samples_are_photographs_and_noise_at_batch_one_and_three_and_always_the_same():
    spec = PreprocessSpec(image_size=(32, 48))
    samples = parity_samples(spec)
    assert [(sample.kind, sample.pixels.shape) for sample in samples] == [
        ("photographs", (1, 32, 48, 3)),
        ("noise", (1, 32, 48, 3)),
        ("photographs", (3, 32, 48, 3)),
        ("noise", (3, 32, 48, 3)),
    ]
    names = [digest(sample.pixels) for sample in samples]
    assert len(set(names)) == 4
    assert names == [digest(sample.pixels) for sample in parity_samples(spec)]


def test_photographs_of_a_batch_are_all_different():
    photographs = [
        sample for sample in parity_samples(PreprocessSpec(image_size=(32, 32))) if sample.kind == "photographs"
    ]
    images = [digest(image) for sample in photographs for image in sample.pixels]
    assert len(set(images)) == len(images) == 4


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_a_static_batch_is_the_only_one(batch):
    samples = parity_samples(PreprocessSpec(image_size=(16, 16)), batch)
    assert [(sample.kind, sample.batch) for sample in samples] == [("photographs", batch), ("noise", batch)]
