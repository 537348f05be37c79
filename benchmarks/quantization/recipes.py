"""Which recipe loses least: trained models on real photographs, quantised in many ways. Writes ``results.json``.

    python benchmarks/quantization/recipes.py --out DIR [--image-size 112] [--seeds 0,1,2]

After benchmarks/real/prepare.py and training.py with the same DIR; training.py with --cells "dense,life 0.7 distill"
and --results DIR/training.json, since what the committed results have is not trained again. The quantised graphs are
computed as they stand (Q and DQ in FP32), so that no runtime's kernels are part of the answer; 256 training
photographs calibrate, all validation photographs are asked about.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from store import here, keep

from lifedeploy import children
from lifedeploy.artifact import Artifact
from lifedeploy.calibration import compare, sensitivity
from lifedeploy.calibration.feed import Feed, draw
from lifedeploy.calibration.quantize import Recipe, Source, prepare, write
from lifedeploy.data.images import read_images
from lifedeploy.evaluation.accuracy import Tally
from lifedeploy.evaluation.asking import shared_tokens

BACKBONE, CELL = "vit_small_patch14_dinov2", "life-0.7-distill"
DEFECTIVE = 0  # the class whose average precision is reported
MINMAX = "min-max, nothing repaired"
EVERY_SEED = {
    MINMAX: Recipe(smoothing=0),
    "smoothing 0.5, LayerNorm only": Recipe(smoothing=0.5, smooth_gelu=False),
    "smoothing 0.5": Recipe(smoothing=0.5),
    "smoothing 0.6 (default)": Recipe(),
    "smoothing 0.7": Recipe(smoothing=0.7),
}
FIRST_SEED = {
    "percentile 99.99, smoothing 0.6": Recipe(method="percentile"),
    "entropy, smoothing 0.6": Recipe(method="entropy"),
    "weights per tensor, smoothing 0.6": Recipe(per_channel=False),
    "and attention": Recipe(parts=("linear", "attention")),
    "and embedding": Recipe(parts=("linear", "embedding")),
    "and head": Recipe(parts=("linear", "head")),
    "FP8": Recipe(precision="fp8"),
}
SCANNED = "smoothing 0.5, LayerNorm only, 4 worst of a scan in FP32"


def measure(export: Path, stem: str, recipes: dict[str, Recipe], images: Path, scan: bool) -> list[dict[str, Any]]:
    """One row per recipe, the float graph first."""
    artifact = Artifact.read(export / f"{stem}.json")
    spec, kept = artifact.manifest.spec, artifact.manifest.kept
    train, val = (read_images(str(images), split=split) for split in ("train", "val"))
    drawn = draw(train, 256, 64, 0)
    feed, small, whole = (Feed(chosen, spec.preprocess, False, 8) for chosen in (drawn.calibration, drawn.check, val))
    digest = feed.digest()
    reference = compare.ask(artifact.path, whole, kept)
    rows = [{"recipe": "FP32"} | judge(reference, reference, val.targets, len(spec.classes))]

    def add(name: str, graph: Path) -> None:
        found = judge(reference, compare.ask(graph, whole, kept), val.targets, len(spec.classes))
        rows.append({"recipe": name} | found)
        print(export.name, stem, rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, recipe in recipes.items():
            source = Source(artifact.path, artifact.manifest.sha256, digest)
            prepared = prepare(source, recipe, feed, work)
            write(prepared, work / "quantized.onnx")
            add(name, work / "quantized.onnx")
            if scan and not recipe.smooth_gelu:
                answers = compare.ask(artifact.path, small, kept)
                check = compare.Check(artifact.path, small, artifact.method, kept, answers)
                noises = sensitivity.scan(prepared, check, work)
                write(prepared, work / "quantized.onnx", leave=list(noises)[:4])
                add(SCANNED, work / "quantized.onnx")
                rows[-1]["noises"] = noises
    return rows


def judge(ours: compare.Answers, theirs: compare.Answers, targets: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy, and how far it is the float graph's."""
    tally = Tally(classes)
    tally.add(theirs.logits, targets)
    found = tally.result()
    kept = None
    if ours.kept is not None and theirs.kept is not None:
        kept = float(np.mean(shared_tokens(ours.kept, theirs.kept)))
    return {
        "average_precision": found.per_class[DEFECTIVE].average_precision,
        "top1": found.top1,
        "loss": found.loss,
        "same_top1": float((ours.logits.argmax(axis=1) == theirs.logits.argmax(axis=1)).mean()),
        "kept": kept,
        "noise": compare.noise(ours, theirs),
    }


def exported(out: Path, size: int, seed: int) -> Path:
    """The trained model of a seed as ONNX, exported once."""
    folder = out / "grid" / f"{size}px" / "quantization" / f"seed{seed}"
    if not (folder / "model.json").is_file():
        checkpoint = out / "grid" / f"{size}px" / f"seed{seed}" / "checkpoints" / CELL / "last.safetensors"
        command = ["export", "--backbone", BACKBONE, "--weights", checkpoint, "-o", folder]
        subprocess.run(children.command("lifedeploy", *map(str, command)), check=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="What recipes of quantisation lose, on real photographs.")
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py and training.py wrote")
    parser.add_argument("--image-size", type=int, default=112, help="of the trained models (default: 112)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    options = parser.parse_args(arguments)
    # Whatever seeds this run has: each is kept under its own key, beside those of earlier runs.
    command = f"python benchmarks/quantization/recipes.py --out DIR --image-size {options.image_size}"
    for index, seed in enumerate(map(int, options.seeds.split(","))):
        folder = exported(options.out.resolve(), options.image_size, seed)
        for stem in ("model", "dense"):
            recipes = EVERY_SEED | (FIRST_SEED if index == 0 else {})
            rows = measure(folder, stem, recipes, options.out / "images", scan=index == 0)
            keep("recipes", here("recipes") | {f"{stem}, seed {seed}": rows}, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
