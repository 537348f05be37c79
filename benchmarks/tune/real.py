"""A tuned schedule against ρ 0.7 at the same measured speed, on real photographs; writes ``REAL.md`` and ``real.json``.

    python -m benchmarks.real.training --out DIR --cells dense,elastic …      once: elastic checkpoints
    python -m benchmarks.tune.real --out DIR [--image-size 224] [--seeds 0 1 2] [--engine NAME:PRECISION]

Of each seed's elastic checkpoint: the export at keep rate 0.7 is tuned with training photographs as images, first for
as little loss as ρ 0.7 has, which also measures that schedule, then for its speed; both schedules are evaluated on all
validation photographs. How far the proxies rank as the true KL divergence does is asked of schedules drawn at random
that do about as much work as ρ 0.7, on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.common import Results, command_line, lifedeploy, new_parser, report_of, source, table
from benchmarks.real.photographs import DEFECTIVE
from benchmarks.real.training import BACKBONE, checkpoint
from lifedeploy.artifact import Artifact
from lifedeploy.data.batches import whole_batches
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines import registry
from lifedeploy.machine import cores, fast_bf16, gpu_state
from lifedeploy.model import checkpoint as checkpoints
from lifedeploy.progress import unwatched
from lifedeploy.schedule import Schedule
from lifedeploy.targets.divergence import Teacher
from lifedeploy.targets.held import machine_conditions
from lifedeploy.targets.workbench import Asked, Workbench
from lifedeploy.tuning.book import Book
from lifedeploy.tuning.front import MOST_CUTS, Choice
from lifedeploy.tuning.losses import Images, expected_losses
from lifedeploy.tuning.report import rank_correlation

HERE = Path(__file__).parent
DRAWN = 24  # schedules at random
ASKED = 128  # images
WORK_OFF = 0.03  # share of ρ 0.7's tokens times layers that they may have more or fewer


def evaluated(out: Path, weights: Path, schedules: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Name → average precision, accuracy and loss on the validation photographs, of a schedule in an export's words."""
    folders = {}
    for name, words in schedules.items():
        folders[name] = Path("tune") / f"{weights.parents[2].name}-{name}"
        common = ("export", "--backbone", BACKBONE, "--weights", weights, "--no-parity", "-o", folders[name])
        lifedeploy(*common, *words, folder=out)
    graphs = [folder / "model.onnx" for folder in folders.values()]
    report = report_of("evaluate", *graphs, "--data", "images", "--split", "val", folder=out)["rows"]
    scores = {}
    for name, row in zip(folders, report, strict=True):
        precision = 100 * row["accuracy"]["per_class"][DEFECTIVE]["average_precision"]
        scores[name] = {"average_precision": precision, "accuracy": 100 * row["accuracy"]["top1"]}
        scores[name]["loss"] = row["accuracy"]["loss"]
    return scores


def tune(out: Path, model: Path, engine: str, *words: object) -> dict[str, Any]:
    """The report of one ``tune`` with training photographs; its schedule in ``tune/tune.json``."""
    common = ("tune", model, "-e", engine, "--data", "images", "-o", "tune/tune.json", "-w", "tune/work")
    report = report_of(*common, *words, folder=out)
    return {name: value for name, value in report.items() if name not in ("front", "machine")}


def correlations(out: Path, model: Path, engine: str) -> dict[str, float]:
    """Rank correlation of each proxy with the true divergence, over schedules that do as much work as ρ 0.7's."""
    export = Artifact.read(out / model / "model.json")
    spec, (name, _, precision) = export.manifest.spec, engine.partition(":")
    images = read_unlabelled(str(out / "images"))
    pixels = np.concatenate([*whole_batches(images, spec.preprocess, batch=32, workers=cores(), hint="")])
    pixels = pixels[:: max(1, len(pixels) // ASKED)][:ASKED]
    network, _ = checkpoints.load(export.folder / "weights.safetensors")
    base = spec.schedule.base_layer
    expected = expected_losses(network, Images(pixels, spec.preprocess), [base], cuts=True)
    bench = Workbench(export, registry.get(name), precision, Asked(mode="latency", batch=1, streams=1))
    teacher = Teacher(bench, pixels, Book(out / "tune" / "drawn"), machine_conditions(gpu_state()), unwatched)
    proxies: dict[str, list[float]] = {}
    true = []
    for schedule in drawn(spec.schedule):
        for proxy, loss in expected.of(schedule).items():
            proxies.setdefault(proxy, []).append(loss)
        true.append(teacher.kl(Choice(schedule, 0.0, 0.0)))
    return {proxy: rank_correlation(losses, true) or 0.0 for proxy, losses in proxies.items()}


def drawn(schedule: Schedule) -> list[Schedule]:
    """Schedules at random, ranking after the same layer, with about as many tokens times layers."""
    generator = np.random.default_rng(0)
    base, depth, patches = schedule.base_layer, schedule.depth, schedule.patches
    chosen: list[Schedule] = []
    while len(chosen) < DRAWN:
        cuts = int(generator.integers(0, MOST_CUTS))
        layers = (base, *sorted(generator.choice(np.arange(base + 1, depth), cuts, replace=False).tolist()))
        counts = sorted(generator.choice(np.arange(1, patches), cuts + 1, replace=False).tolist(), reverse=True)
        other = Schedule.from_counts(patches, depth, counts, layers)
        if abs(sum(other.tokens) / sum(schedule.tokens) - 1) <= WORK_OFF:
            chosen.append(other)
    return chosen


def measure(out: Path, size: int, seed: int, engine: str) -> dict[str, Any]:
    """One seed."""
    weights = checkpoint(size, seed, "elastic")
    model = Path("tune") / f"model-{size}px-seed{seed}"
    lifedeploy("export", "--backbone", BACKBONE, "--weights", weights, "--rho", "0.7", "-o", model, folder=out)
    first = tune(out, model, engine)
    speed = first["before"]["measured"]["median"]
    second = tune(out, model, engine, "--speedup", f"{speed:.4f}")
    schedules = {"rho": ("--rho", "0.7"), "tuned": ("--schedule", "tune/tune.json")}
    scores = evaluated(out, weights, schedules)
    return {"same_loss": first, "same_speed": second, "scores": scores, "ranks": correlations(out, model, engine)}


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Tuned schedules on real photographs",
        "",
        "DINOv2 ViT-S/14 on photographs of solar cells ([benchmarks/real](../real/TRAINING.md)), the elastic model "
        "of each seed (`train --distill --hard --elastic`), lives predicted after layer 4; average precision (AP) on "
        "the validation photographs. *At its speed*: `tune --speedup` of what ρ 0.7's schedule was measured to have, "
        "with images of the training half, without labels. *At its loss*: the fastest with no more true KL.",
        "",
    ]
    for key, by_processor in results.items():
        for processor, entry in by_processor.items():
            seeds = entry["result"]
            lines += [f"## {key}, {processor}", "", *table(_HEAD, [_row(seed, it) for seed, it in seeds.items()]), ""]
            lines += [*_means(list(seeds.values())), ""]
            lines += [source(entry, "lifedeploy", "openvino", "onnxruntime", "torch"), ""]
    return "\n".join([*lines, ""])


_HEAD = (
    "seed | ρ 0.7 over dense | at its speed | over ρ 0.7 | KL, ρ 0.7 → tuned | AP, ρ 0.7 → tuned | at its loss | "
    "over ρ 0.7 | off | seconds"
)


def _means(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What came of all seeds together."""
    gained = {
        name: fmean(it["scores"]["tuned"][name] - it["scores"]["rho"][name] for it in seeds)
        for name in ("average_precision", "loss")
    }
    ranks = {proxy: ", ".join(f"{it['ranks'][proxy]:.2f}" for it in seeds) for proxy in seeds[0]["ranks"]}
    return [
        f"At the same speed the tuned schedule has an AP {gained['average_precision']:+.2f} points from ρ 0.7's, mean "
        f"of {len(seeds)} (cross entropy {gained['loss']:+.4f}).",
        "",
        f"Rank correlation with the true KL divergence of {DRAWN} schedules drawn at random, which do as much work as "
        f"ρ 0.7's within {WORK_OFF:.0%} ({ASKED} images): {'; '.join(f'{name}: {ranks[name]}' for name in ranks)}.",
    ]


def _row(seed: str, record: Mapping[str, Any]) -> tuple[object, ...]:
    fast, same = record["same_speed"], record["same_loss"]
    verified = [*fast["verified"], *same["verified"]]
    off = max((abs(1 / point["measured"]["median"] / point["time"] - 1) for point in verified), default=0.0)
    scores = record["scores"]
    return (
        seed,
        _ratio(fast["before"]["measured"]),
        _words(fast["chosen"]),
        _ratio(fast["chosen"]["over_before"]),
        f"{same['before']['true']['kl']:.4f} → {fast['chosen']['true']['kl']:.4f}" if fast["chosen"]["true"] else "–",
        f"{scores['rho']['average_precision']:.2f} → {scores['tuned']['average_precision']:.2f}",
        _words(same["chosen"]),
        _ratio(same["chosen"]["over_before"]),
        f"{100 * off:.1f} %",
        f"{same['seconds']:.0f} + {fast['seconds']:.0f}",
    )


def _words(point: Mapping[str, Any]) -> str:
    return f"{', '.join(map(str, point['counts']))} after {', '.join(map(str, point['drop_layers']))}"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune and evaluate every seed."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of benchmarks.real")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--engine", default=f"openvino:{'bf16' if fast_bf16() else 'fp32'}")
    given = parser.parse_args(arguments)
    results, command = Results(HERE / "real.json"), command_line("tune.real", arguments, {"DIR": given.out})
    for seed in given.seeds:
        record = measure(given.out.resolve(), given.image_size, seed, given.engine)
        results.keep(f"{given.image_size} px, {given.engine}", record, command, part=str(seed))
    (HERE / "REAL.md").write_text(markdown(results.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
