"""Do engines reach what PyTorch reaches? A trained model of the grid, exported and built; adds to ``TRAINING.md``.

    python benchmarks/real/engines.py --out DIR [--image-size 224] [--seed 0] [--engines onnxruntime,openvino]

After training.py. The distilled life model at keep rate 0.7 is exported, built at FP32 and at BF16 where the processor
has it, and all forms answer all validation photographs in one ``lifedeploy evaluate``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ledger import Ledger

from lifedeploy import children
from lifedeploy.files import now
from lifedeploy.machine import describe, fast_bf16

HERE = Path(__file__).parent
BACKBONE = "vit_small_patch14_dinov2"
CELL = "life-0.7-distill"
DEFECTIVE = 0


def measure(out: Path, size: int, seed: int, engines: Sequence[str]) -> dict[str, Any]:
    """Export, build, evaluate; the report's rows and pairs, in short."""
    grid = Path("grid") / f"{size}px"
    checkpoint = grid / f"seed{seed}" / "checkpoints" / CELL / "last.safetensors"
    work = grid / "engines"

    def lifedeploy(*arguments: object) -> None:
        subprocess.run(children.command("lifedeploy", *map(str, arguments)), cwd=out, check=True)

    lifedeploy("export", "--backbone", BACKBONE, "--weights", checkpoint, "-w", work)
    export = next(path for path in (out / work).iterdir() if path.name.startswith(BACKBONE)).relative_to(out)
    precisions = ["fp32", *(["bf16"] if fast_bf16() else [])]
    built = []
    for engine in engines:
        for precision in precisions:
            folder = export / f"{engine}-{precision}"
            lifedeploy("build-engine", export, "--engine", engine, f"--{precision}", "-w", work)
            if (out / folder).is_dir():  # a runtime without this precision builds another and says so
                built.append(folder)
    found = out / work / "evaluate.json"
    models = [checkpoint, export / "model.onnx", *built]
    lifedeploy("evaluate", *models, "--data", "images", "--split", "val", "-w", work, "--json", work / "evaluate.json")
    return {
        "checkpoint": str(checkpoint),
        "rows": rows(json.loads(found.read_text())),
        "machine": describe(),
        "date": now(),
    }


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the table needs of a report of ``evaluate``; the first model is what the others are held against."""
    against = {pair["second"]: pair for pair in report["pairs"] if pair["first"] == 1}  # rows count from 1
    made = []
    for number, row in enumerate(report["rows"], start=1):
        accuracy = row["accuracy"]
        made.append(
            {
                "engine": row["engine"],
                "precision": row["precision"],
                "top1": accuracy["top1"],
                "average_precision": accuracy["per_class"][DEFECTIVE]["average_precision"],
                "loss": accuracy["loss"],
            }
        )
        if number > 1:
            made[-1] |= {name: against[number][name] for name in ("agreement", "overlap")}
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Accuracy of engines against PyTorch, on real photographs.")
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py and training.py wrote")
    parser.add_argument("--image-size", type=int, default=224, help="of the trained model (default: 224)")
    parser.add_argument("--seed", type=int, default=0, help="of the trained model (default: 0)")
    parser.add_argument("--engines", default="onnxruntime,openvino", help="default: onnxruntime,openvino")
    parser.add_argument("--results", type=Path, default=HERE / "training.json", help="default: beside this script")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    found = measure(out, options.image_size, options.seed, options.engines.split(","))
    ledger = Ledger(options.results, out / "training.lock", f"{options.image_size}px")
    ledger.update(lambda run: run.update(engines=found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
