"""The solar-cell photographs of elpv-dataset as an ImageFolder with a fixed, stratified split."""

import csv
import io
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from files import PrepareError, write_atomically
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

CLASSES = ("defective", "good")  # ImageFolder numbers classes alphabetically; the head must agree
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


def read_labels(archive: zipfile.ZipFile) -> str:
    """The text of labels.csv."""
    return archive.read(f"{DATA_FOLDER}labels.csv").decode()


def split_photographs(labels: str, seed: int) -> list[Photograph]:
    """Parse labels.csv (path, probability, type, blank-separated) and split it 75/25 within each probability.

    The file does not say which module a cell was cut from, so cells of one module can fall into both halves.
    """
    rows = [line.split() for line in labels.splitlines() if line.strip()]
    probabilities = [float(probability) for _, probability, _ in rows]
    _, val = train_test_split(range(len(rows)), test_size=VAL_SHARE, stratify=probabilities, random_state=seed)
    in_val = set(val)
    return [
        Photograph(Path(path).name, cell_type, probability, "val" if index in in_val else "train")
        for index, ((path, _, cell_type), probability) in enumerate(zip(rows, probabilities, strict=True))
    ]


def split_table(photographs: Sequence[Photograph]) -> str:
    """The split as CSV, one photograph a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "type", "probability", "label", "split"])
    writer.writerows([p.file, p.cell_type, f"{p.probability:.4f}", p.label, p.split] for p in photographs)
    return text.getvalue()


def write_images(archive: zipfile.ZipFile, photographs: Sequence[Photograph], out: Path) -> None:
    """Copy the photographs into an ImageFolder; keep the one that is there when it already is this split."""
    images, table = out / "images", out / "split.csv"
    if images.exists() and not table.exists():
        raise PrepareError(f"{images} exists but {table} does not: not written by this script; choose another --out")
    present = {path.relative_to(images).as_posix() for path in images.glob("*/*/*.png")}
    # The table goes first: an interrupted run then leaves a folder that the next run recognises and completes.
    write_atomically(table, lambda path: path.write_text(split_table(photographs)))
    if present == {photograph.path for photograph in photographs}:
        return
    scratch = out / f".images-{os.getpid()}"
    try:
        for photograph in photographs:
            target = scratch / photograph.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(f"{DATA_FOLDER}images/{photograph.file}"))
        shutil.rmtree(images, ignore_errors=True)
        scratch.replace(images)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def counts(photographs: Sequence[Photograph]) -> dict[str, int]:
    """How many photographs each split/class folder holds."""
    return dict(sorted(Counter(f"{p.split}/{p.label}" for p in photographs).items()))


def probe_subset(photographs: Sequence[Photograph], limit: int | None, seed: int) -> list[Photograph]:
    """The training photographs the head is fitted on: all, or a seeded sample of them."""
    train = [photograph for photograph in photographs if photograph.split == "train"]
    if limit is None or limit >= len(train):
        return train
    chosen = np.random.default_rng(seed).choice(len(train), size=limit, replace=False)
    return [train[index] for index in sorted(chosen)]


def targets_of(photographs: Sequence[Photograph]) -> NDArray[np.int64]:
    """Class indices in ImageFolder's order."""
    return np.array([CLASSES.index(photograph.label) for photograph in photographs], dtype=np.int64)
