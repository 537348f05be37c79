"""The solar-cell photographs of elpv-dataset as an image folder with a fixed, stratified split."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from lifedeploy.writing import atomic_file, atomic_folder

CLASSES = ("defective", "good")  # an image folder numbers classes alphabetically; the head must agree
DEFECTIVE = CLASSES.index("defective")
VAL_SHARE = 0.25
DATA_FOLDER = "elpv_dataset/data/"


@dataclass(frozen=True)
class Photograph:
    """One row of labels.csv and the half of the split it fell into."""

    file: str
    cell_type: str
    probability: float
    split: str

    @property
    def label(self) -> str:
        """The class: a defect probability of one half or more is a defect."""
        return "defective" if self.probability >= 0.5 else "good"

    @property
    def path(self) -> str:
        """Where it lies below images/."""
        return f"{self.split}/{self.label}/{self.file}"


def split_photographs(archive: zipfile.ZipFile, seed: int) -> list[Photograph]:
    """Parse labels.csv (path, probability, type, blank-separated) and split it 75/25 within each probability.

    The file does not say which module a cell was cut from, so cells of one module can fall into both halves.
    """
    text = archive.read(f"{DATA_FOLDER}labels.csv").decode()
    rows = [line.split() for line in text.splitlines() if line.strip()]
    probabilities = [float(probability) for _, probability, _ in rows]
    _, val = train_test_split(range(len(rows)), test_size=VAL_SHARE, stratify=probabilities, random_state=seed)
    in_val = set(val)
    return [
        Photograph(Path(path).name, cell_type, probability, "val" if index in in_val else "train")
        for index, ((path, _, cell_type), probability) in enumerate(zip(rows, probabilities, strict=True))
    ]


def write_images(archive: zipfile.ZipFile, photographs: Sequence[Photograph], out: Path) -> None:
    """Write ``images/`` and ``split.csv``, unless the folder is there and holds this split.

    Raises:
        SystemExit: a folder is there that holds another one.
    """
    images = out / "images"
    if images.exists():
        present = {path.relative_to(images).as_posix() for path in images.glob("*/*/*.png")}
        if present != {photograph.path for photograph in photographs}:
            raise SystemExit(f"error: {images} holds other photographs or another split; choose another --out")
        return
    with atomic_file(out / "split.csv") as table, table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "type", "probability", "label", "split"])
        writer.writerows([p.file, p.cell_type, f"{p.probability:.4f}", p.label, p.split] for p in photographs)
    with atomic_folder(images) as folder:
        for photograph in photographs:
            target = folder / photograph.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(f"{DATA_FOLDER}images/{photograph.file}"))


def counts(photographs: Sequence[Photograph]) -> dict[str, int]:
    """How many photographs each split/class folder holds."""
    return dict(sorted(Counter(f"{photograph.split}/{photograph.label}" for photograph in photographs).items()))


def targets_of(photographs: Sequence[Photograph]) -> NDArray[np.int64]:
    """Class indices, as an image folder numbers them."""
    return np.array([CLASSES.index(photograph.label) for photograph in photographs], dtype=np.int64)
