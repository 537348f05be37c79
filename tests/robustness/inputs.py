"""Inputs of every kind that is read, made once: images, shards, two runs, an export with engines and a calibration.

And more images than a command is done with at once, as files and in shards.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.robustness import forked

TINY = ("--backbone=test_vit", "--img-size=32")  # timm's own test model at 4 patches
EXPORT = "artifacts/test_vit-life-r0.7-32x32px"
ENGINES = ("fake", "onnxruntime", "openvino")
LAST = "image.png"  # of what is made
MANY = 320
LIST, ROWS = "list.csv", "rows"  # of images, and of what was made of them
CLASSES = ("cat", "cup")
TRAIN = ("train", "--data=data", *TINY, "--weights=random", "--batch=8", "--workers=0", "--log-every=1")


@dataclass(frozen=True)
class Inputs:
    """A folder that cases copy from, and never write to."""

    root: Path

    def copy(self, folder: Path, *names: str) -> None:
        """Copy these files and folders, by their path below the root."""
        for name in names:
            source, target = self.root / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)


def surroundings(folder: Path) -> dict[str, str]:
    """Where a command keeps what is its own: temporary files, caches and settings, all below ``folder``."""
    places = {"TMPDIR": folder / "tmp", "XDG_CACHE_HOME": folder / "cache", "HOME": folder / "home"}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    return {name: str(place) for name, place in places.items()}


def make(root: Path) -> Inputs:
    """Make them all, by the commands that users make them by, unless they are there. Needs :func:`forked.preload`.

    Raises:
        RuntimeError: a command failed, and with it everything that could be said about damaged inputs.
    """
    work = root / "work"
    if (work / LAST).exists():
        return Inputs(work)
    work.mkdir(parents=True)
    draw_images(work / "data")
    draw_shards(work / "shards")
    copy_many(work)
    (work / LIST).write_text("image\n" + "".join(f"{number:03}.png\n" for number in range(12)), encoding="utf-8")
    environment = surroundings(root)
    for argv in (
        (*TRAIN, "--dense", "--epochs=1", "--name=dense"),
        (*TRAIN, "--name=life"),
        ("export", *TINY, "--rho=0.7"),
        *(("build-engine", f"--engine={engine}") for engine in ENGINES),
        ("calibrate", "--data=data", "--images=8", "--check-images=4"),
        score_line(work),
    ):
        require(argv, work, environment)
    shutil.copy(work / EXPORT / "weights.safetensors", work / "weights.safetensors")
    shutil.copy(work / EXPORT / "model.onnx", work / "graph.onnx")
    shutil.copy(work / "data/val/cat/0.png", work / LAST)
    return Inputs(work)


def score_line(root: Path) -> tuple[str, ...]:
    """Score the images of the list that lie in the inputs at ``root``; the same job wherever the rows go."""
    where = (f"--root={root.resolve() / 'many'}", f"--out={ROWS}")
    return ("score", f"{EXPORT}/fake-fp32", LIST, *where, "--format=jsonl", "--part=4")


def require(argv: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a command that has to succeed.

    Raises:
        RuntimeError: it did not.
    """
    require_done(argv, forked.run(forked.Command(argv, folder, environment), seconds=300))


def require_done(argv: tuple[str, ...], ended: forked.Ended) -> None:
    """The same of a command that has ended."""
    if ended.code:
        said = ended.err.decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"lifedeploy {' '.join(argv)} ended with {ended.code}:\n{said}")


def draw_images(root: Path) -> None:
    """Two classes of noise, eight images each to train on and three to measure on."""
    generator = np.random.default_rng(0)
    for half, count in (("train", 8), ("val", 3)):
        for name in CLASSES:
            folder = root / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(generator).save(folder / f"{number}.png")


def draw_shards(root: Path) -> None:
    """The same as two WebDataset shards, with names for the classes."""
    generator = np.random.default_rng(1)
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for shard in range(2):
        members = {}
        for number in range(4):
            members[f"{number}.png"] = png(picture(generator))
            members[f"{number}.cls"] = str(number % 2).encode()
        write_tar(root / f"{shard}.tar", members)


def copy_many(work: Path) -> None:
    """The images to train on again and again: ``many/000.png`` and so on, and the same in ``tars``, 40 in each."""
    drawn = [path.read_bytes() for path in sorted((work / "data/train").rglob("*.png"))]
    members = {f"{number:03}.png": drawn[number % len(drawn)] for number in range(MANY)}
    (work / "many").mkdir()
    (work / "tars").mkdir()
    for name, data in members.items():
        (work / "many" / name).write_bytes(data)
    names = sorted(members)
    for begin in range(0, MANY, 40):
        write_tar(work / f"tars/{begin:03}.tar", {name: members[name] for name in names[begin : begin + 40]})


def picture(generator: np.random.Generator) -> Image.Image:
    """Noise of 40x48 pixels."""
    return Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a file."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A tar file of plain members."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def split_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """A split file as training writes it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "split"), *rows])


def devices(folder: Path) -> dict[str, tuple[int, int]]:
    """A pipe and, where that is allowed, devices of our own below ``folder``: name → (mode and type, device number).

    Their own, since a fault that replaces a device must not be found out on the system's.
    """
    os.mkfifo(folder / "pipe")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7)):  # of Linux's memory devices
        try:
            os.mknod(folder / name, 0o020666, os.makedev(1, minor))
        except (OSError, AttributeError):  # only root may
            continue
    made = [folder / name for name in ("pipe", "null", "zero", "full") if (folder / name).exists()]
    return {path.name: (path.lstat().st_mode, path.lstat().st_rdev) for path in made}
