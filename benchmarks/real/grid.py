"""Every method over the same dense model, with the same budget: accuracy, minutes and memory; writes ``GRID.md``.

    python -m benchmarks.real.prepare --out DIR                       once: weights and images
    python -m benchmarks.real.grid --out DIR [--image-size 224] [--seeds 0,1,2] [--at keep-rate|macs] [--list]
        [--only WORDS] [--minutes M] [--add OTHER.json]

A cell is one ``lifedeploy train`` of two epochs over the dense model of its seed, by the method's published recipe, by
that without scaling its rate to the batch, or by ours (``--recipe lifedeploy``), and what its checkpoint then answers
to all validation photographs (``scores.py``). ``--at macs`` brings every method to the work of lives at the same keep
rate, since keep 0.7 is other work for each. Cells are in the order in which they are worth having. Those that are done
on any machine are not done again; the grid can be stopped at any time, ``kill -9`` too, and goes on where it was. The
images may not be redistributed: they, and the checkpoints, stay in DIR.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Results, new_parser, read_json
from benchmarks.real.grid_page import markdown
from benchmarks.real.prepare import WEIGHTS
from benchmarks.real.recipes import BUDGETS, RECIPES, TRIED, UNSCALED, budget_options
from benchmarks.real.scores import Asked, at_work_of_life, score
from benchmarks.real.training import BACKBONE, DENSE, RATES, trained
from lifedeploy import methods
from lifedeploy.files import now, write_text
from lifedeploy.machine import describe, gpus, identity
from lifedeploy.recipe import LIFEDEPLOY, PUBLISHED

HERE = Path(__file__).parent
FIRST = 0  # the seed of what is run once
OFTEN = ("life", "evit", "topk", "tome")  # on every seed; their scores can be had without training, too
ONCE = ("dynamicvit", "evo-vit", "avit", "ia-red2")  # on the first of them first, on the others last
# Whose training knows of no keep rate, and as what its checkpoints are asked: at each rate, and as they are.
WITHOUT_RATE = {"evo-vit": ("evo-vit",), "avit": ("avit", "avit-ranked"), "ia-red2": ("ia-red2",)}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run. ``rate`` is the keep rate that is asked for; None: none is."""

    method: str
    seed: int
    rate: float | None = None
    recipe: str = PUBLISHED
    at: str = "keep-rate"

    @property
    def name(self) -> str:
        """Without its seed: ``evit 0.7 published``, ``evit 0.7 published macs``; dense is called by its name."""
        if self.method == methods.baseline().name:
            return self.method
        rate = "" if self.rate is None else f" {self.rate}"
        return f"{self.method}{rate} {self.recipe}" + (f" {self.at}" if self.at != "keep-rate" else "")

    def folder(self, image_size: int) -> Path:
        """Of its checkpoints, below DIR."""
        return Path("grid") / f"{image_size}px" / f"seed{self.seed}" / "checkpoints" / self.name.replace(" ", "-")

    def asked_rate(self, image_size: int) -> float | None:
        """The keep rate of the run."""
        if self.at == "macs" and self.rate is not None:
            return at_work_of_life(self.method, self.rate, BACKBONE, image_size)
        return self.rate

    def options(self, image_size: int) -> list[str]:
        """What the run is asked for, beyond what all are."""
        if self.method == methods.baseline().name:
            return list(DENSE)
        rate = self.asked_rate(image_size)
        words = ["--method", self.method, *RECIPES[self.recipe].options]
        if rate is not None:
            return [*words, "--rho", f"{rate:g}"]
        return [*words, *budget_options(self.method)]


def dense(seed: int) -> Cell:
    """The run that all others of the seed start from."""
    return Cell(method=methods.baseline().name, seed=seed)


def grid(seeds: Sequence[int], at: str) -> list[Cell]:
    """All cells, in the order in which they are worth having."""
    cells = []
    for seed in seeds:
        cells.append(dense(seed))
        cells += [Cell(method="life", rate=rate, seed=seed, recipe=LIFEDEPLOY, at=at) for rate in RATES]
        cells += [Cell(method=name, rate=rate, seed=seed, at=at) for name in OFTEN for rate in RATES]
    once = (FIRST,) if FIRST in seeds else ()  # however the seeds are shared out among processes
    for name in ONCE:
        rates = (None,) if name in WITHOUT_RATE else RATES
        cells += [Cell(method=name, rate=rate, seed=seed, at=at) for seed in once for rate in rates]
    cells += [Cell(method=name, seed=seed) for seed in seeds for name in BUDGETS]
    for seed in seeds:
        cells += [
            Cell(method=name, rate=rate, seed=seed, recipe=LIFEDEPLOY, at=at) for name in OFTEN[1:] for rate in RATES
        ]
    for seed in once:
        for name in ("dynamicvit", "avit-ranked", "ia-red2"):
            cells += [Cell(method=name, rate=rate, seed=seed, recipe=LIFEDEPLOY, at=at) for rate in RATES]
        cells.append(Cell(method="evo-vit", seed=seed, recipe=LIFEDEPLOY, at=at))
    for seed in once:
        cells += [Cell(method="life", rate=rate, seed=seed, recipe=name, at=at) for name in TRIED for rate in RATES]
        cells += [
            Cell(method=name, rate=rate, seed=seed, recipe=UNSCALED, at=at) for name in OFTEN[1:3] for rate in RATES
        ]
    for seed in seeds:  # once is enough to know of these; here are the others
        for name in ONCE:
            rates = (None,) if name in WITHOUT_RATE else RATES
            cells += [Cell(method=name, rate=rate, seed=seed, at=at) for rate in rates]
        cells += [Cell(method="life", rate=rate, seed=seed, recipe=name, at=at) for name in TRIED for rate in RATES]
    # Brought to the work of lives, lives are what they are, and so is what takes no keep rate.
    cells = [cell if _moves(cell) else replace(cell, at="keep-rate") for cell in cells]
    return list(dict.fromkeys(cells))


def _moves(cell: Cell) -> bool:
    return cell.rate is not None and cell.method != methods.DEFAULT


def train(cell: Cell, image_size: int, out: Path) -> dict[str, Any]:
    """The run of a cell."""
    first = dense(cell.seed)
    weights = WEIGHTS if cell == first else str(first.folder(image_size) / "last.safetensors")
    return trained(cell.options(image_size), weights, cell.seed, image_size, cell.folder(image_size), out)


def measure(cell: Cell, image_size: int, out: Path) -> dict[str, Any]:
    """Train a cell, and ask its checkpoints; the dense one also as each method that needs no training."""
    record = train(cell, image_size, out)
    last = out / cell.folder(image_size) / "last.safetensors"

    def ask(weights: Path, method: str, rate: float | None, **options: Any) -> dict[str, float]:
        answer = score(Asked(weights, method, rate, options), BACKBONE, image_size, out / "images")
        print(f"{cell.name}, seed {cell.seed}: {method} {rate or ''} {options or ''} {answer}", flush=True)
        return answer

    if cell == dense(cell.seed):
        record["dense"] = ask(last, cell.method, None)
        free: dict[str, dict[str, Any]] = {}
        for free_rate in RATES:
            free[str(free_rate)] = {name: ask(last, name, free_rate) for name in OFTEN}
            free[str(free_rate)]["random"] = ask(last, "random", free_rate, draw=cell.seed)
        return record | {"untrained": free}
    scores: dict[str, dict[str, Any]] = {}
    for name in WITHOUT_RATE.get(cell.method, (cell.method,)):
        own = name in BUDGETS or not methods.get(name).takes_keep_rate
        for rate in (cell.rate,) if cell.rate is not None or own else RATES:
            at = Cell(method=name, seed=cell.seed, rate=rate, at=cell.at).asked_rate(image_size)
            options = BUDGETS.get(name, {}) if rate is None else {}
            scores[f"{name} {rate}" if rate else name] = ask(last, name, at, **options)
    stages = methods.get(cell.method).stages
    between = last.with_name(f"after-{stages[0].name}.safetensors")
    if len(stages) > 1 and between.is_file() and cell.rate is not None:
        after = f"{cell.method} {cell.rate} after {stages[0].name}"
        scores[after] = ask(between, cell.method, cell.asked_rate(image_size))
    return record | {"scores": scores}


def done(results: dict[str, Any], size: str, cell: Cell) -> bool:
    """Whether a cell has its numbers, from whatever machine."""
    machines = results.get(size, {}).values()
    return any(f"{cell.name} / seed {cell.seed}" in machine["cells"] for machine in machines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that has no numbers yet."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--image-size", type=int, default=224, help="pixels; a multiple of 14 (default: 224)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--at", choices=("keep-rate", "macs"), default="keep-rate", help="what is the same for all")
    parser.add_argument("--only", default="", help="only cells in whose names one of these words is, with commas")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after that long")
    parser.add_argument("--results", type=Path, default=HERE / "grid.json", help="default: beside this script")
    parser.add_argument("--list", action="store_true", help="show the cells, and which are done, and stop")
    parser.add_argument("--add", type=Path, help="take over the cells of another machine's grid.json, and stop")
    given = parser.parse_args(arguments)
    words = [word for word in given.only.split(",") if word]
    cells = grid([int(seed) for seed in given.seeds.split(",")], given.at)
    cells = [cell for cell in cells if not words or any(word in cell.name for word in words)]
    results, size = Results(given.results), f"{given.image_size}px"
    if given.add is not None:
        add(results, read_json(given.add))
        return
    if not cells:
        parser.error(f"no cell has {given.only!r} in its name: --list shows them")
    if given.list:
        for cell in cells:
            mark = "done" if done(results.read(), size, cell) else "    "
            print(f"{mark} {cell.name} / seed {cell.seed}: train … {shlex.join(cell.options(given.image_size))}")
        return
    if not (given.out / WEIGHTS).is_file():
        parser.error(f"{given.out}/{WEIGHTS} does not exist: run prepare.py --out {given.out} first")
    began = time.monotonic()
    for cell in cells:
        if time.monotonic() - began > 60 * given.minutes:
            return
        if done(results.read(), size, cell):
            continue
        first = dense(cell.seed)
        if cell != first and not (given.out / first.folder(given.image_size) / "last.safetensors").is_file():
            keep(results, size, first, measure(first, given.image_size, given.out.resolve()))  # its row is elsewhere
        keep(results, size, cell, measure(cell, given.image_size, given.out.resolve()))


def add(results: Results, others: dict[str, Any]) -> None:
    """Take over what another machine has measured; what both name is the other's."""

    def enter(content: dict[str, Any]) -> None:
        for size, machines in others.items():
            for machine, run in machines.items():
                known = content.setdefault(size, {}).setdefault(machine, {"cells": {}})
                known["cells"] |= run["cells"]
                known["machine"] = run["machine"]
        write_text(results.path.with_name("GRID.md"), markdown(content))

    results.update(enter)


def keep(results: Results, size: str, cell: Cell, record: dict[str, Any]) -> None:
    """Write a cell down, and the page anew."""

    def enter(content: dict[str, Any]) -> None:
        where = content.setdefault(size, {}).setdefault(gpus()[0] if gpus() else identity(), {"cells": {}})
        where["cells"][f"{cell.name} / seed {cell.seed}"] = record | {"date": now()}
        where["machine"] = describe()
        write_text(results.path.with_name("GRID.md"), markdown(content))  # nobody else writes meanwhile

    results.update(enter)


if __name__ == "__main__":
    main()
