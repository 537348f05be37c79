"""scikit-learn's handwritten digits as an image folder: small enough to train a ViT on from scratch in a minute.

    python examples/digits/prepare.py --out DIR

1,797 images of 8×8 pixels, enlarged to 64×64, in ``DIR/train/0…9`` and ``DIR/val/0…9``: four fifths and one fifth of
every digit, drawn with a fixed seed. They are the test set of the UCI "Optical Recognition of Handwritten Digits" data
(CC BY 4.0), which scikit-learn's package contains: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lifedeploy.writing import atomic_folder

SIZE = 64
VAL_SHARE = 0.2
SEED = 0


def write(out: Path) -> tuple[int, int]:
    """Write the images below ``out``, all or none; returns how many are to train and to validate on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    held_out = np.zeros(len(digits.target), dtype=bool)
    generator = np.random.default_rng(SEED)
    for digit in range(10):
        members = generator.permutation(np.flatnonzero(digits.target == digit))
        held_out[members[: round(len(members) * VAL_SHARE)]] = True
    with atomic_folder(out) as folder:
        for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            target = folder / ("val" if held_out[index] else "train") / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
            image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(target / f"digit{index:04d}.png")
    return int((~held_out).sum()), int(held_out.sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="scikit-learn's digits as an image folder.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; if it exists, nothing is done")
    options = parser.parse_args(arguments)
    if options.out.exists():
        print(f"{options.out}/ is there already")
        return 0
    try:
        train, val = write(options.out)
    except ModuleNotFoundError as error:
        print(f"prepare.py: {error.name} is not installed; pip install scikit-learn", file=sys.stderr)
        return 1
    print(f"{options.out}/: {train} images to train on, {val} to validate on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
