"""DeiT-S: what calibrating costs, and what INT8 gives on the CPU's runtimes. Adds to ``results.json``.

    python -m benchmarks.quantization.speed --out DIR [--batch 8] [--budget 90] [--images 512] [--parts PART,PART]

Weights are random and the images noise: speed and memory do not depend on them. `bench` lets all precisions of a
runtime take turns in the same rounds, and says where the time goes. Run it on a machine that does nothing else. With
``--parts`` other products than usual are quantised, in a copy of the export.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import BF16, Results, command_line, lifedeploy, new_parser, report_of

FACTS = (
    *("engine", "precision", "method", "batch", "mode", "images_per_s", "images_per_s_quartiles", "speedup"),
    *("speedup_low", "speedup_high", "base", "over_base", "over_base_low", "over_base_high", "rounds"),
)
Row = dict[str, Any]
PROFILE = ("engine", "precision", "method", "batch", "ms", "shares")


def photographs(folder: Path, count: int) -> Path:
    """JPEG files of noise, 500 by 375 pixels: as slow to decode as photographs are."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index:04}.jpg"
        if not path.exists():
            coarse = Image.fromarray(generator.integers(0, 256, (75, 100, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def calibration(export: Path, images: Path, count: int, parts: str) -> dict[str, Any]:
    """Seconds and peak memory of ``calibrate``, nothing known from before."""
    cache = export.parent / "cache" / str(time.time_ns())
    words = ["calibrate", export, "--int8", "--force", "--data", images, "--images", count]
    usage = lifedeploy(*words, *(["--parts", parts] if parts else []), environment={"XDG_CACHE_HOME": str(cache)})
    return {"images": count, "graphs": 3} | asdict(usage)


def measure(export: Path, engine: str, batch: int, budget_s: float) -> tuple[list[Row], list[Row]]:
    """All precisions of a runtime in the same rounds, over its FP32 dense model; and where the time of each goes."""
    precisions = ("fp32", *(BF16 if engine == "openvino" else ()), "int8")
    words = [word for precision in precisions for word in ("--engine", f"{engine}:{precision}")]
    words += ["--mode", "latency", "--mode", "throughput", "--no-memory", "--profile"]
    report = report_of("bench", export, *words, "--batch", batch, "--budget", budget_s)
    rows = [{name: row[name] for name in FACTS} for row in report["rows"]]
    return rows, [{name: profile[name] for name in PROFILE} for profile in report["profiles"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, calibrate, measure."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the models")
    parser.add_argument("--batch", type=int, default=8, help="default: 8")
    parser.add_argument("--budget", type=float, default=90, help="seconds per engine and precision (default: 90)")
    parser.add_argument("--images", type=int, default=512, help="to calibrate on (default: 512)")
    parser.add_argument("--engines", default="onnxruntime,openvino", help="default: onnxruntime,openvino")
    parser.add_argument("--parts", default="", help="quantise these instead of the usual (lifedeploy calibrate)")
    parser.add_argument("--known", action="store_true", help="keep the calibration that is there, and what it took")
    given = parser.parse_args(arguments)
    command = command_line("quantization.speed", arguments, {"DIR": given.out})
    results = Results(Path(__file__).parent / "results.json")
    export = given.out.resolve() / "deit_s"
    if not (export / "model.json").is_file():
        lifedeploy("export", "--backbone", "deit_s", "--rho", "0.7", "--weights", "random", "-o", export)
    suffix = f", {given.parts}" if given.parts else ""
    if given.parts:
        copy = export.with_name(f"deit_s-{given.parts.replace(',', '-')}")
        if not copy.exists():
            shutil.copytree(export, copy, ignore=shutil.ignore_patterns("int8", "*-int8"))
        export = copy
    if not given.known:
        images = photographs(given.out / "noise", given.images + 64)
        results.keep(f"calibrating{suffix}", calibration(export, images, given.images, given.parts), command)
    for engine in given.engines.split(","):
        rows, profiles = measure(export, engine, given.batch, given.budget)
        results.keep(f"speed, {engine}{suffix}", rows, command)
        results.keep(f"profile, {engine}{suffix}", profiles, command)


if __name__ == "__main__":
    main()
