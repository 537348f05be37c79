"""Which image files are opened, and how their pixels become 8-bit RGB without losing what they show.

A closed list: Pillow would hand PostScript to Ghostscript, and guesses at formats that no data set is kept in. And a
limit on their pixels, by what a file declares, before memory is taken for them.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import IO, Any

import numpy as np
from PIL import Image

from lifedeploy.errors import ImageError
from lifedeploy.limits import MOST_PIXELS, pixel_limit

# By Pillow's names. AVIF is in Pillow from 11.3 on; MPO, several JPEGs in one file, is opened by the door of JPEG.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "JPEG2000", "PPM")
# 8 bits per channel or fewer: what timm does with them is right, and is done.
_EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WORDS = {"I": "integers of more than 16 bits or with a sign", "F": "floating-point numbers"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_TOGETHER = 1 << 20  # pixels of 16 bits that are scaled together

# Pillow warns of half the pixels that it refuses; what is not refused is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What it finds odd in a file that it then reads, or refuses by an error: no line of ours.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ALWAYS = 2**20  # pixels that may be in any picture, whatever the limit for images: libraries test themselves on some
_BYTES_PER_PIXEL = 8  # four channels of 16 bits: no file needs more, whatever it is compressed by
_BESIDE_PIXELS = 64 * 1024**2  # bytes of a file that are none of its pixels: thumbnails, profiles, notes


def opened(source: IO[bytes], name: str) -> Image.Image:
    """An image file as Pillow opens it: its size is known and allowed, nothing of it is decoded.

    Raises:
        ImageError: it has more pixels than are allowed.
        Exception: whatever else Pillow raises.
    """
    limit = pixel_limit()
    # Frames that make an image grow are held against it by Pillow, twice over; so is all that others make in here.
    Image.MAX_IMAGE_PIXELS = max(-(-limit // 2), _ALWAYS)
    try:
        image = Image.open(source, formats=formats())
    except Image.DecompressionBombError as error:
        digits = re.search(r"\d+", str(error))
        raise _too_large(name, int(digits[0]) if digits else limit + 1) from error
    width, height = image.size
    if width * height > limit:
        image.close()
        raise _too_large(name, width * height, f"{width:,} x {height:,} = ")
    return image


def largest_file() -> int:
    """Bytes that a file of one image may have."""
    return _BYTES_PER_PIXEL * pixel_limit() + _BESIDE_PIXELS


def require_plausible(size: int, name: str) -> None:
    """Make sure that a file of ``size`` bytes can be one image: some formats are read into memory as they lie there.

    Raises:
        ImageError: it is larger than the most pixels that are allowed could be.
    """
    if size > largest_file():
        raise ImageError(
            f"{name} is of {size:,} bytes, more than the {largest_file():,} that {pixel_limit():,} pixels could need",
            hint="--max-pixels allows more of them",
        )


def _too_large(name: str, pixels: int, product: str = "") -> ImageError:
    return ImageError(
        f"{name} has {product}{pixels:,} pixels, more than the {pixel_limit():,} that --max-pixels allows",
        hint=f"--max-pixels {pixels} allows them" if pixels <= MOST_PIXELS else None,
    )


@cache
def formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow knows how to open, for ``Image.open``."""
    Image.init()
    # libtiff writes to standard error what Pillow then raises. It is one of the libraries that Pillow is linked to.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """File endings of these formats, in lower case, with their dot."""
    return frozenset(ending.lower() for ending, name in Image.registered_extensions().items() if name in FORMATS)


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as RGB, (H, W, 3) of 8 bits; ``name`` is what errors call it.

    16-bit grey is scaled, so that white stays white: Pillow's own conversion cuts everything above 255 off.

    Raises:
        ImageError: its values have no range that black and white could be told from.
    """
    signed = _SIGNED in _tags(image).get(_SAMPLE_FORMAT, ())  # Pillow reads such numbers as if they had no sign
    if image.mode == "RGB" and not signed:
        image.load()  # Pillow would make a copy, which takes a third of the time that decoding does
        return image
    if image.mode in _EIGHT_BITS and not signed:
        return image.convert("RGB")
    # Pillow keeps 16-bit grey in 32 bits for PGM, and did so for PNG before 11; elsewhere "I" may hold anything.
    sixteen = image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen and not signed:
        return _scaled(image).convert("RGB")
    values = "numbers with a sign" if signed else _WORDS.get(image.mode, "values of more than 8 bits")
    raise ImageError(
        f"{name} is a {image.format} of mode {image.mode} ({values}); expected 8 bits per channel, or 16 bits of grey",
        hint="save it again with 8 bits: only whoever made it knows which of its values are black and white",
    )


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """A TIFF's tags; none of other formats."""
    return image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit grey in 8 bits: the largest value that the file can hold becomes 255, rounded to the nearest."""
    tags = _tags(image)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]  # a TIFF of 12 bits comes in 16, not scaled to them
    white = (1 << bits) - 1
    if bits not in range(9, 17):
        raise ValueError(f"its values are declared to be of {bits} bits")
    image.load()  # numpy takes an error in here for an array of one object
    values = np.asarray(image)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= white:
        raise ValueError(f"its values reach {values.max()}, and {bits} bits end at {white}")
    shades = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    # Pillow turns negatives of 8 bits around, and these not. Where the tag is missing it takes 0 for both.
    if image.format == "TIFF" and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        shades = 255 - shades
    grey = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, values.size, _TOGETHER):  # numpy makes 8 bytes of every index
        part = slice(start, start + _TOGETHER)
        grey.reshape(-1)[part] = shades[values.reshape(-1)[part]]
    return Image.fromarray(grey)
