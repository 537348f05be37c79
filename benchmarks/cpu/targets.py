"""Measure what lifedeploy promises on a CPU, and write it down: ``RESULTS.md`` and ``results.json`` beside this file.

    python -m benchmarks.cpu.targets [--work DIR] [--budget SECONDS] [--quick]

Exports DeiT-S at keep rate 0.7 and at aligned counts, builds engines for ONNX Runtime and OpenVINO, measures both,
then the bare runtimes against our engines, the command line's start, and what an export costs. About 15 minutes on
two cores. Random weights: speed does not depend on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    BF16,
    command_line,
    contest,
    interval,
    lifedeploy,
    new_parser,
    number,
    publish,
    record_of,
    report_of,
    source,
    table,
)
from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Lane

BATCH = 8
EXPORTS = {
    "deit_s ρ 0.7": ("deit_s", "--rho", "0.7"),
    "deit_s counts 127,95,63": ("deit_s", "--counts", "127,95,63"),
    "deit_b ρ 0.7": ("deit_b", "--rho", "0.7"),
}
HALF = "openvino:fp16"  # BF16 where the CPU has it, FP32 (and a note that says so) where it has not
MEASURED = {
    "deit_s-life-r0.7": ("onnxruntime:fp32", HALF, *(("openvino:fp32",) if BF16 else ())),
    "deit_s-life-127.95.63": (HALF,),
}
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")


class BareOnnxRuntime(Lane):
    """What anyone would write: a session and ``run``."""

    def __init__(self, path: Path, images: np.ndarray) -> None:
        import onnxruntime as ort

        super().__init__({"images": images}, {})
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def infer(self) -> None:
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
        self._request.infer(self.inputs, share_inputs=True)


def against_bare(export: Path, name: str, budget_s: float) -> dict[str, Any]:
    """Our engine's throughput over the bare runtime's, on the dense baseline."""
    artifact = Artifact.read(next(export.glob(f"{name}-*/dense.json")))
    record = artifact.manifest.engine
    assert record is not None  # build-engine wrote it
    images = np.random.default_rng(0).standard_normal((BATCH, 3, 224, 224), dtype=np.float32)
    graph = export / "dense.onnx"
    bare = BareOnnxRuntime(graph, images) if name == "onnxruntime" else BareOpenVino(graph, images, record.precision)
    with registry.get(name)(artifact.path, EngineOptions(precision=record.precision, batch=BATCH)) as engine:
        lane = engine.lane(BATCH)
        lane.inputs["images"][...] = images
        ours = contest({"bare": bare, "ours": lane}, BATCH, budget_s)["ours"]
    return {"engine": f"{name} {record.precision}"} | ours


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# DeiT-S on a CPU",
        "",
        source(results, *PACKAGES),
        "",
        f"Batch {BATCH}, 224 px, random weights (speed does not depend on them). Medians of interleaved rounds in one "
        "process; in brackets the 95 % interval of the median ratio. Other work shared the machine.",
        "",
    ]
    if not any(row["precision"] == "bf16" for row in results["rows"]):
        lines += [
            "**Not measured here: BF16.** This CPU has neither AVX-512 BF16 nor AMX, so OpenVINO was asked for FP16 "
            "and ran FP32, which the table says. The same command measures BF16 on a CPU that has it.",
            "",
        ]
    head = "model | engine | mode | method | img/s | p50 ms | speed-up | MAC bound | efficiency | of first-k | MiB"
    lines += table(f"{head} | rounds", map(_cells, results["rows"]))
    lines += ["", "## Our engine against the bare runtime", ""]
    lines += ["The dense baseline, ours over a ten-line script that calls the runtime itself.", ""]
    rows = ((row["engine"], interval(row), row["rounds"]) for row in results["bare"])
    lines += table("engine | ours ÷ bare | rounds", rows)
    costs = [
        (f"export {name}, three graphs, parity gate", f"{cost['seconds']:.1f}", f"{cost['peak_mib'] / 1024:.2f}")
        for name, cost in results["exports"].items()
    ]
    costs.append(("`lifedeploy --help`", f"{results['help_s']:.2f}", "–"))
    return "\n".join([*lines, "", "## Cost", "", *table("command | seconds | peak memory, GiB", costs), ""])


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    slimmed = row if row["method"] != "dense" else dict.fromkeys(row)
    return (
        row["model"],
        f"{row['engine']} {row['precision']}",
        row["mode"],
        row["method"],
        f"{row['images_per_s']:.1f}",
        f"{row['latency_ms']['p50']:.0f}",
        interval(slimmed, "speedup"),
        number(slimmed["mac_ratio"], ".3f"),
        number(slimmed["efficiency"], ".1%"),
        number(row["first_k_share"], ".3f"),
        f"{row['peak_memory_mib'] or 0:.0f}",
        row["rounds"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder for exports and engines (default: a temporary one)")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of a contest (default: 90)")
    parser.add_argument("--quick", action="store_true", help="short budgets: to see that it runs")
    given = parser.parse_args(arguments)
    budget_s = 15.0 if given.quick else given.budget
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        line = command_line("cpu.targets", arguments, {"DIR": given.work} if given.work else None)
        results: dict[str, Any] = record_of(line) | {"rows": [], "exports": {}}
        results["help_s"] = float(np.median([lifedeploy("--help").seconds for _ in range(9)]))
        for name, options in EXPORTS.items():
            usage = lifedeploy("export", "--weights", "random", "--backbone", *options, folder=work)
            results["exports"][name] = asdict(usage)
        for model, engines in MEASURED.items():
            words = [word for engine in engines for word in ("--engine", engine)]
            words += ["--mode", "latency", "--mode", "throughput", "--batch", str(BATCH), "--budget", str(budget_s)]
            results["rows"] += report_of("bench", f"artifacts/{model}", *words, folder=work)["rows"]
        export = work / "artifacts" / next(iter(MEASURED))
        results["bare"] = [against_bare(export, name, budget_s) for name in ("onnxruntime", "openvino")]
    publish(Path(__file__).parent, "results", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
