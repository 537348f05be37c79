"""From an image file to the model's input, exactly as timm's evaluation transform does it, with Pillow and numpy only.

One function for parity, prediction, calibration and evaluation, so that a deployed engine sees what training saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lifedeploy.data.formats import as_rgb, formats, opened, require_plausible
from lifedeploy.errors import ImageError, LifedeployError, UsageError
from lifedeploy.files import LFS_POINTER
from lifedeploy.reading import reason, require_regular
from lifedeploy.spec import PreprocessSpec

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_REACH = 3  # pixels to either side that the widest of these filters looks at
_WHOLE = 2**25  # pixels, 128 MiB: up to here an image is resized as a whole, whatever is cut out of it
_LONG = 2**20  # pixels of a side that is: a filter has 50 bytes for each of them
_GAP = 256  # beyond, a side that is to shrink by more than twice that is averaged to as many times its length first


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        ImageError: as :func:`decode_image`.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | IO[bytes], name: str) -> Image.Image:
    """An image file, or the bytes of one, as RGB; ``name`` is what errors call it.

    Raises:
        ImageError: missing, no regular file, or no image that can be decoded; one of more pixels than are allowed
            (:func:`lifedeploy.limits.limit_pixels`), or whose values cannot be shown in 8 bits.
    """
    if not isinstance(source, Path):
        return _decoded(source, name)
    try:
        require_plausible(require_regular(source, ImageError), name)
        with source.open("rb") as file:
            return _decoded(file, name)
    except OSError as error:
        raise ImageError(f"{name} cannot be opened: {reason(error)}") from error
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ImageError(f"image {name} does not exist") from error
        raise ImageError(error.message.replace(str(source), name), hint=error.hint) from error


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    try:
        with opened(file, name) as image:
            return as_rgb(image, name)
    except LifedeployError:
        raise
    except Exception as error:  # of a damaged file Pillow raises what it runs into: SyntaxError, KeyError, struct.error
        file.seek(0)
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ImageError(f"{name} is a Git LFS pointer, not the image", hint="git lfs pull") from error
        why = reason(error)
        if isinstance(error, UnidentifiedImageError):  # whose text has the address of an object in memory
            why = f"its content is none of {', '.join(formats())}, as far as Pillow reads them"
        raise ImageError(f"{name} is not an image that can be read: {why}") from error


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
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(
        _resized(image, size, (left, top, left + width, top + height), _INTERPOLATION[spec.interpolation])
    )


def _resized(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int], filter_: Image.Resampling
) -> Image.Image:
    """``window`` (left, top, right, bottom) of the image in ``size`` (width, height); black where it reaches beyond.

    As timm does it, all of the image is resized, and the window cut out: bit for bit the same is only had that way,
    since Pillow takes the part to resize in single precision, and does rows or columns first by what is cheaper. Of a
    long thin image that would be millions of rows for the few in the window. Beyond a limit only these are computed, of
    the pixels that they rest on; what comes out may differ from timm's by as much as rounding twice does.
    """
    inside = max(window[0], 0), max(window[1], 0), min(window[2], size[0]), min(window[3], size[1])
    kept = inside[2] - inside[0], inside[3] - inside[1]
    most = max(_WHOLE, 8 * kept[0] * kept[1])
    # One side is resized after the other: in between there are pixels of both sizes.
    between = max(size[0] * image.height, image.width * size[1])
    if max(size[0] * size[1], between) <= most and max(image.size) <= _LONG:
        return image.resize(size, filter_).crop(window)
    across = _source(inside[0], inside[2], image.width, size[0])
    down = _source(inside[1], inside[3], image.height, size[1])
    part = image.crop((across.start, down.start, across.stop, down.stop))
    box = (across.low, down.low, across.high, down.high)
    if kept[0] * part.height > most:  # squashed out of a column: fewer rows first, whatever Pillow would do first
        part = part.resize((part.width, kept[1]), filter_, (0, box[1], part.width, box[3]), _GAP)
        box = (box[0], 0, box[2], kept[1])
    visible = part.resize(kept, filter_, box, _GAP)
    if inside == window:
        return visible
    left, top = window[0] - inside[0], window[1] - inside[1]
    return visible.crop((left, top, left + window[2] - window[0], top + window[3] - window[1]))


@dataclass(frozen=True)
class _Span:
    """Pixels of an image along one side, and what is to be resized of them, counted from ``start``."""

    start: int
    stop: int
    low: float
    high: float


def _source(begin: int, end: int, have: int, want: int) -> _Span:
    """What the places ``begin`` to ``end`` of a side of ``want`` pixels are made of, where it had ``have``."""
    scale = have / want
    low, high = begin * scale, end * scale
    reach = _REACH * max(scale, 1.0) + 1
    start, stop = max(int(low - reach), 0), min(math.ceil(high + reach), have)
    return _Span(start, stop, max(low - start, 0.0), min(high - start, float(stop - start)))


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
