"""What ``prepare.py`` wrote, small enough to carry to a GPU: at most 50 MiB.

    python -m benchmarks.real.pack --out DIR --packed FOLDER

The backbone's weights go in half precision, the photographs as grey JPEG of the model's input size, in the highest
quality that fits; labels and split are their folders. FOLDER is what ``grid.py`` takes as ``--out``. The images may not
be redistributed: FOLDER is for your own machines.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import new_parser
from benchmarks.real.convert import DEPLOY_PX
from benchmarks.real.prepare import WEIGHTS
from lifedeploy.model.raw import read_header, read_tensors, write_tensors
from lifedeploy.writing import atomic_folder

MOST_BYTES = 50 * 2**20
QUALITIES = range(95, 25, -5)  # of JPEG; below, the cracks that are to be seen are gone


def packed_weights(path: Path, out: Path) -> None:
    """Weights in half precision, which are read as any others."""
    tensors: dict[str, Tensor] = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            half = tensor.half()
            if not bool(torch.isfinite(half).all()):
                raise SystemExit(f"error: {name} of {path} does not fit half precision")
            tensors[name] = half
    write_tensors(out, tensors, read_header(path))


def encoded(path: Path, quality: int) -> bytes:
    """A photograph as the model sees it, grey, as JPEG."""
    image = Image.open(path).convert("L").resize((DEPLOY_PX, DEPLOY_PX), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def fitting(paths: Sequence[Path], room: int) -> tuple[int, Mapping[Path, bytes]]:
    """All photographs in the highest quality that fits into so many bytes.

    Raises:
        SystemExit: none does.
    """
    for quality in QUALITIES:
        images = {path: encoded(path, quality) for path in paths}
        if sum(map(len, images.values())) <= room:
            return quality, images
    raise SystemExit(
        f"error: {len(paths)} photographs do not fit into {room / 2**20:.1f} MiB at quality {QUALITIES[-1]}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, whole or not at all."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--packed", type=Path, required=True, help="folder to write, which is not there yet")
    given = parser.parse_args(arguments)
    if not (given.out / WEIGHTS).is_file():
        parser.error(f"{given.out}/{WEIGHTS} does not exist: run prepare.py --out {given.out} first")
    if given.packed.exists():
        parser.error(f"{given.packed} is there already: name a new folder, or delete it")
    paths = sorted((given.out / "images").glob("*/*/*.png"))
    with atomic_folder(given.packed) as folder:
        packed_weights(given.out / WEIGHTS, folder / WEIGHTS)
        quality, images = fitting(paths, MOST_BYTES - (folder / WEIGHTS).stat().st_size)
        for path, content in images.items():
            target = (folder / path.relative_to(given.out)).with_suffix(".jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    total = sum(path.stat().st_size for path in given.packed.rglob("*") if path.is_file())
    print(f"{given.packed}: {len(images)} photographs at quality {quality}, {total / 2**20:.1f} MiB in all")


if __name__ == "__main__":
    main()
