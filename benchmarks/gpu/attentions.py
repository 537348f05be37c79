"""Attention in every form that ONNX Runtime reads, against each other on its CUDA provider; and which kernel each ran.

    python -m benchmarks.gpu.attentions MODEL.onnx [--out DIR] [--batches 128,8,1] [--engine onnxruntime-cuda]

MODEL is an order-once export with its manifest (``lifedeploy export``). The forms are MatMul → Softmax → MatMul, ONNX's
Attention operator, and ONNX Runtime's own (``contrib``). Each is first held against the original in FP32 and emulated
in half precision (``rewrites.py``), then against the products on the engine itself, before it is timed. ``--engine
onnxruntime --precision fp32`` runs it on a CPU, which says that the script works, and nothing about a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, new_parser, publish, record_of, source, table
from benchmarks.gpu.rewrites import Variant, prove, write
from benchmarks.gpu.variants import PROOFS, contest, proofs, times_of
from lifedeploy.artifact import Artifact
from lifedeploy.engines import attention_kernels, registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import EngineError
from lifedeploy.exporters.precision import HALF
from lifedeploy.machine import gpu_state
from lifedeploy.spec import ATTENTIONS

HERE = Path(__file__).parent
ENGINES = ("onnxruntime-cuda", "onnxruntime")
# ONNX Runtime makes a Gemm of MatMul and Add, which copies the bias beforehand (KERNELS.md); without that, the Add is
# left for its fusions with GELU, with the residual and the norm, and with attention.
APART = "contrib, biases apart"
CPU = "**Run on a CPU: this says that the script works, and nothing about a GPU.**"


class Run:
    """All forms, with files that are written after each step."""

    def __init__(self, source: Path, out: Path, engine: str, precision: str, command: str) -> None:
        self.source, self.out, self.precision = source, out, precision
        kind = registry.get(engine)
        assert issubclass(kind, OnnxRuntime)  # the names come from ENGINES
        self.kind = kind
        manifest = Artifact.read(source.with_suffix(".json")).manifest
        self.spec, self.taps = manifest.spec, manifest.kept.taps
        self.record: dict[str, Any] = {"rows": [], "not_timed": {}, "engine": engine} | record_of(command)
        self.record |= {"precision": precision, "backbone": self.spec.backbone, "gpu_state": {"before": gpu_state()}}

    def forms(self, work: Path) -> dict[str, Path]:
        """Write and prove all forms: name → graph; a row for each, with the kernels that ran."""
        variants = {name: Variant(attention=name) for name in ATTENTIONS} | {APART: Variant(attention="contrib")}
        half = self.precision if self.precision in HALF else "fp16"
        facts = prove(self.source, self.spec, work, half, variants)
        graphs = {}
        for name, variant in variants.items():
            print(f"{self.kind.name}: {name}", flush=True)
            graphs[name] = work / f"{name}.onnx"
            write(self.source, variant, self.precision if self.precision in HALF else "", graphs[name])
            kernels = attention_kernels.read_back(graphs[name], self.kind.provider, self.spec.schedule.depth)
            row = {"engine": self.kind.name, "variant": name, "fusion": kernels.to_dict(), "times": []}
            self.record["rows"].append(row | facts[name])
        self.write()
        return graphs

    def contests(self, graphs: Mapping[str, Path], batches: Sequence[int], seconds: float) -> None:
        """Time all forms at every batch size."""
        options = EngineOptions(precision=self.precision, taps=self.taps)
        with ExitStack() as stack:
            kinds = {name: _apart(self.kind) if name == APART else self.kind for name in graphs}
            engines = {name: stack.enter_context(kinds[name](path, options)) for name, path in graphs.items()}
            for batch in batches:
                print(f"{self.kind.name}: batch {batch}", flush=True)
                try:
                    timed = contest(engines, batch, seconds, self.spec.schedule.counts, self.precision)
                except EngineError as error:  # at another batch it may work
                    self.record["not_timed"][f"batch {batch}"] = error.message
                    continue
                for row in self.record["rows"]:
                    row["times"].append(timed[row["variant"]])
                self.write()

    def write(self) -> None:
        """What there is so far."""
        self.record["gpu_state"]["after"] = gpu_state()
        publish(self.out, "attentions", self.record, markdown(self.record))


def _apart(kind: type[OnnxRuntime]) -> type[OnnxRuntime]:
    """The engine without the optimiser that makes a Gemm of MatMul and Add."""
    return type("Apart", (kind,), {"disabled_optimizers": staticmethod(lambda options: ("MatMulAddFusion",))})


def told(fusion: Mapping[str, Any]) -> str:
    """The kernels of a form, and what has to be said about them."""
    kernels = ", ".join(f"{count} × {kernel}" for kernel, count in fusion["kernels"].items())
    return "; ".join(filter(None, (kernels, fusion["note"]))) or "not told"


def markdown(record: Mapping[str, Any]) -> str:
    """The forms and their times."""
    lines = [
        "# Attention in every form that ONNX Runtime reads",
        "",
        source(record, "onnxruntime", "onnxruntime-gpu"),
        "",
        f"{record['backbone']}, {record['precision'].upper()}, ordered once, random weights. `products` is MatMul,",
        "Softmax and MatMul, `operator` ONNX's Attention, `contrib` ONNX Runtime's MultiHeadAttention. Kernels are in",
        "ONNX Runtime's own words; MATH is not fused.",
        *(["", CPU] if record["engine"] == "onnxruntime" else []),
        "",
        *table(
            f"form | kernels | {PROOFS}",
            ((row["variant"], told(row["fusion"]), *proofs(row)) for row in record["rows"]),
        ),
        "",
        *times_of(record, "the products'"),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, prove, ask, time."""
    parser = new_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--precision", choices=("fp32", *HALF), default="fp16")
    parser.add_argument("--batches", default="128,8,1")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring per batch size")
    given = parser.parse_args(arguments)
    health = registry.examine(registry.get(given.engine))
    if not health.ok:
        raise SystemExit(f"engine {given.engine} cannot run here: {health.reason}")
    command = command_line("gpu.attentions", arguments, {"MODEL.onnx": given.model})
    run = Run(given.model, given.out, given.engine, given.precision, command)
    with tempfile.TemporaryDirectory() as work:
        graphs = run.forms(Path(work))
        run.contests(graphs, [int(batch) for batch in given.batches.split(",")], given.seconds)
    run.write()
    print((given.out / "ATTENTIONS.md").read_text(encoding="utf-8"))
    if run.record["not_timed"]:
        raise SystemExit(f"error: {next(iter(run.record['not_timed'].values()))}")


if __name__ == "__main__":
    main()
