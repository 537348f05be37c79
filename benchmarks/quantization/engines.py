"""What the commands give: calibrated, built and evaluated on real photographs. Adds to ``results.json``.

    python benchmarks/quantization/engines.py --out DIR [--image-size 112] [--seeds 0,1,2]

After recipes.py, which exports the models. For each seed `calibrate --int8` with 512 training photographs,
`build-engine --int8` for both CPU runtimes, OpenVINO's BF16 where the processor has it, and one `evaluate` of all of
them on all validation photographs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import DEFECTIVE, exported
from store import here, keep

from lifedeploy import children
from lifedeploy.machine import fast_bf16

BUILDS = (("onnxruntime", "int8"), ("openvino", "int8"), *((("openvino", "bf16"),) if fast_bf16() else ()))


def measure(out: Path, folder: Path, images: int) -> list[dict[str, Any]]:
    """Rows of one ``evaluate``: FP32 graphs first, then engines; each beside the FP32 graph of its method."""

    def lifedeploy(*arguments: object) -> None:
        subprocess.run(children.command("lifedeploy", *map(str, arguments)), check=True)

    data = out / "images"
    lifedeploy("calibrate", folder, "--int8", "--data", data, "--images", images)
    models = [folder / f"{stem}.onnx" for stem in ("model", "dense")]
    for engine, precision in BUILDS:
        lifedeploy("build-engine", folder, "--engine", engine, f"--{precision}")
        models += [folder / f"{engine}-{precision}" / f"{stem}.json" for stem in ("model", "dense")]
    target = folder / "evaluate.json"
    lifedeploy("evaluate", *models, "--data", data, "--split", "val", "--json", target)
    report = json.loads(target.read_text())
    pairs = {(pair["first"], pair["second"]): pair for pair in report["pairs"]}
    rows = []
    for number, row in enumerate(report["rows"], start=1):
        own = 1 if row["method"] == "life" else 2
        pair = pairs.get((own, number), {})
        rows.append(
            {
                "method": row["method"],
                "engine": row["engine"],
                "precision": row["precision"],
                "average_precision": row["accuracy"]["per_class"][DEFECTIVE]["average_precision"],
                "top1": row["accuracy"]["top1"],
                "loss": row["accuracy"]["loss"],
                "same_top1": pair.get("agreement"),
                "kept": pair.get("overlap"),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="INT8 engines on real photographs, by the commands.")
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py and training.py wrote")
    parser.add_argument("--image-size", type=int, default=112, help="of the trained models (default: 112)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--images", type=int, default=512, help="to calibrate on (default: 512)")
    options = parser.parse_args(arguments)
    # Whatever seeds this run has: each is kept under its own key, beside those of earlier runs.
    command = f"python benchmarks/quantization/engines.py --out DIR --image-size {options.image_size}"
    for seed in map(int, options.seeds.split(",")):
        folder = exported(options.out.resolve(), options.image_size, seed)
        rows = measure(options.out.resolve(), folder, options.images)
        keep("engines", here("engines") | {f"seed {seed}": rows}, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
