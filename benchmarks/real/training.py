"""Training on real photographs: dense, life, and the ablations of the paper; writes ``TRAINING.md`` beside itself.

    python -m benchmarks.real.prepare --out DIR                       once: weights and images
    python -m benchmarks.real.training --out DIR [--image-size 224] [--seeds 0,1,2] [--cells NAME,…] [--list]

Every cell is one ``lifedeploy train``, then an ``export`` at each keep rate and one ``evaluate`` of all of them in ONNX
Runtime, on all validation photographs. Finished cells are in ``training.json`` and are not run again, so the grid can
be stopped (``kill -9`` too: the run that was on continues) and goes on where it was. Two may run side by side over
different seeds: OMP_NUM_THREADS then says what each may take. The images may not be redistributed and stay in DIR.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Results, lifedeploy, new_parser, read_json, report_of
from benchmarks.real.photographs import DEFECTIVE
from benchmarks.real.prepare import WEIGHTS
from benchmarks.real.report import markdown
from lifedeploy.files import now
from lifedeploy.machine import describe
from lifedeploy.training.log import LogRow, read_log

HERE = Path(__file__).parent
BACKBONE = "vit_small_patch14_dinov2"
BATCH = 32
AUGMENTATION = ("--batch", str(BATCH), "--scale", "0.9,1", "--vflip", "0.5")
DENSE = ("--dense", "--epochs", "3")
DISTILLED = ("--distill", "--hard", "--backbone-lr", "3e-6")
PRINTED = ("--predictor-lr", "1e-5", "--backbone-lr", "1e-3")
RATES = (0.7, 0.5)
STAGES = {"stage 1": "after-predictor", "end": "last"}  # file of the weights then


@dataclass(frozen=True)
class Cell:
    """One run. ``options`` come on top of what all runs share."""

    name: str
    seed: int
    options: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()  # keep rates to evaluate the checkpoint at; none: dense

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.name} / seed {self.seed}"


def life(name: str, seed: int, rate: float, *options: str) -> Cell:
    """A run at a keep rate, evaluated at it."""
    return Cell(name, seed, ("--rho", str(rate), *options), (rate,))


def grid(seeds: Sequence[int], names: Sequence[str]) -> list[Cell]:
    """All cells, or those with these names, in the order in which they are worth having."""
    cells = []
    for seed in seeds:
        cells.append(Cell("dense", seed, DENSE))
        cells += [life(f"life {rate} distill", seed, rate, *DISTILLED) for rate in RATES]
    cells += [life(f"life {rate}", seed, rate) for seed in seeds for rate in RATES]
    first = seeds[0]
    cells.append(Cell("elastic", first, ("--rho", "0.7", *DISTILLED, "--elastic"), (0.9, 0.8, 0.7, 0.5)))
    cells.append(life("distill soft", first, 0.7, "--distill"))
    cells += [life(f"life {rate}", first, rate) for rate in (0.9, 0.8)]
    cells.append(life("single stage", first, 0.7, "--single-stage"))
    cells.append(life("printed rates", first, 0.7, *PRINTED))
    cells += [life(f"U {u}", first, 0.7, "--temperature", str(u)) for u in (0.5, 1.0, 2.0, 3.0)]
    return [cell for cell in cells if not names or cell.name in names]


def checkpoint(image_size: int, seed: int, cell: str, stage: str = "end") -> Path:
    """Where a cell's weights are below DIR."""
    folder = Path("grid") / f"{image_size}px" / f"seed{seed}" / "checkpoints" / cell.replace(" ", "-")
    return folder / f"{STAGES[stage]}.safetensors"


def trained(
    options: Sequence[str], weights: str, seed: int, image_size: int, folder: Path, out: Path
) -> dict[str, Any]:
    """``lifedeploy train`` over ``weights`` into a run's folder below DIR, if it has not ended yet; continues what was
    stopped.

    Returns:
        Its ``command``, ``minutes`` (by the clock), ``training_minutes`` (at the median speed of each stage: runs are
        stopped, and share the machine), ``precision`` and ``peak_mib`` of memory.
    """
    words = ["train", "--data", "images", "--backbone", BACKBONE, "--weights", weights]
    words += ["--img-size", str(image_size), *AUGMENTATION, "--seed", str(seed), *options]
    words += ["--name", folder.name, "-w", str(folder.parents[1]), "--checkpoint-every", "20"]
    if not (out / folder / "report.json").is_file():
        lifedeploy(*words, "--resume", folder=out)
    report = read_json(out / folder / "report.json")
    return {
        "command": f"lifedeploy {shlex.join(words)}",
        "minutes": report["minutes"],
        "training_minutes": training_minutes(read_log(out / folder / "log.csv")),
        "precision": report["precision"],
        "peak_mib": report.get("peak_memory_mib"),
    }


def training_minutes(rows: Sequence[LogRow]) -> float:
    """How long the steps of a log take at the median speed of their stages."""
    minutes = 0.0
    for stage in dict.fromkeys(row.stage for row in rows):
        lines = [row for row in rows if row.stage == stage and row.kind == "train"]
        before = max((row.step for row in rows if row.step < lines[0].step and row.stage != stage), default=0)
        images = (lines[-1].step - before) * BATCH
        minutes += images / float(np.median([row.images_per_s for row in lines])) / 60
    return minutes


def train(cell: Cell, image_size: int, out: Path) -> dict[str, Any]:
    """The run of a cell."""
    weights = WEIGHTS if cell.name == "dense" else str(checkpoint(image_size, cell.seed, "dense"))
    folder = checkpoint(image_size, cell.seed, cell.name).parent
    return trained(cell.options, weights, cell.seed, image_size, folder, out)


def evaluate(models: Mapping[str, tuple[Path, float]], out: Path) -> dict[str, dict[str, float]]:
    """Checkpoints at keep rates → accuracy and average precision in percent, and loss.

    ``dense`` among the names is the dense graph of its export.
    """
    with tempfile.TemporaryDirectory() as temporary:
        graphs = []
        for index, (name, (weights, rate)) in enumerate(models.items()):
            export = Path(temporary) / str(index)
            words = ("export", "--backbone", BACKBONE, "--weights", weights, "--rho", rate, "--no-parity")
            lifedeploy(*words, "-o", export, folder=out)
            graphs.append(export / ("dense.onnx" if name == "dense" else "model.onnx"))
        rows = report_of("evaluate", *graphs, "--data", "images", "--split", "val", folder=out)["rows"]
    scores = {}
    for name, row in zip(models, rows, strict=True):
        precision = row["accuracy"]["per_class"][DEFECTIVE]["average_precision"]
        scores[name] = {"accuracy": 100 * row["accuracy"]["top1"], "average_precision": 100 * precision}
        scores[name]["loss"] = row["accuracy"]["loss"]
    return scores


def measure(cell: Cell, image_size: int, out: Path) -> dict[str, Any]:
    """Train a cell and evaluate it at its rates, after each stage; a dense one also pruned without training."""
    record = train(cell, image_size, out)
    end = checkpoint(image_size, cell.seed, cell.name)
    if not cell.rates:
        scores = evaluate({"dense": (end, RATES[0])} | {str(rate): (end, rate) for rate in RATES}, out)
        record["dense"] = scores.pop("dense")
        return record | {"untrained": {rate: {"untrained predictor": score} for rate, score in scores.items()}}
    paths = {stage: checkpoint(image_size, cell.seed, cell.name, stage) for stage in STAGES}
    models = {
        f"{rate} {stage}": (path, rate)
        for rate in cell.rates
        for stage, path in paths.items()
        if (out / path).is_file()
    }
    rates: dict[str, dict[str, Any]] = {str(rate): {} for rate in cell.rates}
    for name, score in evaluate(models, out).items():
        rate, _, stage = name.partition(" ")
        rates[rate][stage] = score
    return record | {"rates": rates}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that has no numbers yet."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--image-size", type=int, default=224, help="pixels; a multiple of 14 (default: 224)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--cells", default="", help="only cells with these names, as --list shows them")
    parser.add_argument("--results", type=Path, default=HERE / "training.json", help="default: beside this script")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    given = parser.parse_args(arguments)
    cells = grid([int(seed) for seed in given.seeds.split(",")], [name for name in given.cells.split(",") if name])
    if not cells:
        parser.error(f"no cell is called {given.cells!r}: --list shows them")
    if given.list:
        for cell in cells:
            print(f"{cell.key}: lifedeploy train … {shlex.join(cell.options)}")
        return
    if not (given.out / WEIGHTS).is_file():
        parser.error(f"{given.out}/{WEIGHTS} does not exist: run prepare.py --out {given.out} first")
    results, size = Results(given.results), f"{given.image_size}px"
    for cell in cells:
        if cell.key in results.read().get("runs", {}).get(size, {}).get("cells", {}):
            continue
        record = measure(cell, given.image_size, given.out.resolve())

        def enter(content: dict[str, Any], cell: Cell = cell, record: dict[str, Any] = record) -> None:
            run = content.setdefault("runs", {}).setdefault(size, {"cells": {}})
            run["cells"][cell.key] = record
            run |= {"machine": describe(), "date": now()}

        results.update(enter)
        given.results.with_name("TRAINING.md").write_text(markdown(results.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
