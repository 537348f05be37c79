"""Accuracy against measured speed: the grid's checkpoints as engines, in one contest; writes ``FRONT.md`` and a plot.

    python -m benchmarks.real.front --out DIR [--image-size 224] [--seed 0] [--engine NAME:PRECISION …] [--batch 8]
    python -m benchmarks.real.front --again        what seeds that came later make of the speeds of the last contest

Of each method and keep rate the recipe that has the best average precision in the mean of seeds is taken (not to train
is one, too), and of that the checkpoint of one seed: ``lifedeploy compare --checkpoints`` exports them, builds them on
every engine, and lets all take turns, without the engines that its parity gate refuses, which the page names.
Accuracy there is of these checkpoints. What methods have at the speed of lives is told from the means over seeds
(``grid.json``), by a straight line in time per image between a method's keep rates and the dense model.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command_line, new_parser, publish, read_json, record_of, report_of, source, table
from benchmarks.real.front_plot import plot
from benchmarks.real.grid import WITHOUT_RATE, Cell, dense
from benchmarks.real.grid_page import UNTRAINED, with_base
from benchmarks.real.recipes import RECIPES, budget_options
from benchmarks.real.training import BACKBONE, RATES
from lifedeploy import methods
from lifedeploy.artifact import Workspace
from lifedeploy.model import checkpoint
from lifedeploy.model.request import ModelRequest
from lifedeploy.model.weights import load
from lifedeploy.recipe import LIFEDEPLOY, PUBLISHED

HERE = Path(__file__).parent
CANDIDATES = (UNTRAINED, PUBLISHED, LIFEDEPLOY)


@dataclass(frozen=True)
class Point:
    """A method at a keep rate (None: its own budget): the best of its recipes, in the mean of seeds."""

    method: str
    rate: float | None
    recipe: str
    against: Mapping[int, float]  # seed → average precision, in percent, less the dense model's

    def run(self, seed: int) -> Cell:
        """The cell that it was trained in: some know of no keep rate, or of another method that reads their files."""
        return _run(self.method, self.rate, self.recipe, seed)

    @property
    def name(self) -> str:
        """Of its checkpoint, and in tables."""
        return self.method if self.rate is None else f"{self.method}-{self.rate}"

    @property
    def mean(self) -> float:
        """Less the dense model's, mean over its seeds: other seeds have other dense models."""
        return self.mean_of(self.against)

    def mean_of(self, seeds: Iterable[int]) -> float:
        """As ``mean``, over some of its seeds."""
        return float(np.mean([self.against[seed] for seed in seeds]))


def points(cells: Mapping[str, Any]) -> list[Point]:
    """Every method and keep rate that has numbers, by its best recipe."""
    found: dict[tuple[str, float | None], list[Point]] = {}
    for method in methods.names(methods.SLIMMED):
        for rate in (*RATES, None):
            for recipe in CANDIDATES:
                scores = dict(_scores(cells, method, rate, recipe))
                if scores:
                    against = {seed: score["average_precision"] - base for seed, (score, base) in scores.items()}
                    found.setdefault((method, rate), []).append(Point(method, rate, recipe, against))
    return [_better(alike) for alike in found.values()]


def _better(alike: Sequence[Point]) -> Point:
    """Of its recipes, in the mean of the seeds that all have; where they have none in common, that of more seeds."""
    common = set.intersection(*(set(point.against) for point in alike))
    if not common:
        return max(alike, key=lambda point: len(point.against))
    return max(alike, key=lambda point: point.mean_of(common))


def _run(method: str, rate: float | None, recipe: str, seed: int) -> Cell:
    if recipe == UNTRAINED:
        return dense(seed)
    owner = next((owner for owner, asked in WITHOUT_RATE.items() if method in asked), None)
    if recipe == PUBLISHED and owner is not None:
        return Cell(method=owner, seed=seed)
    return Cell(method=method, seed=seed, rate=rate, recipe=recipe)


def _scores(
    cells: Mapping[str, Any], method: str, rate: float | None, recipe: str
) -> Iterator[tuple[int, tuple[Mapping[str, float], float]]]:
    """Seed → what a checkpoint answers as a method at a rate, and the dense model's average precision."""
    asked = method if rate is None else f"{method} {rate}"
    for key, record in cells.items():
        name, _, seed = key.partition(" / seed ")
        if name != _run(method, rate, recipe, int(seed)).name or "base" not in record:
            continue
        untrained = record.get("untrained", {}).get(str(rate), {}).get(method)
        score = untrained if recipe == UNTRAINED else record.get("scores", {}).get(asked)
        if score is not None:
            yield int(seed), (score, record["base"]["average_precision"])


def gather(chosen: Sequence[Point], seed: int, image_size: int, out: Path) -> list[Path]:
    """The checkpoints that are here, under their points' names, methods and keep rates; the dense one first.

    Raises:
        SystemExit: that one is not.
    """
    folder = out / "front" / f"{image_size}px"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    baseline = methods.baseline().name
    wanted: list[tuple[str, str, float | None, Cell]] = [(baseline, baseline, None, dense(seed))]
    wanted += [(point.name, point.method, point.rate, point.run(seed)) for point in chosen]
    paths = []
    for name, method, rate, cell in wanted:
        path = out / cell.folder(image_size) / "last.safetensors"
        if not path.is_file():
            if method == baseline:
                raise SystemExit(f"error: {path} is not here: the grid ran on another machine")
            print(f"{name} is left out: {path} is not here", flush=True)
            continue
        request = ModelRequest(backbone=BACKBONE, weights=str(path), method=method, keep_rate=rate)
        loaded = load(request, Workspace(out))
        paths.append(folder / f"{name}.safetensors")
        checkpoint.save(paths[-1], loaded.model, loaded.spec)
    return paths


def at_speed(known: Sequence[tuple[float, float]], speed: float) -> float | None:
    """Average precision against dense of a method at a speed, told from what is known: (speed, points), by a straight
    line in time; None: it has not been as fast.
    """
    times, values = zip(*sorted((1 / images_per_s, value) for images_per_s, value in known), strict=True)
    if not times[0] <= 1 / speed <= times[-1]:
        return None
    return float(np.interp(1 / speed, times, values))


def equal(chosen: Sequence[Point], speeds: Mapping[str, float], engine: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lives against every other method at the speed of lives, at each keep rate; means are of the seeds that both have.

    Args:
        chosen: every model.
        speeds: images/s of those that took part, by name.
        engine: their average precision, in percent, as the engine answers.

    Returns:
        Of each: ``engine``, points against the engine's dense model, and ``seeds``, the mean over seeds of those
        against PyTorch's: each of lives, of the other at that speed (None: it is not as fast), and how far lives are
        ahead; ``over``: those seeds.
    """
    base = methods.baseline().name
    there = [point for point in chosen if point.name in speeds]
    answered = {point.name: engine[point.name] - engine[base] for point in there}
    rows = []
    for point in (point for point in there if point.method == methods.DEFAULT):
        for name in sorted({other.method for other in there} - {methods.DEFAULT}):
            row: dict[str, Any] = {"keep_rate": point.rate, "speed": speeds[point.name], "method": name}
            others = [other for other in there if other.method == name]
            seeds = set(point.against).intersection(*(other.against for other in others))
            row["over"] = sorted(seeds)
            means = {each.name: each.mean_of(seeds) for each in (point, *others)} if seeds else None
            for measure, values in (("engine", answered), ("seeds", means)):
                if values is None:  # they have no seed in common
                    row[measure] = dict.fromkeys(("life", "other", "ahead"))
                    continue
                known = [(speeds[base], 0.0), *((speeds[other.name], values[other.name]) for other in others)]
                ours, theirs = values[point.name], at_speed(known, speeds[point.name])
                row[measure] = {"life": ours, "other": theirs, "ahead": None if theirs is None else ours - theirs}
            rows.append(row)
    return rows


def front(speeds: Mapping[str, float], precisions: Mapping[str, float]) -> list[str]:
    """The models that none is both faster and better than."""
    points = {name: (speeds[name], precisions[name]) for name in speeds}
    beaten = {
        name
        for name, (speed, precision) in points.items()
        for other in points.values()
        if other[0] >= speed and other[1] >= precision and other != points[name]
    }
    return [name for name in points if name not in beaten]


def markdown(record: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        "# Accuracy against speed, in engines",
        "",
        f"{source(record, 'openvino', 'onnxruntime', 'torch')}",
        "",
        "DINOv2 ViT-S/14 on photographs of solar cells, every method by the better recipe, its authors' or ours, in "
        f"the mean of seeds ([GRID.md](GRID.md)); here the checkpoints of seed {record['seed']}. All models on all "
        f"engines took turns in one contest, batch {record['batch']}, one request at a time. Accuracy is the engine's, "
        "over the 656 validation photographs, by which recipes were chosen too. *Front*: on its engine none is both "
        f"faster and better in average precision. *tome* without a keep rate is `{' '.join(budget_options('tome'))}`.",
        "",
        "![accuracy against speed](accuracy-against-speed.png)",
        "",
    ]
    rows = [
        (
            choice["engine"] + " " + choice["precision"],
            choice["name"],
            _title(record["recipes"].get(choice["name"], "–")),
            f"{choice['images_per_s']:.1f}",
            f"{100 * choice['top1']:.2f}",
            f"{100 * choice['average_precision']:.2f}",
            "front" if choice["name"] in record["front"][f"{choice['engine']} {choice['precision']}"] else "",
        )
        for choice in record["choices"]
    ]
    lines += table("engine | model | recipe | img/s | top-1 % | mean average precision % | ", rows)
    lines += ["", *(f"- {warning}" for warning in record["warnings"])] if record["warnings"] else []
    lines += ["", "## At the speed of lives", ""]
    lines += [
        "Points of average precision against dense. *In the engine*: mean of both classes, as the engine answers, "
        f"seed {record['seed']}, against the engine's dense model. *PyTorch*: of *defective*, mean over the seeds that "
        "both have, against each seed's dense model. Of the others on a straight line, in time per image, between "
        "dense and their models above, whatever gives these their budget; where that does not reach the speed of "
        "lives, the method is not as fast.",
        "",
    ]
    compared = [
        (
            engine,
            row["keep_rate"],
            row["method"],
            f"{row['speed']:.1f}",
            *(_points(row["engine"][of]) for of in ("life", "other", "ahead")),
            len(row["over"]),
            *(_points(row["seeds"][of]) for of in ("life", "other", "ahead")),
        )
        for engine, found in record["equal"].items()
        for row in found
    ]
    head = "engine | life's keep rate | method | img/s | in the engine: life | method | life ahead by | seeds | "
    lines += table(head + "PyTorch: life | method | life ahead by", compared)
    return "\n".join(lines) + "\n"


def require_same_recipes(chosen: Sequence[Point], recipes: Mapping[str, str]) -> None:
    """Make sure that the engines of a contest are of the recipes that are the best ones now.

    Raises:
        SystemExit: one is not.
    """
    for point in chosen:
        built = recipes.get(point.name, point.recipe)
        if point.recipe != built:
            raise SystemExit(
                f"error: the engine of {point.name} is by recipe {built}, and {point.recipe} is better now: "
                "a new contest is needed (--out DIR)"
            )


def _title(recipe: str) -> str:
    return RECIPES[recipe].title if recipe in RECIPES else recipe


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, build, contest, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder that grid.py ran in")
    parser.add_argument("--again", action="store_true", help="only write the page anew; no engine is built")
    parser.add_argument("--results", type=Path, default=HERE / "grid.json", help="default: beside this script")
    parser.add_argument("--page", type=Path, default=HERE, help="where FRONT.md goes (default: beside this script)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", action="append", help="default: openvino:bf16 and openvino:int8; repeatable")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for each engine (default: 300)")
    given = parser.parse_args(arguments)
    if given.again == (given.out is not None):
        parser.error("--out DIR for a contest, or --again for the page of the last one")
    chosen = points(with_base(read_json(given.results)[f"{given.image_size}px"]))
    given.page.mkdir(parents=True, exist_ok=True)
    if given.again:
        record = read_json(given.page / "front.json")
        built = {name for speeds in record["speeds"].values() for name in speeds}
        require_same_recipes([point for point in chosen if point.name in built], record["recipes"])
    else:
        record = contest(chosen, given, arguments)
    record["equal"] = {
        engine: equal(chosen, speeds, record["precisions"][engine])
        for engine, speeds in sorted(record["speeds"].items())
    }
    record["front"] = {
        engine: front(speeds, record["precisions"][engine]) for engine, speeds in sorted(record["speeds"].items())
    }
    plot(record, given.page / "accuracy-against-speed.png")
    publish(given.page, "front", record, markdown(record))


def contest(chosen: Sequence[Point], given: argparse.Namespace, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Engines of the chosen ones' checkpoints and of the dense model, which take turns; draws the plot."""
    engines = given.engine or ["openvino:bf16", "openvino:int8"]
    paths = gather(chosen, given.seed, given.image_size, given.out.resolve())
    words: list[object] = [word for engine in engines for word in ("--engine", engine)]
    words += ["--data", "images", "--split", "val", "--batch", given.batch, "--budget", given.budget]
    words += ["--calibration-data", "images/train"] if any("int8" in engine for engine in engines) else []
    words += ["-w", "front/artifacts"]
    report = report_of("compare", *words, "--skip-refused", "--checkpoints", *paths, folder=given.out)
    record = record_of(command_line("real.front", arguments, {"DIR": given.out}))
    record |= {"seed": given.seed, "image_size": given.image_size, "batch": given.batch, "choices": report["choices"]}
    record["warnings"] = report["warnings"]
    record["recipes"] = {point.name: point.recipe for point in chosen}
    there = [point for point in chosen if point.name in {path.stem for path in paths}]
    base = methods.baseline().name
    record["methods"] = {base: base} | {point.name: point.method for point in there}
    record |= {"speeds": {}, "precisions": {}}
    # Without a name of its own is what is called as its method: the only one of it, or that of its own budget.
    names = {point.method: point.name for point in sorted(there, key=lambda point: point.rate is None)}
    for row in report["choices"]:
        row["name"] = row["name"] or names.get(row["method"], base)
        engine = f"{row['engine']} {row['precision']}"
        record["speeds"].setdefault(engine, {})[row["name"]] = row["images_per_s"]
        record["precisions"].setdefault(engine, {})[row["name"]] = 100 * row["average_precision"]
    return record


if __name__ == "__main__":
    main()
