"""Which files are opened as images, and that pixels of other than 8 bits are scaled or refused, never cut off."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lifedeploy.data.formats import FORMATS, endings, formats
from lifedeploy.data.preprocess import decode_image, read_image
from lifedeploy.errors import ImageError

VALUES = np.array([[0, 1, 128, 129, 300, 32768, 65406, 65407, 65535]])
EXPECTED = [round(value / 257) for value in VALUES[0]]
BLACK_IS_ZERO, WHITE_IS_ZERO = 1, 0
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(
    data: bytes,
    size: tuple[int, int],
    bits: int,
    *,
    photo: int = 1,
    sample: int = 1,
    order: str = "<",
    channels: int = 1,
) -> bytes:
    """An uncompressed TIFF, written by hand: Pillow does not write all of these kinds."""
    width, height = size
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photo, 273: 0, 277: channels, 278: height}
    tags |= {279: len(data), 339: sample}
    arrays = [tag for tag in (258, 339) if channels > 2]  # a value per channel: too long for the entry itself
    behind = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    for tag, value in sorted(tags.items()):
        if tag in arrays:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, behind + len(extra))
            extra += struct.pack(f"{order}{channels}H", *[value] * channels)
        else:
            value = behind + 6 * len(arrays) * (channels > 2) * channels // 3 if tag == 273 else value
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + struct.pack(f"{order}I", 0) + extra + data


def png16(pixels: NDArray[np.integer], colour_type: int) -> bytes:
    """A PNG of 16 bits per channel, (H, W, C)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_image(io.BytesIO(content), "it"))


# --- scaled -----------------------------------------------------------------------------------------------------

SIZE = (VALUES.shape[1], 1)
LITTLE, BIG = VALUES.astype("<u2").tobytes(), VALUES.astype(">u2").tobytes()
GREY = Image.fromarray(VALUES.astype(np.uint16))


@pytest.mark.parametrize(
    "content",
    [
        png16(VALUES[..., None], 0),
        tiff(LITTLE, SIZE, 16),
        tiff(BIG, SIZE, 16, order=">"),
        saved(GREY, "TIFF", compression="tiff_lzw"),
        saved(GREY, "JPEG2000", irreversible=False),
        b"P5 %d 1 65535\n" % SIZE[0] + BIG,
        b"P2 %d 1 65535\n" % SIZE[0] + b" ".join(b"%d" % value for value in VALUES[0]),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-lzw", "jpeg2000", "pgm", "pgm-plain"],
)
def test_sixteen_bits_of_grey_are_scaled_and_rounded(content):
    pixels = decoded(content)
    assert pixels.shape == (1, SIZE[0], 3)
    assert [row.tolist() for row in pixels[0].T] == [EXPECTED] * 3


def test_white_is_zero_is_turned_around():
    assert decoded(tiff(LITTLE, SIZE, 16, photo=WHITE_IS_ZERO))[0, :, 0].tolist() == [255 - v for v in EXPECTED]
    eight = decoded(tiff(bytes([0, 100, 255]), (3, 1), 8, photo=WHITE_IS_ZERO))  # as Pillow does it for 8 bits
    assert eight[0, :, 0].tolist() == [255, 155, 0]


def test_twelve_bits_are_scaled_by_twelve_bits():
    values = [0, 8, 9, 2048, 4086, 4095]
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(9, "big")
    assert decoded(tiff(packed, (6, 1), 12))[0, :, 0].tolist() == [round(v / 4095 * 255) for v in values]


def test_a_pgm_of_ten_bits_is_scaled_by_them():
    values = np.array([0, 2, 511, 1023])
    content = b"P5 4 1 1023\n" + values.astype(">u2").tobytes()
    assert decoded(content)[0, :, 0].tolist() == [round(v / 1023 * 255) for v in values]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_are_right_to_a_step(channels):
    """Pillow reads these into 8 bits itself, by their upper byte."""
    shown = np.stack([VALUES, VALUES[:, ::-1], VALUES], axis=-1)
    grey_and_alpha = np.stack([VALUES, np.full_like(VALUES, 65535)], axis=-1)
    with_alpha = np.concatenate([shown, np.full((*VALUES.shape, 1), 65535)], axis=-1)
    pixels = {2: grey_and_alpha, 3: shown, 4: with_alpha}[channels]
    exact = np.repeat(VALUES[..., None], 3, axis=-1) if channels == 2 else shown
    contents = [png16(pixels, {2: 4, 3: 2, 4: 6}[channels])]
    if channels == 3:
        contents += [tiff(shown.astype(f"{o}u2").tobytes(), SIZE, 16, photo=2, order=o, channels=3) for o in "<>"]
    for content in contents:
        found = decoded(content).astype(int)
        assert np.abs(found - exact / 257).max() <= 1
        assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_are_what_pillow_and_timm_make_of_them(mode):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise).convert(mode), "TIFF")
    assert np.array_equal(decoded(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiff(VALUES.astype("<f4").tobytes(), SIZE, 32, sample=FLOAT), "TIFF of mode F (floating-point numbers)"),
        (b"Pf\n%d 1\n-1.0\n" % SIZE[0] + VALUES.astype("<f4").tobytes(), "PPM of mode F (floating-point numbers)"),
        (tiff(VALUES.astype("<u4").tobytes(), SIZE, 32), "TIFF of mode I (integers of more than 16 bits or"),
        (tiff(VALUES.astype("<i4").tobytes(), SIZE, 32, sample=SIGNED), "TIFF of mode I (numbers with a sign)"),
        (tiff(LITTLE, SIZE, 16, sample=SIGNED), "TIFF of mode I (numbers with a sign)"),
        (
            tiff(bytes(index % 256 for index in range(SIZE[0])), SIZE, 8, sample=SIGNED),
            "TIFF of mode L (numbers with a sign)",
        ),
    ],
    ids=["float-tiff", "pfm", "unsigned-32", "signed-32", "signed-16", "signed-8"],
)
def test_values_without_black_and_white_are_refused(tmp_path, content, found):
    path = tmp_path / "depth.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError) as refused:
        read_image(path)
    assert refused.value.message.startswith(f"{path} is a {found}")
    assert refused.value.message.endswith("expected 8 bits per channel, or 16 bits of grey")
    assert "save it again with 8 bits" in (refused.value.hint or "")


@pytest.mark.parametrize("bits", [10, 14])
def test_bits_that_pillow_does_not_know_are_refused(bits):
    with pytest.raises(ImageError, match=r"its content is none of JPEG, .*, as far as Pillow reads them"):
        decoded(tiff(bytes(100), (4, 4), bits))


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path, kind, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(saved(Image.new("RGB", (16, 16)), kind))

    def opened(*_: object) -> None:
        raise AssertionError(f"{kind} was handed to Pillow")

    monkeypatch.setitem(Image.OPEN, kind, (opened, None))
    with pytest.raises(ImageError, match=r"image\.png is not an image that can be read: its content is none of JPEG"):
        read_image(path)


def test_endings_are_those_of_the_formats_that_are_opened():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".jp2", ".mpo"} <= endings()
    assert not endings() & {".eps", ".ps", ".pdf", ".ico", ".npy", ".txt", ""}
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings())
    assert set(formats()) <= set(FORMATS) <= {*formats(), "MPO", "AVIF"}


def test_every_format_is_read(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 30, 40))
    for kind in FORMATS:
        if kind not in Image.SAVE:
            continue
        path = tmp_path / f"image.{kind.lower()}"
        path.write_bytes(saved(image, kind))
        assert np.abs(np.asarray(read_image(path)).astype(int) - (200, 30, 40)).max() < 8, kind


# --- no image at all --------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_a_pointer_in_the_place_of_an_image_says_so(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(POINTER)
    for source, name in ((path, str(path)), (io.BytesIO(POINTER), "x.tar/photo")):
        with pytest.raises(ImageError) as refused:
            decode_image(source, name)
        assert refused.value.message == f"{name} is a Git LFS pointer, not the image"
        assert refused.value.hint == "git lfs pull"


def test_whatever_pillow_raises_is_an_image_error():
    """Its decoder of AVIF raises RuntimeError."""
    if "AVIF" not in formats():
        pytest.skip("this Pillow has no AVIF")
    whole = saved(Image.effect_noise((64, 64), 80).convert("RGB"), "AVIF")
    with pytest.raises(ImageError, match="it is not an image that can be read: Failed to decode"):
        head = whole.index(b"mdat") + 4
        decoded(whole[:head] + bytes(len(whole) - head))


def test_damaged_files_are_refused_or_read_and_nothing_else():
    generator = np.random.default_rng(5)
    whole = [
        saved(Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)), kind) for kind in formats()
    ]
    refused = 0
    for content in whole * 30:
        damaged = bytearray(content)
        for at in generator.integers(0, min(len(damaged), 200), 4):
            damaged[at] = generator.integers(0, 256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about what it finds in them
                assert decoded(bytes(damaged)).shape[2] == 3
        except ImageError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 50


def test_a_name_is_a_path_or_whatever_the_caller_says():
    with pytest.raises(ImageError, match=r"image nowhere/x\.png does not exist"):
        read_image(Path("nowhere/x.png"))
