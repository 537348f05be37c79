"""Training on real photographs: dense, life, and the ablations of the paper; writes ``TRAINING.md`` beside itself.

    python benchmarks/real/prepare.py --out DIR                       once: weights and images
    python benchmarks/real/training.py --out DIR [--image-size 224] [--seeds 0,1,2] [--cells NAME,…] [--list]

Every cell is one ``lifedeploy train``, followed by the hard forward over all validation photographs. Finished cells
are in ``training.json`` and are not run again, so the grid can be stopped (``kill -9`` too: the run that was on
continues) and goes on where it was. Two may run side by side over different seeds: OMP_NUM_THREADS then says what each
may take. The images may not be redistributed and stay in DIR.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import Ledger
from probe import score
from untrained import ClsAttention, RandomScores, with_reducer

from lifedeploy import children
from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import normalise, to_pixels
from lifedeploy.files import now
from lifedeploy.machine import describe
from lifedeploy.model import checkpoint
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule

HERE = Path(__file__).parent
BACKBONE = "vit_small_patch14_dinov2"
WEIGHTS = "dinov2_vits14_elpv.safetensors"
DEFECTIVE = 0  # prepare.py's classes are defective, good
AUGMENTATION = ("--batch", "32", "--scale", "0.9,1", "--vflip", "0.5")
DENSE = ("--dense", "--epochs", "3")
DISTILLED = ("--distill", "--hard", "--backbone-lr", "3e-6")
RATES = (0.7, 0.5)
RANDOM_DRAWS = 3


@dataclass(frozen=True)
class Cell:
    """One run. ``options`` come on top of what all runs share."""

    name: str
    seed: int
    options: tuple[str, ...]
    rates: tuple[float, ...]  # keep rates to evaluate the checkpoint at; none: dense


def grid(seeds: Sequence[int], names: Sequence[str]) -> list[Cell]:
    """All cells, or those with these names, in the order in which they are worth having."""
    main = [cell for seed in seeds for cell in _distilled(seed)] + [cell for seed in seeds for cell in _plain(seed)]
    return [cell for cell in main + _ablations(seeds[0]) if not names or cell.name in names]


def _distilled(seed: int) -> list[Cell]:
    life = [Cell(f"life {rate} distill", seed, ("--rho", str(rate), *DISTILLED), (rate,)) for rate in RATES]
    return [Cell("dense", seed, DENSE, ()), *life]


def _plain(seed: int) -> list[Cell]:
    return [Cell(f"life {rate}", seed, ("--rho", str(rate)), (rate,)) for rate in RATES]


def _ablations(seed: int) -> list[Cell]:
    cells = [Cell("elastic", seed, ("--rho", "0.7", *DISTILLED, "--elastic"), (0.9, 0.8, 0.7, 0.5))]
    cells += [Cell("distill soft", seed, ("--rho", "0.7", "--distill"), (0.7,))]
    cells += [Cell(f"life {rate}", seed, ("--rho", str(rate)), (rate,)) for rate in (0.9, 0.8)]
    cells += [Cell("single stage", seed, ("--rho", "0.7", "--single-stage"), (0.7,))]
    printed = ("--rho", "0.7", "--predictor-lr", "1e-5", "--backbone-lr", "1e-3")
    cells += [Cell("printed rates", seed, printed, (0.7,))]
    cells += [Cell(f"U {u}", seed, ("--rho", "0.7", "--temperature", str(u)), (0.7,)) for u in (0.5, 1.0, 2.0, 3.0)]
    return cells


class Runner:
    """The grid over one folder of prepared data, at one image size."""

    def __init__(self, out: Path, image_size: int, results: Path) -> None:
        self.out = out
        self.size = image_size
        self.ledger = Ledger(results, out / "training.lock", f"{image_size}px")

    def done(self) -> set[str]:
        """Names of the cells that have their numbers."""
        return set(self.ledger.run()["cells"])

    def run(self, cells: Sequence[Cell]) -> None:
        """Run what has not been run."""
        for cell in cells:
            key = f"{cell.name} / seed {cell.seed}"
            if key in self.done():
                continue
            began = time.perf_counter()
            command = self.train(cell)
            folder = self.workspace(cell) / "checkpoints" / _folder(cell)
            report = json.loads((self.out / folder / "report.json").read_text())
            minutes = report["minutes"]
            record: dict[str, Any] = {
                "command": command,
                "minutes": minutes,
                "precision": report["precision"],
            }
            record |= self.dense_record(cell, folder) if cell.name == "dense" else self.life_record(cell, folder)
            record["evaluated_in_minutes"] = round((time.perf_counter() - began) / 60 - minutes, 2)
            self.ledger.update(partial(_enter, key=key, record=record))

    def workspace(self, cell: Cell) -> Path:
        return Path("grid") / f"{self.size}px" / f"seed{cell.seed}"

    def train(self, cell: Cell) -> str:
        """``lifedeploy train``, if it has not ended yet; continues what was stopped."""
        dense = self.workspace(cell) / "checkpoints" / "dense" / "last.safetensors"
        weights = WEIGHTS if cell.name == "dense" else str(dense)
        arguments = ["train", "--data", "images", "--backbone", BACKBONE, "--weights", weights]
        arguments += ["--img-size", str(self.size), *AUGMENTATION, "--seed", str(cell.seed), *cell.options]
        arguments += ["--name", _folder(cell), "-w", str(self.workspace(cell)), "--checkpoint-every", "20"]
        command = "lifedeploy " + shlex.join(arguments)
        print(f"$ {command}", flush=True)
        if not (self.out / self.workspace(cell) / "checkpoints" / _folder(cell) / "report.json").is_file():
            subprocess.run(children.command("lifedeploy", *arguments, "--resume"), cwd=self.out, check=True)
        return command

    def dense_record(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """The dense model itself, and what can be pruned of it without training."""
        model, spec = checkpoint.load(self.out / folder / "last.safetensors")
        untrained: dict[str, Any] = {}
        for rate in RATES:
            schedule = _schedule(spec.schedule, rate)
            identity, _ = checkpoint.load(self.out / folder / "last.safetensors", method="life", schedule=schedule)
            draws = [self.evaluate(with_reducer(model, RandomScores(schedule, draw))) for draw in range(RANDOM_DRAWS)]
            untrained[str(rate)] = {
                "random": {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]},
                "untrained predictor": self.evaluate(identity),
                "EViT scores": self.evaluate(with_reducer(model, ClsAttention(schedule))),
            }
        return {"dense": self.evaluate(model), "untrained": untrained}

    def life_record(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """After the predictor's stage, if there was one, and at the end; at every rate asked for."""
        record: dict[str, Any] = {"rates": {}}
        for rate in cell.rates:
            found = {}
            for name, file in (("stage 1", "after-predictor"), ("end", "last")):
                path = self.out / folder / f"{file}.safetensors"
                if path.is_file():
                    spec = checkpoint.read_spec(path)
                    assert spec is not None
                    found[name] = self.evaluate(checkpoint.load(path, schedule=_schedule(spec.schedule, rate))[0])
            record["rates"][str(rate)] = found
        return record

    def evaluate(self, model: SlimViT) -> dict[str, float]:
        """Accuracy, average precision and loss over the validation photographs."""
        images = read_images(str(self.out / "images"), split="val")
        preprocess = self._preprocess()
        logits = []
        with torch.inference_mode():
            for start in range(0, len(images), 32):
                group = range(start, min(start + 32, len(images)))
                pixels = np.stack([to_pixels(images.image(index), preprocess) for index in group])
                logits.append(model(torch.from_numpy(normalise(pixels, preprocess))).logits.float())
        together = torch.cat(logits)
        measured = score(together.numpy(), images.targets, DEFECTIVE)
        loss = torch.nn.functional.cross_entropy(together, torch.from_numpy(images.targets)).item()
        return {
            "accuracy": measured["accuracy_percent"],
            "average_precision": measured["average_precision_percent"],
            "loss": loss,
        }

    def _preprocess(self) -> Any:
        spec = next(
            spec
            for path in (self.out / "grid" / f"{self.size}px").glob("seed*/checkpoints/dense/last.safetensors")
            if (spec := checkpoint.read_spec(path))
        )
        return replace(spec.preprocess, image_size=(self.size, self.size))


def _enter(run: dict[str, Any], *, key: str, record: dict[str, Any]) -> None:
    run["cells"][key] = record
    run |= {"machine": describe(), "date": now()}


def _folder(cell: Cell) -> str:
    return cell.name.replace(" ", "-")


def _schedule(own: Schedule, rate: float) -> Schedule:
    return Schedule.from_keep_rate(own.patches, own.depth, rate, own.drop_layers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 when every cell asked for has its numbers."""
    parser = argparse.ArgumentParser(description="Training on real photographs.")
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--image-size", type=int, default=224, help="pixels; a multiple of 14 (default: 224)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--cells", default="", help="only cells with these names, as --list shows them")
    parser.add_argument("--results", type=Path, default=HERE / "training.json", help="default: beside this script")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    options = parser.parse_args(arguments)
    cells = grid([int(seed) for seed in options.seeds.split(",")], [name for name in options.cells.split(",") if name])
    if not cells:
        parser.error(f"no cell is called {options.cells!r}: --list shows them")
    if options.list:
        for cell in cells:
            print(f"{cell.name} / seed {cell.seed}: lifedeploy train … {shlex.join(cell.options)}")
        return 0
    if not (options.out / WEIGHTS).is_file():
        parser.error(f"{options.out}/{WEIGHTS} does not exist: run prepare.py --out {options.out} first")
    Runner(options.out.resolve(), options.image_size, options.results).run(cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
