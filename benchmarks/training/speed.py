"""How fast and how large training is; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python -m benchmarks.training.speed [--backbone deit_t] [--batch 16] [--images 96] [--rounds 6] [--bf16] [--loops …]

Images per second of ``lifedeploy train``, for every stage of every method by its published recipe, against a bare loop
over the same model in the same form: timm's data set and transform, torch's AdamW and autocast, the method's forward
pass and loss (and its teacher's), nothing else. The two take turns, an epoch each; the ratio is within a round. Every
turn of ``train`` is a process of its own, whose first epoch warms up and whose second one counts; its peak memory is
that of the stage.

Images are noise, written to a temporary folder: decoding and augmenting them is part of both loops.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import command_line, lifedeploy, new_parser, number, publish, record_of, source, table
from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.bench.stats import median_interval
from lifedeploy.model import backbones
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.distillation import Teacher
from lifedeploy.training.log import read_log
from lifedeploy.training.recipes import settled
from lifedeploy.training.stages import freeze, parameter_groups, plan
from lifedeploy.training.start import load_start

CLASSES = 10
TARGET = 0.95


@dataclass(frozen=True)
class Loop:
    """One stage of a method, for two epochs."""

    name: str
    settings: Mapping[str, Any]  # of training, beyond what all loops share


def loops() -> list[Loop]:
    """Every stage of every method that trains."""
    found = []
    for name in methods.names():
        method = methods.get(name)
        if not method.stages:
            continue
        recipe = settled({"method": name}, None)
        if len(method.stages) == 1 or recipe.single_stage:
            found.append(Loop(name, {"method": name, "epochs": 2}))
            continue
        for number_of, stage in enumerate(method.stages, start=1):
            epochs = {f"stage{other}_epochs": 2 * (other == number_of) for other in (1, 2)}
            found.append(Loop(f"{name}, {stage.name}", {"method": name, **epochs}))
    return found


def write_images(root: Path, count: int) -> None:
    """Noise, in class folders."""
    generator = np.random.default_rng(0)
    for half, number_of in (("train", count), ("val", CLASSES)):
        for index in range(number_of):
            folder = root / half / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")


class Bare:
    """What anyone would write, of timm's model; or over a model of ours, in the form of its stage."""

    def __init__(self, config: TrainConfig, *, ours: bool) -> None:
        self.config = config
        self.teacher: Teacher | None = None
        self.model: Any
        if ours:
            classes = [f"class{index}" for index in range(CLASSES)]
            self.model = load_start(config, classes, Workspace(Path(config.data))).model
            self.model.reducer.equip(self.model.adapted)
            (self.stage,) = plan(config)
            freeze(self.model, self.stage, config.frozen)
            self.teacher = Teacher(self.model, config) if config.distill else None
            groups: Any = parameter_groups(self.model, config)
            data = timm.create_model(backbones.timm_name(config.backbone))
        else:
            data = self.model = timm.create_model(backbones.timm_name(config.backbone), num_classes=CLASSES).train()
            groups = self.model.parameters()
        settings = resolve_model_data_config(data)
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
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, weight_decay=0.05, foreach=True)

    def loss(self, pixels: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Of a batch."""

        def criterion(logits: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(logits.float(), targets)

        if isinstance(self.model, timm.models.VisionTransformer):
            return criterion(self.model(pixels))
        output = self.model(pixels, soft=self.stage.soft, progress=progress)
        loss: Tensor = self.model.reducer.labelled(output.logits, output.loss_inputs, criterion)
        if self.teacher is not None:
            taught = self.teacher.loss(output, self.teacher(pixels), self.model.adapted.final_norm)
            loss = self.config.distill_labels * loss + taught
        penalty = self.model.reducer.penalty(output.loss_inputs, output.logits.detach().argmax(dim=1) == targets)
        return loss if penalty is None else loss + penalty

    def epoch(self) -> float:
        """Images per second, of the second of two epochs."""
        steps = len(self.loader)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        began, images = time.perf_counter(), 0
        for step, (pixels, targets) in enumerate(self.loader):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss = self.loss(pixels, targets, (steps + step) / (2 * steps))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            images += len(targets)
        return images / (time.perf_counter() - began)


def train(config: TrainConfig, images: int, work: Path) -> tuple[float, float]:
    """Images per second of the second epoch, and the process's peak memory in MiB."""
    file = work / "run.toml"
    file.write_text(config.but(log_every=images // config.batch).to_toml(), encoding="utf-8")
    usage = lifedeploy("train", "--config", file, "--overwrite", "--name", "run", "-w", work)
    rows = [row for row in read_log(work / "checkpoints" / "run" / "log.csv") if row.kind == "train"]
    return rows[-1].images_per_s, usage.peak_mib


def markdown(record: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    options = record["options"]
    cells = []
    for name, row in record["speed"].items():
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        speeds = (number(row[of], ".2f") for of in ("images_per_s", "bare"))
        cells.append((name, *speeds, ratio, number(row.get("peak_mib"), ".0f")))
    lines = [
        "# Training: speed and memory",
        "",
        f"{source(record, 'torch', 'timm')} Other work shared the machine.",
        "",
        f"{options['backbone']}, batch {options['batch']}, {options['precision']}, {options['images']} images an "
        f"epoch, {options['rounds']} rounds in turn; every method by its published recipe. To be reached: {TARGET} of "
        "a bare loop over the same model in the same form.",
        "",
        *table("loop | img/s | bare loop, img/s | of it [95 %] | peak MiB", cells),
        "",
        "Where tokens leave in training (`evit`, `topk`, `tome`, `evo-vit`, `random`) there is less to compute; where",
        "they are masked every token stays, and every layer after the first drop has an additive mask on its keys.",
        "`dynamicvit` has a teacher, whose forward pass is part of both loops. Life's predictor alone has no gradients",
        "of weights to compute, and none at all up to layer 4. The bare loop of `dense` is over timm's own model.",
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
    parser.add_argument("--loops", default="", help="only those in whose names one of these words is, with commas")
    given = parser.parse_args(arguments)
    words = [word for word in given.loops.split(",") if word]
    chosen = [loop for loop in loops() if not words or any(word in loop.name for word in words)]
    options = {name: getattr(given, name) for name in ("backbone", "batch", "images", "rounds")}
    options["precision"] = "bf16" if given.bf16 else "fp32"
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_images(work / "data", given.images)
        shared = {"data": str(work / "data"), "weights": "random", "workers": given.workers}
        shared |= {name: options[name] for name in ("backbone", "batch", "precision")}
        for loop in chosen:
            config = settled(shared | dict(loop.settings), None)
            bare = Bare(config, ours=config.slims)
            bare.epoch()  # warms up
            speeds, others, peak = [], [], 0.0
            for index in range(given.rounds):
                for ours in (True, False) if index % 2 else (False, True):
                    if ours:
                        speed, peak = train(config, given.images, work)
                        speeds.append(speed)
                    else:
                        others.append(bare.epoch())
            ratio = median_interval([speed / other for speed, other in zip(speeds, others, strict=True)])
            rows[loop.name] = {
                "images_per_s": float(np.median(speeds)),
                "bare": float(np.median(others)),
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "peak_mib": peak,
            }
            print(loop.name, rows[loop.name], flush=True)
    record = record_of(command_line("training.speed", arguments)) | {"options": options, "speed": rows}
    publish(given.out, "results", record, markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
