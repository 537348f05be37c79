"""What is before a model and behind it: bytes of image files to its input, logits to classes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lifedeploy.data.formats import require_plausible
from lifedeploy.data.preprocess import decode_image, model_input, to_pixels
from lifedeploy.engines.lanes import Array
from lifedeploy.spec import PreprocessSpec
from lifedeploy.targets.session import most_probable


def prepared(files: Sequence[bytes], spec: PreprocessSpec, *, in_graph: bool, dtype: str) -> Array:
    """Image files as they go into the model, by the same code that every other command takes; ``dtype`` is its own.

    Raises:
        ImageError: one of them is no image that is opened; with its place.
    """
    pixels = np.stack([_pixels(f"image {place}", data, spec) for place, data in enumerate(files)])
    return model_input(pixels, spec, in_graph=in_graph).astype(dtype, copy=False)


def best_classes(logits: Array, top: int, names: Sequence[str]) -> tuple[Array, Array]:
    """The names of the ``top`` best classes of each image, in UTF-8, and how probable they are."""
    best, shares = most_probable(logits, top)
    named = [[(names[index] if names else f"class {index}").encode() for index in row] for row in best.tolist()]
    return np.array(named, dtype=np.object_), shares.astype(np.float32)


def _pixels(name: str, data: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
    require_plausible(len(data), name)
    return to_pixels(decode_image(io.BytesIO(data), name), spec)
