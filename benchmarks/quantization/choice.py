"""Which one to deploy? Speed and accuracy of all precisions in one contest. Adds to results.json, draws choice.png.

    python benchmarks/quantization/choice.py --out DIR [--image-size 112] [--seed 0] [--budget 25]

After engines.py, which calibrates and builds: `bench --data` of OpenVINO in FP32, BF16 (where the processor has it) and
INT8 on the validation photographs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes import exported
from store import keep

from lifedeploy import children
from lifedeploy.machine import fast_bf16

ENGINES = ("openvino:fp32", *(("openvino:bf16",) if fast_bf16() else ()), "openvino:int8")
BATCH = 8
FACTS = ("engine", "precision", "method", "images_per_s", "over_base", "over_base_low", "over_base_high", "base")
FACTS += ("images", "top1", "standard_error", "average_precision", "same_top1", "kept_overlap", "pareto")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Accuracy beside speed, on real photographs.")
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py and training.py wrote")
    parser.add_argument("--image-size", type=int, default=112, help="of the trained models (default: 112)")
    parser.add_argument("--seed", type=int, default=0, help="of the model (default: 0)")
    parser.add_argument("--budget", type=float, default=25, help="seconds per engine (default: 25)")
    options = parser.parse_args(arguments)
    folder = exported(options.out.resolve(), options.image_size, options.seed)
    report, plot = folder.parent / "choice.json", folder.parent / "choice.png"
    chosen = [option for engine in ENGINES for option in ("-e", engine)]
    measure = ("--data", options.out / "images", "--batch", BATCH, "--budget", options.budget, "--no-memory")
    bench = ["bench", folder, *chosen, *measure, "--json", report, "--plot", plot]
    subprocess.run(children.command("lifedeploy", *map(str, bench)), check=True)
    choices = json.loads(report.read_text())["choices"]
    command = f"python benchmarks/quantization/choice.py --out DIR --seed {options.seed} --budget {options.budget:g}"
    keep("choice", [{name: choice[name] for name in FACTS} for choice in choices], command)
    shutil.copyfile(plot, Path(__file__).with_name("choice.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
