"""What each part of a recipe is worth, on handwritten digits; writes ``RECIPES.md`` and ``recipes.json`` beside itself.

    python benchmarks/digits/recipes.py --out DIR [--seeds 0,1,2]

For each seed the dense model from scratch (dense.toml), then every recipe over it: life.toml with some settings
changed. Runs that are finished in DIR are not run again. A recipe takes half a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import prepare
import tomli_w

from lifedeploy import children
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe

HERE = Path(__file__).parent
PLAIN = {"distill": False, "hard": False}
LONGER = {"stage1_epochs": 2, "stage2_epochs": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "plain: the paper's": PLAIN,
    "plain, hard": {**PLAIN, "hard": True},
    "plain, single stage": {**PLAIN, "single_stage": True},
    "plain, 2 and 4 epochs": {**PLAIN, **LONGER},
    "distilled, hard": {},
    "distilled, soft": {"hard": False},
    "distilled, hard, labels count half": {"distill_logits": 0.5},
    "distilled, hard, without lives": {"distill_lives": 0.0},
    "distilled, hard, without tokens": {"distill_tokens": 0.0},
    "only lives distilled, hard": {"distill_logits": 0.0, "distill_tokens": 0.0},
    "distilled, hard, elastic": {"elastic": True},
    "distilled, hard, 2 and 4 epochs": LONGER,
}


def train(out: Path, name: str, base: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One run, unless it is there: its report."""
    folder = out / "runs" / "checkpoints" / name
    settings = tomllib.loads((HERE / base).read_text()) | {"data": "digits"} | changes
    config = out / f"{name}.toml"
    config.write_text(tomli_w.dumps(settings))
    if not (folder / "report.json").is_file():
        command = children.command("lifedeploy", "train", "--config", config.name, "--name", name)
        subprocess.run([*command, "-w", "runs", "--resume"], cwd=out, check=True)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def run(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """All recipes over all seeds: validation accuracy in percent after each stage."""
    prepare.main(["--out", str(out / "digits")])
    dense, recipes = [], {name: [] for name in RECIPES}
    for seed in seeds:
        report = train(out, f"dense-{seed}", "dense.toml", {"seed": seed})
        dense.append(100 * report["epochs"][-1]["accuracy"])
        weights = f"runs/checkpoints/dense-{seed}/last.safetensors"
        for number, (name, changes) in enumerate(RECIPES.items()):
            report = train(out, f"{number}-{seed}", "life.toml", {"seed": seed, "weights": weights} | changes)
            last = {epoch["stage"]: 100 * epoch["accuracy"] for epoch in report["epochs"]}
            recipes[name].append({"stage 1": last.get("predictor"), "end": 100 * report["epochs"][-1]["accuracy"]})
    return {"dense": dense, "recipes": recipes, "seeds": list(seeds), "machine": describe(), "date": now()}


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    machine, seeds = found["machine"], found["seeds"]
    lines = [
        "# Recipes on handwritten digits",
        "",
        "1,438 digits to train on, 359 to validate on, 16 patches, keep rate 0.7 (11, 8 and 5 patches are left). Dense",
        "from scratch, then one epoch of the predictor and one of the backbone unless said. *Distilled* is `--distill`",
        "with its three terms: the dense model's answers, its tokens, and the lives that its attention would give.",
        "",
        f"Command: `python benchmarks/digits/recipes.py --out DIR --seeds {','.join(map(str, seeds))}`; "
        f"{machine['cpu']}, torch {machine['versions']['torch']}, timm {machine['versions']['timm']}; "
        f"{found['date'][:10]}.",
        "",
        f"Accuracy in percent, mean and range of {len(seeds)} seeds. Dense: {spread(found['dense'])}.",
        "",
        "| recipe | after stage 1 | at the end | against dense |",
        "|---|---|---|---|",
    ]
    for name, runs in found["recipes"].items():
        first = [one["stage 1"] for one in runs if one["stage 1"] is not None]
        end = [one["end"] for one in runs]
        gap = np.mean(end) - np.mean(found["dense"])
        lines.append(f"| {name} | {spread(first) if first else '–'} | {spread(end)} | {gap:+.1f} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean, and from where to where."""
    return f"{np.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="What each part of a recipe is worth, on handwritten digits.")
    parser.add_argument("--out", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    found = run(options.out, [int(seed) for seed in options.seeds.split(",")])
    write_json(HERE / "recipes.json", found)
    (HERE / "RECIPES.md").write_text(table(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
