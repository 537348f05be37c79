"""Measure what lifedeploy promises on a CPU, and write it down: ``RESULTS.md`` and ``results.json`` beside this file.

    python benchmarks/cpu/targets.py [--work DIR] [--quick]

Exports DeiT-S at keep rate 0.7 and at aligned counts, builds engines for ONNX Runtime and OpenVINO, measures both,
then the bare runtimes against our engines, the command line's start, and what an export costs. About 15 minutes on
two cores. Random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy import children
from lifedeploy.artifact import Artifact
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Lane
from lifedeploy.files import now
from lifedeploy.machine import describe

HERE = Path(__file__).parent
BATCH = 8


def run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Run ``lifedeploy ARGUMENTS`` in ``folder``: seconds, and peak memory in GiB."""
    print("$ lifedeploy", shlex.join(arguments), flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(children.command("lifedeploy", *arguments), cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"lifedeploy {shlex.join(arguments)} failed")
    scale = 1024**2 if platform.system() == "Linux" else 1024**3  # KiB on Linux, bytes on macOS
    return seconds, usage.ru_maxrss / scale


def bench(model: str, engines: list[str], folder: Path, budget: float) -> list[dict[str, Any]]:
    """Rows of ``lifedeploy bench`` in both modes."""
    out = folder / "bench.json"
    names = [argument for engine in engines for argument in ("--engine", engine)]
    modes = ["--mode", "latency", "--mode", "throughput"]
    run(["bench", model, *names, *modes, "--batch", str(BATCH), "--budget", str(budget), "--json", str(out)], folder)
    return list(json.loads(out.read_text())["rows"])


class BareOnnxRuntime(Lane):
    """What anyone would write: a session and ``run``."""

    def __init__(self, path: Path, images: np.ndarray) -> None:
        import onnxruntime as ort

        super().__init__({"images": images}, {})
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def infer(self) -> None:
        """One request."""
        self._session.run(None, self.inputs)


class BareOpenVino(Lane):
    """What anyone would write: a compiled model of fixed shape and ``infer``."""

    def __init__(self, path: Path, images: np.ndarray, precision: str) -> None:
        import openvino as ov

        super().__init__({"images": images}, {})
        core = ov.Core()
        model = core.read_model(path)
        model.reshape(list(images.shape))
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint})
        self._request = compiled.create_infer_request()

    def infer(self) -> None:
        """One request."""
        self._request.infer(self.inputs, share_inputs=True)


def against_bare(export: Path, engine: str, budget: float) -> dict[str, Any]:
    """Our engine's throughput over the bare runtime's, on the dense baseline, in interleaved rounds."""
    built = next(export.glob(f"{engine}-*/dense.json"))
    artifact = Artifact.read(built)
    record = artifact.manifest.engine
    assert record is not None
    images = np.random.default_rng(0).standard_normal((BATCH, 3, 224, 224), dtype=np.float32)
    source = export / "dense.onnx"
    bare = (
        BareOnnxRuntime(source, images) if engine == "onnxruntime" else BareOpenVino(source, images, record.precision)
    )
    with registry.get(engine)(artifact.path, EngineOptions(precision=record.precision, batch=BATCH)) as ours:
        lane = ours.lane(BATCH)
        lane.inputs["images"][...] = images
        contenders = [Contender("bare", BATCH, (bare,)), Contender("ours", BATCH, (lane,))]
        samples = measure(contenders, Stop(budget_s=budget))
    ratio = samples.ratio("ours", "bare")
    return {
        "engine": f"{engine} {record.precision}",
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "rounds": samples.count,
    }


def help_seconds() -> float:
    """Median time of ``lifedeploy --help``."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run(children.command("lifedeploy", "--help"), check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for exports and engines (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="short budgets: to see that it runs")
    arguments = parser.parse_args()
    budget = 15.0 if arguments.quick else 90.0
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        costs = {}
        exports = {
            "deit_s ρ 0.7": ["--backbone", "deit_s", "--rho", "0.7"],
            "deit_s counts 127,95,63": ["--backbone", "deit_s", "--counts", "127,95,63"],
            "deit_b ρ 0.7": ["--backbone", "deit_b", "--rho", "0.7"],
        }
        for name, options in exports.items():
            costs[name] = run(["export", "--weights", "random", *options], work)
        results = {
            "created": now(),
            "command": "python " + " ".join(["benchmarks/cpu/targets.py", *sys.argv[1:]]),
            "machine": describe(),
            "help_s": help_seconds(),
            "exports": {name: {"seconds": cost[0], "peak_gib": cost[1]} for name, cost in costs.items()},
            "rows": [],
            "bare": [],
        }
        half = "openvino:fp16"  # bf16 where the CPU has it, fp32 (and a note that says so) where it has not
        single = ["openvino:fp32"] if fast_half() else []
        for model, engines in {
            "deit_s-life-r0.7": ["onnxruntime:fp32", half, *single],
            "deit_s-life-127.95.63": [half],
        }.items():
            results["rows"] += bench(f"artifacts/{model}", engines, work, budget)
        for engine in ("onnxruntime", "openvino"):
            results["bare"].append(against_bare(work / "artifacts" / "deit_s-life-r0.7", engine, budget))
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(report(results), encoding="utf-8")
    print(report(results))


def fast_half() -> bool:
    """Whether this CPU computes in half precision faster than in single."""
    return registry.get("openvino").plan("fp16").precision != "fp32"


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    versions = machine["versions"]
    named = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")
    lines = [
        "# DeiT-S on a CPU",
        "",
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {versions[name]}" for name in named if name in versions)
        + f". {results['created'][:10]}.",
        "",
        f"Command: `{results['command']}`. Batch {BATCH}, 224 px, random weights (speed does not depend on them). "
        "Medians of interleaved rounds in one process; in brackets the 95 % interval of the median ratio. Other work "
        "shared the machine.",
        "",
    ]
    if not any(row["precision"] == "bf16" for row in results["rows"]):
        lines += [
            "**Not measured here: BF16.** This CPU has neither AVX-512 BF16 nor AMX, so OpenVINO was asked for FP16 "
            "and ran FP32, which the table says. The same command measures BF16 on a CPU that has it.",
            "",
        ]
    columns = ["model", "engine", "mode", "method", "img/s", "p50 ms", "speed-up", "MAC bound", "efficiency"]
    columns += ["of first-k", "MiB", "rounds"]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in results["rows"]:
        speedup = "–"
        if row["method"] != "dense":
            speedup = f"**{row['speedup']:.3f}** [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]"
        share = "–" if row["first_k_share"] is None else f"{row['first_k_share']:.3f}"
        dense = row["method"] == "dense"
        lines.append(
            f"| {row['model']} | {row['engine']} {row['precision']} | {row['mode']} | {row['method']} "
            f"| {row['images_per_s']:.1f} | {row['latency_ms']['p50']:.0f} | {speedup} "
            f"| {'–' if dense else format(row['mac_ratio'], '.3f')} "
            f"| {'–' if dense else format(row['efficiency'], '.1%')} | {share} "
            f"| {row['peak_memory_mib'] or 0:.0f} | {row['rounds']} |"
        )
    lines += [
        "",
        "## Our engine against the bare runtime",
        "",
        "The dense baseline, ours over a ten-line script that calls the runtime itself.",
        "",
        "| engine | ours ÷ bare | rounds |",
        "|---|---|---|",
    ]
    for row in results["bare"]:
        lines.append(
            f"| {row['engine']} | {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['rounds']} |"
        )
    lines += ["", "## Cost", "", "| command | seconds | peak memory, GiB |", "|---|---|---|"]
    for name, cost in results["exports"].items():
        lines.append(f"| export {name}, three graphs, parity gate | {cost['seconds']:.1f} | {cost['peak_gib']:.2f} |")
    lines += [f"| `lifedeploy --help` | {results['help_s']:.2f} | – |", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
