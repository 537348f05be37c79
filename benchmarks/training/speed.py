"""How fast and how large training is; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python benchmarks/training/speed.py [--backbone deit_t] [--batch 16] [--images 96] [--rounds 6] [--bf16]

1. Images per second of ``lifedeploy train`` against a bare loop: timm's data set, transform and model, torch's AdamW
   and autocast, nothing else. The two take turns, an epoch each, in one process; the ratio is within a round. Then the
   same for lives: the soft forward of each stage, against the bare dense loop.
2. Peak memory of stage 1 (predictor) and stage 2 (backbone), each in a process of its own.

Images are noise, written to a temporary folder: decoding and augmenting them is part of both loops.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch.utils.data import DataLoader

from lifedeploy import children
from lifedeploy.artifact import Workspace
from lifedeploy.bench.stats import median_interval
from lifedeploy.data.images import read_split
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe
from lifedeploy.model import backbones, weights
from lifedeploy.model.weights import ModelRequest
from lifedeploy.training import feeds, loop
from lifedeploy.training.config import TrainConfig
from lifedeploy.training.loop import Job, Trainer
from lifedeploy.training.stages import Stage, plan

HERE = Path(__file__).parent
CLASSES = 10


def write_images(root: Path, count: int) -> None:
    """Noise, in class folders."""
    generator = np.random.default_rng(0)
    for half, number in (("train", count), ("val", CLASSES)):
        for index in range(number):
            folder = root / half / f"class{index % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")


class Bare:
    """What anyone would write."""

    def __init__(self, config: TrainConfig, data: Path, precision: str) -> None:
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
        images = create_dataset("", root=str(data), split="train", is_training=True, transform=transform)
        self.loader = DataLoader(
            images, batch_size=config.batch, shuffle=True, drop_last=True, num_workers=feeds.workers(config)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.05, foreach=True)
        self.precision = precision

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


class Ours:
    """The trainer, one epoch of one stage at a time, validation and checkpoints aside."""

    def __init__(self, config: TrainConfig, folder: Path, precision: str) -> None:
        split = read_split(config.data)
        method = "dense" if config.dense else "life"
        request = ModelRequest(
            config.backbone, keep_rate=0.7, method=method, weights="random", num_classes=CLASSES, new_head=True
        )
        loaded = weights.load(request, Workspace(folder))
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(
            Job(loaded.model, loaded.spec, config, split.train, split.val, folder, ""), self.accelerator
        )
        self.stage: Stage = plan(config)[0]
        loop.freeze(self.trainer.model, self.stage)
        self.optimizer = torch.optim.AdamW(loop.parameter_groups(self.trainer.model, config), foreach=True)
        self.rates = loop._cosine(self.optimizer, 1000, config)
        self.model = self.accelerator.prepare_model(self.trainer.model)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)

    def epoch(self) -> float:
        """Images per second."""
        self.trainer._advance(step=0)
        began = time.perf_counter()
        self.trainer._epoch(self.stage, 0, self.model, self.prepared, self.rates)
        steps = self.trainer.steps
        return steps * self.trainer.config.batch / (time.perf_counter() - began)


def memory(config: TrainConfig, stage: str) -> float:
    """Peak memory of an epoch of one stage, in MiB, in a process of its own."""
    order = json.dumps({"config": config.to_dict(), "stage": stage})
    done = subprocess.run(children.python(__file__, "--child"), input=order, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def child() -> None:
    """Train as told on standard input, and print the peak."""
    order = json.load(sys.stdin)
    stages = {"stage1_epochs": int(order["stage"] == "predictor"), "stage2_epochs": int(order["stage"] == "backbone")}
    config = TrainConfig.from_dict(order["config"] | stages)
    with tempfile.TemporaryDirectory() as folder:
        Ours(config, Path(folder), order["config"]["precision"]).epoch()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def report(data: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    machine, options = data["machine"], data["options"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "timm"))
    lines = [
        "# Training: speed and memory",
        "",
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['cores']} cores; {versions}; "
        f"{data['date'][:10]}. Other work shared the machine.",
        "",
        f"Command: `{data['command']}` ({options['backbone']}, batch {options['batch']}, {options['precision']}, "
        f"{options['images']} images an epoch, {options['rounds']} rounds in turn).",
        "",
        "| loop | img/s | over the bare dense loop [95 %] | target |",
        "|---|---|---|---|",
    ]
    targets = {"dense": "≥ 0.95"}
    for name, row in data["speed"].items():
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if "ratio" in row else "–"
        lines.append(f"| {name} | {row['images_per_s']:.2f} | {ratio} | {targets.get(name, '–')} |")
    lines += ["", "Lives are trained with the soft forward: every token stays, and every layer after the fourth has an"]
    lines += [
        "additive mask on its keys. Stage 1 has no gradients of weights to compute, and none at all up to layer 4."
    ]
    lines += ["", "| peak memory of one epoch | MiB |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in data["memory_mib"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Speed and memory of training.")
    parser.add_argument("--backbone", default="deit_t")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bf16", action="store_true", help="under BF16 autocast")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child()
        return 0
    precision = "bf16" if options.bf16 else "fp32"
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        write_images(data, options.images)
        shared = TrainConfig(
            backbone=options.backbone, data=str(data), batch=options.batch, precision=precision, weights="random"
        )
        lives = {
            "life, stage 1 (predictor)": shared.but(stage2_epochs=0),
            "life, stage 2 (backbone)": shared.but(stage1_epochs=0),
        }
        configs = {"dense": shared.but(dense=True), **lives}
        contenders: dict[str, Any] = {"bare dense loop": Bare(shared, data, precision)}
        for number, (name, config) in enumerate(configs.items()):
            contenders[name] = Ours(config, Path(temporary) / str(number), precision)
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(options.rounds + 1):
            order = list(contenders) if round_ % 2 else list(reversed(contenders))
            for name in order:
                speed = contenders[name].epoch()
                if round_:  # the first round warms up
                    samples[name].append(speed)
            print({name: values[-1:] for name, values in samples.items()}, flush=True)
        bare = samples["bare dense loop"]
        speeds: dict[str, Any] = {"bare dense loop": {"images_per_s": float(np.median(bare)), "samples": bare}}
        for name in configs:
            ratio = median_interval([own / other for own, other in zip(samples[name], bare, strict=True)])
            own = {"images_per_s": float(np.median(samples[name])), "samples": samples[name]}
            speeds[name] = own | {"ratio": ratio.median, "low": ratio.low, "high": ratio.high}
        peaks = {
            label: memory(lives[label], stage) for label, stage in zip(lives, ("predictor", "backbone"), strict=True)
        }
    result = {
        "command": "python benchmarks/training/speed.py " + " ".join(sys.argv[1:]),
        "options": vars(options) | {"precision": precision},
        "machine": describe(),
        "date": now(),
        "speed": speeds,
        "memory_mib": peaks,
    }
    write_json(HERE / "results.json", result)
    (HERE / "RESULTS.md").write_text(report(result), encoding="utf-8")
    print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
