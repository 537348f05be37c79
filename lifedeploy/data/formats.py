"""Which image files are opened, and how their pixels become 8-bit RGB without losing what they show.

A closed list: Pillow would hand PostScript to Ghostscript, and guesses at formats that no data set is kept in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from lifedeploy.errors import ImageError

# By Pillow's names. AVIF is in Pillow from 11.3 on; MPO, several JPEGs in one file, is opened by the door of JPEG.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "JPEG2000", "PPM")
# 8 bits per channel or fewer: what timm does with them is right, and is done.
_EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WORDS = {"I": "integers of more than 16 bits or with a sign", "F": "floating-point numbers"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2

# A large picture is read; Pillow refuses the ones that are twice as large by an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@cache
def formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow knows how to open, for ``Image.open``."""
    Image.init()
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
    if image.mode in _EIGHT_BITS and not signed:
        return image.convert("RGB")
    # Pillow keeps 16-bit grey in 32 bits for PGM, and did so for PNG before 11; elsewhere "I" may hold anything.
    sixteen = image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen and not signed:
        return _scaled(image).convert("RGB")
    found = "numbers with a sign" if signed else _WORDS.get(image.mode, "values of more than 8 bits")
    raise ImageError(
        f"{name} is a {image.format} of mode {image.mode} ({found}); expected 8 bits per channel, or 16 bits of grey",
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
    image.load()  # numpy takes an error in here for an array of one object
    values = np.asarray(image).astype(np.uint32)
    if values.size and int(values.max()) > white:
        raise ValueError(f"its values reach {values.max()}, and {bits} bits end at {white}")
    grey = (values * 255 + white // 2) // white
    # Pillow turns negatives of 8 bits around, and these not. Where the tag is missing it takes 0 for both.
    if image.format == "TIFF" and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey.astype(np.uint8))
