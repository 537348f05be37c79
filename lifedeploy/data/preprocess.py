"""From an image file to the model's input, exactly as timm's evaluation transform does it, with Pillow and numpy only.

One function for parity, prediction, calibration and evaluation, so that a deployed engine sees what training saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lifedeploy.data.formats import as_rgb, formats
from lifedeploy.errors import ImageError, UsageError
from lifedeploy.files import LFS_POINTER, is_lfs_pointer
from lifedeploy.spec import PreprocessSpec

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        ImageError: missing, or no image that can be decoded, or one whose values cannot be shown in 8 bits.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | IO[bytes], name: str) -> Image.Image:
    """An image file, or the bytes of one, as RGB; ``name`` is what errors call it.

    Raises:
        ImageError: missing, or no image that can be decoded, or one whose values cannot be shown in 8 bits.
    """
    try:
        with Image.open(source, formats=formats()) as image:
            return as_rgb(image, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"image {name} does not exist") from error
    except Exception as error:  # of a damaged file Pillow raises what it runs into: SyntaxError, KeyError, struct.error
        if _is_pointer(source):
            raise ImageError(f"{name} is a Git LFS pointer, not the image", hint="git lfs pull") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose text has the address of an object in memory
            reason = f"its content is none of {', '.join(formats())}, as far as Pillow reads them"
        raise ImageError(f"{name} is not an image that can be read: {reason}") from error


def _is_pointer(source: Path | IO[bytes]) -> bool:
    if isinstance(source, Path):
        return source.is_file() and is_lfs_pointer(source)
    source.seek(0)
    return source.read(len(LFS_POINTER)) == LFS_POINTER


def to_pixels(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Resize and crop: RGB image → (H, W, 3) uint8.

    Raises:
        UsageError: the spec names a crop mode or interpolation that is not supported.
    """
    if spec.interpolation not in _INTERPOLATION:
        raise UsageError(f"interpolation {spec.interpolation!r} is unknown; there are: {', '.join(_INTERPOLATION)}")
    height, width = spec.image_size
    target = (int(height / spec.crop_pct), int(width / spec.crop_pct))
    if spec.crop_mode == "squash":
        size = (target[1], target[0])
    elif spec.crop_mode == "center":
        size = _cover(image.size, target)
    else:
        raise UsageError(f"crop mode {spec.crop_mode!r} is not supported; there are: center, squash")
    resized = image.resize(size, _INTERPOLATION[spec.interpolation])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def _cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) scaled so that the shorter side fits ``target`` (height, width); timm's rounding."""
    width, height = size
    if target[0] == target[1]:
        short = target[0]
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short
    ratio = min(height / target[0], width / target[1])
    return round(width / ratio), round(height / ratio)


def normalise(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32."""
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def model_input(pixels: NDArray[np.uint8], spec: PreprocessSpec, *, in_graph: bool) -> NDArray[np.generic]:
    """What the graph takes: the pixels themselves where it normalises, else normalised ones."""
    return pixels if in_graph else normalise(pixels, spec)
