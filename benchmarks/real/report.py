"""``training.json`` as Markdown: means and spreads over the seeds, beside what was to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import table, versions

Scores = Mapping[str, float]
INTRODUCTION = """# Training on real photographs

DINOv2 ViT-S/14, photographs of solar cells, defective or good (see [RESULTS.md](RESULTS.md)): 1,968 to train
on, 656 to validate on, split stratified by the four labels. Each seed: the dense model fine-tuned for three
epochs from the linear probe, then one epoch of the predictor and one of the backbone over it. Average
precision (of the class *defective*) is the sharper measure: accuracy moves by ±1.3 points by chance.

Command: `python -m benchmarks.real.training --out DIR --image-size N`; what has run is in `training.json`,
with the command of every cell. **What is not in a table below has not been run**: the grid is five runs for
each of three seeds, and ten ablations, at every size; `training.py` goes on where it was.

*Plain* is the paper's recipe; *distilled* is `--distill --hard --backbone-lr 3e-6`, a rate chosen on seed 0.
EViT's scores are CLS attention, anew before every drop, of the same dense model under the same schedule; *random* is
the mean of three orders. A script of its own asked both of PyTorch, once; `training.py` does not ask them again.
"""


def markdown(results: Mapping[str, Any]) -> str:
    """A section per image size and precision."""
    lines = [INTRODUCTION]
    for size, run in results["runs"].items():
        lines += _run(size, run)
    return "\n".join(lines) + "\n"


def _run(size: str, run: Mapping[str, Any]) -> list[str]:
    cells, machine = run["cells"], run["machine"]
    features = ", ".join(machine["features"]) or "no vector features known"
    precisions = ", ".join(sorted({cell["precision"] for cell in cells.values()}))
    seeds = sorted({key.rpartition(" ")[2] for key in cells if key.startswith("dense /")})
    dense = [cells[f"dense / seed {seed}"] for seed in seeds]
    rows = [_row("dense", "–", [cell["dense"] for cell in dense], None, [cell["minutes"] for cell in dense])]
    for rate in ("0.7", "0.5") if dense else ():
        for name in dense[0]["untrained"][rate]:
            scores = [cell["untrained"][rate][name] for cell in dense]
            rows.append(_row(f"{name}, no training", rate, scores, [cell["dense"] for cell in dense], None))
        for variant, title in (("", "plain"), (" distill", "distilled")):
            keys = {seed: f"life {rate}{variant} / seed {seed}" for seed in seeds}
            trained = [cells[key] for key in keys.values() if key in cells]
            base = [cells[f"dense / seed {seed}"]["dense"] for seed, key in keys.items() if key in cells]
            minutes = [cell["minutes"] for cell in trained]
            for stage, label in (("stage 1", "after stage 1"), ("end", "two epochs")) if trained else ():
                scores = [cell["rates"][rate][stage] for cell in trained]
                rows.append(_row(f"life, {title}, {label}", rate, scores, base, minutes if stage == "end" else None))
    return [
        f"## {size}",
        "",
        f"{machine['cpu']} ({features}), {machine['cores']} cores, {', '.join(machine['gpu']) or 'no GPU'}; "
        f"{versions(machine, 'torch', 'timm')}; {precisions}; {run['date'][:10]}. Other work shared the machine, so "
        "minutes are upper bounds.",
        "",
        *table("method | keep rate | seeds | average precision | against dense | accuracy | loss | minutes", rows),
        *(line for note in run.get("notes", []) for line in ("", note)),
        "",
        *_ablations(cells),
    ]


def _ablations(cells: Mapping[str, Any]) -> list[str]:
    rows = []
    for key in (key for key in cells if not key.startswith(("dense", "life 0.7", "life 0.5"))):
        for rate, stages in cells[key]["rates"].items():
            end, first = stages["end"], stages.get("stage 1")
            numbers = (f"{end['average_precision']:.2f}", f"{end['accuracy']:.2f}", f"{end['loss']:.3f}")
            rows.append((key, rate, *numbers, f"{first['average_precision']:.2f}" if first else "–"))
    head = "run | keep rate | average precision | accuracy | loss | average precision after stage 1"
    return ["### Ablations (one seed)", "", *table(head, rows), ""] if rows else []


def _row(
    label: str, rate: str, scores: Sequence[Scores], base: Sequence[Scores] | None, minutes: Sequence[float] | None
) -> tuple[object, ...]:
    precision, accuracy, loss = (
        [score[name] for score in scores] for name in ("average_precision", "accuracy", "loss")
    )
    against = "–"
    if base is not None:
        gaps = [ours - other["average_precision"] for ours, other in zip(precision, base, strict=True)]
        against = f"{np.mean(gaps):+.2f}" + (f" [{min(gaps):+.2f}, {max(gaps):+.2f}]" if len(gaps) > 1 else "")
    spent = f"{np.mean(minutes):.1f}" if minutes else "–"
    return label, rate, len(scores), _spread(precision), against, _spread(accuracy), f"{np.mean(loss):.3f}", spent


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
