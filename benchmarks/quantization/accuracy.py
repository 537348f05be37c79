"""What INT8 loses on real photographs, and which engine to deploy. Adds to ``results.json``, draws ``choice.png``.

    python -m benchmarks.quantization.accuracy --out DIR [--image-size 112] [--seeds 0,1,2] [--budget 25]

After benchmarks/real/prepare.py and training.py with the same DIR; training.py with --cells "dense,life 0.7 distill"
and --results DIR/training.json, since what the committed results have is not trained again. For each seed `export`,
`calibrate --int8` with 512 training photographs, `build-engine --int8` for both CPU runtimes, OpenVINO's BF16 where the
processor has it, and one `evaluate` of all of them on all validation photographs; for the first seed `bench --data` of
OpenVINO in all these precisions.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BF16, Results, command_line, lifedeploy, new_parser, report_of
from benchmarks.real.photographs import DEFECTIVE
from benchmarks.real.training import BACKBONE, checkpoint

HERE = Path(__file__).parent
CELL = "life 0.7 distill"
BUILDS = (("onnxruntime", "int8"), ("openvino", "int8"), *(("openvino", precision) for precision in BF16))
BATCH = 8
FACTS = (
    *("engine", "precision", "method", "images_per_s", "over_base", "over_base_low", "over_base_high", "base"),
    *("images", "top1", "standard_error", "average_precision", "same_top1", "kept_overlap", "pareto"),
)


def evaluated(export: Path, data: Path, images: int) -> list[dict[str, Any]]:
    """Rows of one ``evaluate``: FP32 graphs first, then engines; each beside the FP32 graph of its method."""
    stems = ("model", "dense")
    lifedeploy("calibrate", export, "--int8", "--data", data, "--images", images)
    models = [export / f"{stem}.onnx" for stem in stems]
    for engine, precision in BUILDS:
        lifedeploy("build-engine", export, "--engine", engine, f"--{precision}")
        models += [export / f"{engine}-{precision}" / f"{stem}.json" for stem in stems]
    report = report_of("evaluate", *models, "--data", data, "--split", "val")
    pairs = {(pair["first"], pair["second"]): pair for pair in report["pairs"]}  # rows count from 1
    rows = []
    for index, row in enumerate(report["rows"]):
        accuracy, pair = row["accuracy"], pairs.get((index % len(stems) + 1, index + 1), {})
        facts = {name: row[name] for name in ("method", "engine", "precision")}
        facts |= {"average_precision": accuracy["per_class"][DEFECTIVE]["average_precision"]}
        facts |= {"top1": accuracy["top1"], "loss": accuracy["loss"]}
        rows.append(facts | {"same_top1": pair.get("agreement"), "kept": pair.get("overlap")})
    return rows


def choices(export: Path, data: Path, budget_s: float) -> list[dict[str, Any]]:
    """Speed and accuracy of OpenVINO's precisions, in one contest."""
    plot = export / "choice.png"
    engines = [word for precision in ("fp32", *BF16, "int8") for word in ("-e", f"openvino:{precision}")]
    options = ("--batch", BATCH, "--budget", budget_s, "--no-memory", "--plot", plot)
    report = report_of("bench", export, *engines, "--data", data, *options)
    shutil.copyfile(plot, HERE / plot.name)
    return [{name: choice[name] for name in FACTS} for choice in report["choices"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, calibrate, build, evaluate, bench."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that prepare.py and training.py wrote")
    parser.add_argument("--image-size", type=int, default=112, help="of the trained models (default: 112)")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--images", type=int, default=512, help="to calibrate on (default: 512)")
    parser.add_argument("--budget", type=float, default=25, help="seconds per engine (default: 25)")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    command = command_line("quantization.accuracy", arguments, {"DIR": given.out})
    results = Results(HERE / "results.json")
    for index, seed in enumerate(map(int, given.seeds.split(","))):
        export = out / "grid" / f"{given.image_size}px" / "quantization" / f"seed{seed}"
        if not (export / "model.json").is_file():
            weights = out / checkpoint(given.image_size, seed, CELL)
            lifedeploy("export", "--backbone", BACKBONE, "--weights", weights, "-o", export)
        rows = evaluated(export, out / "images", given.images)
        results.keep("engines", rows, command, part=f"seed {seed}")  # beside those of earlier runs
        if index == 0:
            results.keep("choice", choices(export, out / "images", given.budget), command)


if __name__ == "__main__":
    main()
