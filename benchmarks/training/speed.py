"""How fast and how large training is; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python -m benchmarks.training.speed [--backbone deit_t] [--batch 16] [--images 96] [--rounds 6] [--bf16]

Images per second of ``lifedeploy train`` against a bare loop: timm's data set, transform and model, torch's AdamW and
autocast, nothing else. The two take turns, an epoch each; the ratio is within a round. Then the same for lives: the
soft forward of each stage, against the bare dense loop. Every turn of ``train`` is a process of its own, whose first
epoch warms up and whose second one counts; its peak memory is that of the stage.

Images are noise, written to a temporary folder: decoding and augmenting them is part of both loops.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch.utils.data import DataLoader

from benchmarks.common import command_line, lifedeploy, new_parser, number, publish, record_of, source, table
from lifedeploy.bench.stats import median_interval
from lifedeploy.model import backbones
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.log import read_log

CLASSES = 10
BARE = "bare dense loop"
# Loop → options of `train` beyond those that all share.
LOOPS = {
    "dense": ("--dense", "--epochs", "2"),
    "life, stage 1 (predictor)": ("--stage1-epochs", "2", "--stage2-epochs", "0"),
    "life, stage 2 (backbone)": ("--stage1-epochs", "0", "--stage2-epochs", "2"),
}
TARGETS = {"dense": "≥ 0.95"}


def write_images(root: Path, count: int) -> None:
    """Noise, in class folders."""
    generator = np.random.default_rng(0)
    for half, number_of in (("train", count), ("val", CLASSES)):
        for index in range(number_of):
            folder = root / half / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")


class Bare:
    """What anyone would write."""

    def __init__(self, config: TrainConfig) -> None:
        self.model = timm.create_model(backbones.timm_name(config.backbone), num_classes=CLASSES).train()
        settings = resolve_model_data_config(self.model)
        transform = create_transform(
            settings["input_size"],
            is_training=True,
            scale=config.scale,
            ratio=config.ratio,
            color_jitter=0.0,
            interpolation=settings["interpolation"],
            mean=settings["mean"],
            std=settings["std"],
        )
        images = create_dataset("", root=config.data, split="train", is_training=True, transform=transform)
        self.loader = DataLoader(
            images, batch_size=config.batch, shuffle=True, drop_last=True, num_workers=config.workers
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.05, foreach=True)
        self.precision = config.precision

    def epoch(self) -> float:
        """Images per second."""
        began, images = time.perf_counter(), 0
        for pixels, targets in self.loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                loss = torch.nn.functional.cross_entropy(self.model(pixels), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            images += len(targets)
        return images / (time.perf_counter() - began)


def train(config: TrainConfig, images: int, options: Sequence[str], work: Path) -> tuple[float, float]:
    """Images per second of the second epoch, and the process's peak memory in MiB."""
    words = ["train", "--data", config.data, "--backbone", config.backbone, "--weights", "random", "--overwrite"]
    words += ["--batch", str(config.batch), "--workers", str(config.workers), "--precision", config.precision]
    words += ["--name", "run", "-w", str(work)]
    usage = lifedeploy(*words, "--log-every", images // config.batch, *options)
    rows = [row for row in read_log(work / "checkpoints" / "run" / "log.csv") if row.kind == "train"]
    return rows[-1].images_per_s, usage.peak_mib


def markdown(record: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    options = record["options"]
    cells = []
    for name, row in record["speed"].items():
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if "ratio" in row else "–"
        cells.append((name, number(row["images_per_s"], ".2f"), ratio, TARGETS.get(name, "–")))
    lines = [
        "# Training: speed and memory",
        "",
        f"{source(record, 'torch', 'timm')} Other work shared the machine.",
        "",
        f"{options['backbone']}, batch {options['batch']}, {options['precision']}, {options['images']} images an "
        f"epoch, {options['rounds']} rounds in turn.",
        "",
        *table("loop | img/s | over the bare dense loop [95 %] | target", cells),
        "",
        "Lives are trained with the soft forward: every token stays, and every layer after the fourth has an",
        "additive mask on its keys. Stage 1 has no gradients of weights to compute, and none at all up to layer 4.",
        "",
        *table("peak memory | MiB", ((name, f"{mib:.0f}") for name, mib in record["memory_mib"].items())),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in turns, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--backbone", default="deit_t")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images")
    parser.add_argument("--bf16", action="store_true", help="under BF16 autocast")
    given = parser.parse_args(arguments)
    speeds: dict[str, list[float]] = {name: [] for name in (BARE, *LOOPS)}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_images(work / "data", given.images)
        config = TrainConfig(
            backbone=given.backbone,
            data=str(work / "data"),
            batch=given.batch,
            precision="bf16" if given.bf16 else "fp32",
            workers=given.workers,
        )
        bare = Bare(config)
        bare.epoch()  # warms up
        for index in range(given.rounds):
            for name in speeds if index % 2 else reversed(speeds):
                if name == BARE:
                    speed = bare.epoch()
                else:
                    speed, peaks[name] = train(config, given.images, LOOPS[name], work)
                speeds[name].append(speed)
            print({name: values[-1] for name, values in speeds.items()}, flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for name, values in speeds.items():
        rows[name] = {"images_per_s": float(np.median(values)), "samples": values}
        if name != BARE:
            ratio = median_interval([ours / other for ours, other in zip(values, speeds[BARE], strict=True)])
            rows[name] |= {"ratio": ratio.median, "low": ratio.low, "high": ratio.high}
    options = {name: getattr(given, name) for name in ("backbone", "batch", "images", "rounds")}
    options["precision"] = config.precision
    record = record_of(command_line("training.speed", arguments)) | {"options": options}
    record |= {"speed": rows, "memory_mib": peaks}
    publish(given.out, "results", record, markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
