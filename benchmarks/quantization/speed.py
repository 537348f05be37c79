"""DeiT-S: what calibrating costs, and what INT8 gives on the CPU's runtimes. Adds to ``results.json``.

    python benchmarks/quantization/speed.py --out DIR [--batch 8] [--budget 90] [--images 512] [--parts PART,PART]

Weights are random and the images noise: speed and memory do not depend on them. `calibrate` runs in a process of its
own, so that its peak memory is its own; `bench` lets all precisions of a runtime take turns in the same rounds, and
says where the time goes. Run it on a machine that does nothing else. With ``--parts`` other products than usual are
quantised, in a copy of the export.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from store import keep

from lifedeploy import children
from lifedeploy.machine import fast_bf16

FACTS = ("engine", "precision", "method", "batch", "mode", "images_per_s", "images_per_s_quartiles", "speedup")
FACTS += ("speedup_low", "speedup_high", "base", "over_base", "over_base_low", "over_base_high", "rounds")
PROFILE = ("engine", "precision", "method", "batch", "ms", "shares")


def lifedeploy(*arguments: object) -> None:
    """Run a command."""
    subprocess.run(children.command("lifedeploy", *map(str, arguments)), check=True)


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
    cache = export.parent / "cache"
    environment = {"XDG_CACHE_HOME": str(cache / str(time.time_ns()))}
    command = children.command("lifedeploy", "calibrate", str(export), "--int8", "--force")
    command += ["--data", str(images), "--images", str(count), *(["--parts", parts] if parts else [])]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | environment)
    seconds = time.perf_counter() - began
    return {
        "images": count,
        "graphs": 3,
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def contest(export: Path, engine: str, batch: int, budget: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All precisions of a runtime in the same rounds, over its FP32 dense model; and where the time of each goes."""
    precisions = ["fp32", *(["bf16"] if engine == "openvino" and fast_bf16() else []), "int8"]
    target = export.parent / f"bench-{engine}.json"
    chosen = [option for precision in precisions for option in ("--engine", f"{engine}:{precision}")]
    modes = ("--mode", "latency", "--mode", "throughput")
    measure = ("--batch", batch, *modes, "--budget", budget, "--no-memory", "--profile", "--json", target)
    lifedeploy("bench", export, *chosen, *measure)
    report = json.loads(target.read_text())
    rows = [{name: row[name] for name in FACTS} for row in report["rows"]]
    return rows, [{name: profile[name] for name in PROFILE} for profile in report["profiles"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Cost of calibrating, and speed of INT8, for DeiT-S.")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the models")
    parser.add_argument("--batch", type=int, default=8, help="default: 8")
    parser.add_argument("--budget", type=float, default=90, help="seconds per engine and precision (default: 90)")
    parser.add_argument("--images", type=int, default=512, help="to calibrate on (default: 512)")
    parser.add_argument("--engines", default="onnxruntime,openvino", help="default: onnxruntime,openvino")
    parser.add_argument("--parts", default="", help="quantise these instead of the usual (lifedeploy calibrate)")
    parser.add_argument("--known", action="store_true", help="keep the calibration that is there, and what it took")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "benchmarks/quantization/speed.py", *(arguments or sys.argv[1:])]).replace(
        str(options.out), "DIR"
    )
    export = options.out.resolve() / "deit_s"
    if not (export / "model.json").is_file():
        lifedeploy("export", "--backbone", "deit_s", "--rho", "0.7", "--weights", "random", "-o", export)
    suffix = f", {options.parts}" if options.parts else ""
    if options.parts:
        own = export.with_name(f"deit_s-{options.parts.replace(',', '-')}")
        if not own.exists():
            shutil.copytree(export, own, ignore=shutil.ignore_patterns("int8", "*-int8"))
        export = own
    if not options.known:
        cost = calibration(
            export, photographs(options.out / "noise", options.images + 64), options.images, options.parts
        )
        keep(f"calibrating{suffix}", cost, command)
    for engine in options.engines.split(","):
        rows, profiles = contest(export, engine, options.batch, options.budget)
        keep(f"speed, {engine}{suffix}", rows, command)
        keep(f"profile, {engine}{suffix}", profiles, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
