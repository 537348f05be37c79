"""``training.json`` as Markdown: means and spreads over the seeds, beside what was to be reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Measured = dict[str, float]


def write_report(results: Path, target: Path) -> None:
    """Write ``target`` from ``results``."""
    data = json.loads(results.read_text())
    lines = [
        "# Training on real photographs",
        "",
        "DINOv2 ViT-S/14, photographs of solar cells, defective or good (see [RESULTS.md](RESULTS.md)): 1,968 to train",
        "on, 656 to validate on, split stratified by the four labels. Each seed: the dense model fine-tuned for three",
        "epochs from the linear probe, then one epoch of the predictor and one of the backbone over it. Average",
        "precision (of the class *defective*) is the sharper measure: accuracy moves by ±1.3 points by chance.",
        "",
        "Command: `python benchmarks/real/training.py --out DIR --image-size N`; what has run is in `training.json`,",
        "with the command of every cell. **What is not in a table below has not been run**: the grid is five runs for",
        "each of three seeds, and ten ablations, at every size; `training.py` goes on where it was.",
        "",
        "*Plain* is the paper's recipe; *distilled* is `--distill --hard --backbone-lr 3e-6`, a rate chosen on seed 0.",
        "EViT's scores are CLS attention, anew before every drop, of the same dense model under the same schedule.",
        "",
    ]
    for size, run in data["runs"].items():
        lines += _run(size, run)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run(size: str, run: dict[str, Any]) -> list[str]:
    cells = run["cells"]
    if not cells:
        return []
    machine = run["machine"]
    versions = machine["versions"]
    features = ", ".join(machine["features"]) or "no vector features known"
    precisions = ", ".join(sorted({cell["precision"] for cell in cells.values()}))
    lines = [
        f"## {size}",
        "",
        f"{machine['cpu']} ({features}), {machine['cores']} cores, {', '.join(machine['gpu']) or 'no GPU'}; "
        f"torch {versions['torch']}, timm {versions['timm']}; {precisions}; {run['date'][:10]}. Other work shared the "
        "machine, so minutes are upper bounds.",
        "",
    ]
    seeds = sorted({key.rpartition(" ")[2] for key in cells if key.startswith("dense /")})
    dense = [cells[f"dense / seed {seed}"] for seed in seeds]
    lines += [
        "| method | keep rate | seeds | average precision | against dense | accuracy | loss | minutes |",
        "|---|---|---|---|---|---|---|---|",
        _row("dense", "–", [cell["dense"] for cell in dense], None, [cell["minutes"] for cell in dense]),
    ]
    for rate in ("0.7", "0.5"):
        for name in ("random", "untrained predictor", "EViT scores"):
            found = [cell["untrained"][rate][name] for cell in dense]
            lines.append(_row(f"{name}, no training", rate, found, [cell["dense"] for cell in dense], None))
        for variant in ("", " distill"):
            runs = [(seed, cells.get(f"life {rate}{variant} / seed {seed}")) for seed in seeds]
            have = [(seed, cell) for seed, cell in runs if cell]
            if not have:
                continue
            base = [cells[f"dense / seed {seed}"]["dense"] for seed, _ in have]
            minutes = [cell["minutes"] for _, cell in have]
            for stage, label in (("stage 1", "after stage 1"), ("end", "two epochs")):
                label = f"{'distilled' if variant else 'plain'}, {label}"
                measured = [cell["rates"][rate][stage] for _, cell in have]
                lines.append(_row(f"life, {label}", rate, measured, base, minutes if stage == "end" else None))
    for note in run.get("notes", []):
        lines += ["", note]
    lines.append("")
    return lines + _engines(run.get("engines")) + _ablations(cells) + _tried(run.get("tried", []))


def _engines(found: dict[str, Any] | None) -> list[str]:
    """What engines make of a trained model, against PyTorch."""
    if not found:
        return []
    lines = [
        f"### Engines of `{found['checkpoint']}`",
        "",
        f"`python benchmarks/real/engines.py`; {found['machine']['cpu']}, "
        + ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
        + f"; {found['date'][:10]}. Agreement and kept tokens against PyTorch, the first row.",
        "",
        "| form | precision | accuracy | average precision | loss | same class | same tokens kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        numbers = f"{100 * row['top1']:.2f} | {100 * row['average_precision']:.2f} | {row['loss']:.4f}"
        same = " | ".join(f"{100 * row[name]:.2f} %" if name in row else "–" for name in ("agreement", "overlap"))
        lines.append(f"| {row['engine']} | {row['precision']} | {numbers} | {same} |")
    return [*lines, ""]


def _tried(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Other ways to train the backbone, from the same predictor: not part of the grid, kept for what they teach."""
    if not runs:
        return []
    lines = [
        "### Tried besides (seed 0; keep rate 0.7 and from the plain stage 1 unless said)",
        "",
        "| what | options | average precision | accuracy | loss |",
        "|---|---|---|---|---|",
    ]
    for one in runs:
        numbers = f"{one['average_precision']:.2f} | {one['accuracy']:.2f} | {one['loss']:.3f}"
        lines.append(f"| {one['what']} | `{one['options']}` | {numbers} |")
    return [*lines, ""]


def _ablations(cells: dict[str, Any]) -> list[str]:
    others = [key for key in cells if not key.startswith(("dense", "life 0.7", "life 0.5"))]
    if not others:
        return []
    lines = [
        "### Ablations (one seed)",
        "",
        "| run | keep rate | average precision | accuracy | loss | average precision after stage 1 |",
        "|---|---|---|---|---|---|",
    ]
    for key in others:
        for rate, found in cells[key]["rates"].items():
            end, first = found["end"], found.get("stage 1")
            numbers = f"{end['average_precision']:.2f} | {end['accuracy']:.2f} | {end['loss']:.3f}"
            before = f"{first['average_precision']:.2f}" if first else "–"
            lines.append(f"| {key} | {rate} | {numbers} | {before} |")
    return [*lines, ""]


def _row(
    label: str, rate: str, found: Sequence[Measured], base: Sequence[Measured] | None, minutes: Sequence[float] | None
) -> str:
    precision = [one["average_precision"] for one in found]
    against = "–"
    if base is not None:
        gaps = [one["average_precision"] - other["average_precision"] for one, other in zip(found, base, strict=True)]
        against = f"{np.mean(gaps):+.2f}" + (f" [{min(gaps):+.2f}, {max(gaps):+.2f}]" if len(gaps) > 1 else "")
    cells = (
        label,
        rate,
        str(len(found)),
        _spread(precision),
        against,
        _spread([one["accuracy"] for one in found]),
        f"{np.mean([one['loss'] for one in found]):.3f}",
        f"{np.mean(minutes):.1f}" if minutes else "–",
    )
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
