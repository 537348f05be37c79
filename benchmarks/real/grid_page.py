"""``grid.json`` as Markdown: every method beside dense, by recipe, means over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import table, versions
from benchmarks.real.recipes import RECIPES, budget_options
from lifedeploy import methods

Scores = Mapping[str, float]
INTRODUCTION = f"""# Every method, trained: accuracy on real photographs

DINOv2 ViT-S/14, photographs of solar cells, defective or good ([RESULTS.md](RESULTS.md)): 1,968 to train on, 656 to
validate on. All methods start from the same dense model of a seed (three epochs from the linear probe) and are trained
for two epochs, 122 steps of 32 images. Average precision (of the class *defective*) is the sharper measure: accuracy
moves by ±1.3 points by chance. Scores are those of PyTorch in FP32, tokens really leaving.

*Published* is the recipe in the method's row (`lifedeploy train --method NAME`,
[docs/training.md](../../docs/training.md)), whose learning rates are scaled to the batch where its authors' code does
that; *unscaled* is it at the rate as printed, which was made for sixteen times the batch; *ours* is `--recipe
lifedeploy`: distilled from the dense model, tokens leaving in training as when deployed, the same for all. It was
chosen for lives, **by the photographs whose scores are shown**, among what stands beside it: *two stages*, the
predictor first, then the backbone, and other rates, 1e-5 over three seeds, the others on one. *Keep rate falling* came
later: in the first third of the run the keep rate falls from 1 to its own, as in EViT's recipe.

"Keep 0.7" is not the same work for each: GMACs stand beside it. *At the work of lives* is a method trained at the keep
rate at which it has their GMACs (`--at macs`), in the table of lives' keep rate. At 0.5 ToMe, which merges at most half
of the tokens of a layer, is no faster than lives at 0.7 ([FRONT.md](FRONT.md)): in a budget of its own
(`{" ".join(budget_options("tome"))}`) it merges about as many as at 0.5, most of them early. Minutes are of training
alone, at the median speed of each stage. **What is not in a table has not been run**; the command goes on where it was.

Command: `python -m benchmarks.real.grid --out DIR`; that of each cell is in `grid.json`.
"""
UNTRAINED = "no training"
_HEAD = "method | recipe | seeds | average precision | against dense | accuracy | loss | GMACs | minutes | peak MiB"


def markdown(results: Mapping[str, Any]) -> str:
    """A section for each image size, in it a table for each keep rate."""
    lines = [INTRODUCTION]
    for size, machines in results.items():
        lines += [f"## {size}", ""]
        for name, run in machines.items():
            machine = run["machine"]
            precisions = ", ".join(sorted({cell["precision"] for cell in run["cells"].values()}))
            lines += [
                f"{len(run['cells'])} cells on {name}, {machine['cores']} cores, "
                f"{', '.join(machine['gpu']) or 'no GPU'}; {versions(machine, 'torch', 'timm')}; {precisions}. Other "
                "work shared the machine.",
                "",
            ]
        lines += _tables(with_base(machines))
    return "\n".join(lines).rstrip() + "\n"


def with_base(machines: Mapping[str, Any]) -> dict[str, Any]:
    """All cells, each with the dense scores of its seed: of its own machine, which it was trained on."""
    everywhere = {key: cell for run in machines.values() for key, cell in run["cells"].items()}
    cells = {}
    for run in machines.values():
        for key, cell in run["cells"].items():
            name = f"dense / seed {key.rpartition(' ')[2]}"
            base = run["cells"].get(name) or everywhere.get(name)
            cells[key] = cell | ({"base": base["dense"]} if base else {})
    return cells


def _tables(cells: Mapping[str, Any]) -> list[str]:
    dense = {key.rpartition(" ")[2]: cell for key, cell in cells.items() if key.startswith("dense /")}
    if not dense:
        return []
    base = {seed: cell["dense"] for seed, cell in dense.items()}
    whole = _row("dense", "–", base, {}, list(dense.values()))
    lines: list[str] = []
    for rate in ("0.7", "0.5", ""):
        rows = [whole]
        for name in next(iter(dense.values()))["untrained"].get(rate, {}):
            scores = {seed: cell["untrained"][rate][name] for seed, cell in dense.items()}
            rows.append(_row(_title(name), UNTRAINED, scores, base, []))
        for (label, recipe), runs in sorted(_trained(cells, rate).items(), key=_order):
            scores = {seed: score for seed, (score, _) in runs.items()}
            bases = {seed: record["base"] for seed, (_, record) in runs.items() if "base" in record}
            rows.append(_row(label, recipe, scores, bases, [record for _, record in runs.values()]))
        if len(rows) > 1:
            title = f"Keep rate {rate}" if rate else "Budgets of their own"
            lines += [f"### {title}", "", *table(_HEAD, rows), ""]
    return lines


def _trained(cells: Mapping[str, Any], rate: str) -> dict[tuple[str, str], dict[str, tuple[Scores, Mapping[str, Any]]]]:
    """(what is asked, by which recipe it was trained) → seed → its scores, and the record of the run."""
    rows: dict[tuple[str, str], dict[str, tuple[Scores, Mapping[str, Any]]]] = {}
    for key, cell in cells.items():
        name, _, seed = key.partition(" / seed ")
        recipe = next((RECIPES[word].title for word in name.split() if word in RECIPES), "")
        for asked, score in cell.get("scores", {}).items():
            method, _, rest = asked.partition(" ")
            at, _, after = rest.partition(" ")
            if at == rate:
                label = _title(method) + (f", {after}" if after else "")
                label += ", at the work of lives" if name.endswith(" macs") else ""
                rows.setdefault((label, recipe), {})[seed] = (score, cell)
    return rows


def _order(item: tuple[tuple[str, str], Any]) -> tuple[int, int]:
    label, recipe = item[0]
    titles = [_title(name) for name in methods.names()]
    return titles.index(label.partition(", after")[0].partition(", at the")[0]), [
        known.title for known in RECIPES.values()
    ].index(recipe)


def _title(method: str) -> str:
    return methods.get(method).title


def _row(
    label: str,
    recipe: str,
    scores: Mapping[str, Scores],
    base: Mapping[str, Scores],
    records: Sequence[Mapping[str, Any]],
) -> tuple[object, ...]:
    minutes = [record["training_minutes"] for record in records]
    precision, accuracy, loss = (
        [score[name] for score in scores.values()] for name in ("average_precision", "accuracy", "loss")
    )
    gaps = [
        score["average_precision"] - base[seed]["average_precision"] for seed, score in scores.items() if seed in base
    ]
    against = (
        f"{np.mean(gaps):+.2f}" + (f" [{min(gaps):+.2f}, {max(gaps):+.2f}]" if len(gaps) > 1 else "") if gaps else "–"
    )
    peaks = [record["peak_mib"] for record in records if record.get("peak_mib")]
    return (
        label,
        recipe,
        len(scores),
        spread(precision),
        against,
        spread(accuracy),
        f"{np.mean(loss):.3f}",
        f"{next(iter(scores.values()))['gmacs']:.2f}",
        f"{np.mean(minutes):.1f}" if minutes else "–",
        f"{max(peaks):.0f}" if peaks else "–",
    )


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
