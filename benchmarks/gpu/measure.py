"""Everything on one NVIDIA GPU: engines, our runtime against a bare loop, other forms of the graph (see ``run.sh``).

    python -m benchmarks.gpu.measure [--out DIR] [--minutes 8.5] [--engines onnxruntime-cuda,tensorrt,…]
                                    [--backbones deit_s,deit_b] [--batches 128,8,1,32,256]
    python -m benchmarks.gpu.measure --dry --out DIR

Each engine is built, held against PyTorch and measured by ``lifedeploy`` itself. What matters most comes first: DeiT-S
at keep rate 0.7 and batch 128 on ONNX Runtime, torch.compile and TensorRT, then the forms of attention, where the time
goes, the other engines, 8 bits, other batches, the other schedule, DeiT-B. Results are written after every step, and
every step has a limit of its own, so that a run that is cut off, or a step that hangs, leaves what there is. A step
that fails is a line with its reason.

A dry run takes the same steps at toy size, with an engine of numpy in the place of every engine and a CPU in the place
of the GPU. It fails if any step failed or was skipped, and never writes to this folder.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, new_parser, publish, read_json, record_of, run_python
from benchmarks.gpu import tables
from benchmarks.gpu.sizes import DRY, GPU, LEAD, PLANS, UNFUSED_TOO, Sizes
from lifedeploy.data.samples import photo_folder
from lifedeploy.engines import registry
from lifedeploy.machine import gpu_state

HERE = Path(__file__).parent
NEEDED = (
    *("torch", "timm", "numpy", "PIL", "safetensors", "msgspec", "typer", "rich"),
    *("onnx", "onnx_ir", "onnxscript", "ml_dtypes"),
)
PRECISION = "fp16"
# Seconds that a step may take at most, so that one that hangs does not cost all others.
# torch.compile compiles each method for each batch of the parity gate while it builds.
LIMITS = {
    "export": 90,
    "build-engine": 200,
    "bench": 110,
    "calibrate": 90,
    "bare": 60,
    "attentions": 110,
    "kernels": 60,
    "variants": 110,
}
LEAST_S = 20.0  # a step that has less is not begun


# What the tool of that name prints; it is how the section on trtexec comes about without one.
FAKE_TRTEXEC = """#!/bin/sh
echo "Throughput: 250.0 qps"
echo "GPU Compute Time: min = 3.9 ms, max = 4.1 ms, mean = 4 ms, median = 4.0 ms"
"""


class Run:
    """The measurement, with a clock that ends it."""

    def __init__(self, out: Path, work: Path, minutes: float, command: str, sizes: Sizes = GPU) -> None:
        self.out, self.work, self.sizes = out, work, sizes
        self.ends = time.monotonic() + 60 * minutes
        self.record: dict[str, Any] = {"rows": [], "bare": [], "kernels": {}, "failed": [], "skipped": [], "steps": []}
        self.record |= record_of(command) | {"dry": bool(sizes.stand_in), "gpu_state": {"before": gpu_state()}}

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def command(self, *words: str, what: str, limit_s: float, least_s: float = LEAST_S) -> bool:
        """Run a command; whether it ended well. A failure is written down with its last line, and so is no time."""
        if self.left() < least_s:
            self.record["skipped"].append(what)
            self.write()
            return False
        print(f"[{self.left():4.0f} s left] {shlex.join(words)}", flush=True)
        began, allowed = time.monotonic(), min(limit_s, self.left())
        code, said = run_python(words, self.work, allowed)
        self.record["steps"].append({"what": what, "seconds": time.monotonic() - began})
        if code is None and allowed < limit_s:
            self.record["skipped"].append(f"{what} (cut off)")
        elif code != 0:
            lines = [line for line in said if line.startswith("error:")] or said or ["no reason given"]
            reason = f"took over {allowed:.0f} s, and was ended" if code is None else lines[-1]
            self.record["failed"].append({"what": what, "reason": reason})
            print(f"  failed: {reason}", flush=True)
        self.write()
        return code == 0

    def lifedeploy(self, *words: str, what: str) -> bool:
        """One of our own commands."""
        return self.command(*self.sizes.lifedeploy, *words, what=what, limit_s=LIMITS[words[0]])

    def script(self, name: str, *words: str, what: str) -> bool:
        """One of the scripts in this folder."""
        return self.command("-m", f"benchmarks.gpu.{name}", *words, what=what, limit_s=LIMITS[name])

    def export(self, backbone: str, number: int) -> Path | None:
        """A model with random weights, by the schedule of that number; None where that failed."""
        schedule, options = self.sizes.schedules[number]
        target = Path(f"{backbone}-{number}")
        words = ["export", "--backbone", backbone, *options.split(), "--weights", "random", "--no-parity"]
        ended_well = self.lifedeploy(*words, "-o", str(target), what=f"export of {backbone}, {schedule}")
        return target if ended_well else None

    def build(self, export: Path, engine: str, labels: dict[str, str]) -> bool:
        """Build one engine and hold it against PyTorch."""
        what = f"build of {labels['backbone']}, {labels['schedule']}, {engine}"
        words = ["build-engine", str(export), "-e", self.sizes.engine(engine), f"--{PRECISION}"]
        words += ["--batch", self.sizes.profile] if engine in PLANS else []
        words += ["--allow-unfused"] if engine in UNFUSED_TOO else []  # a number with a note is better than none
        built = self.lifedeploy(*words, what=what)
        fusion = self.fusion(export, engine, PRECISION) if built else {}
        if engine == LEAD[0] and fusion:
            kernels = ", ".join(f"{count} × {kernel}" for kernel, count in fusion["kernels"].items())
            self.record["kernels"][what.removeprefix("build of ")] = "; ".join(filter(None, (kernels, fusion["note"])))
            self.write()
        return built

    def fusion(self, export: Path, engine: str, precision: str) -> dict[str, Any]:
        """What the manifest says of the kernels of a build."""
        folder = self.work / export / f"{self.sizes.engine(engine)}-{precision}"
        fusion: dict[str, Any] = read_json(folder / "model.json")["engine"]["details"].get("fusion", {})
        return fusion

    def bench(
        self, export: Path, engine: str, batch: int, labels: dict[str, str], precisions: Sequence[str] = (PRECISION,)
    ) -> None:
        """One contest, with copies and without, and at one batch size another one with two requests in flight."""
        for mode in ("latency", "throughput") if batch == self.sizes.in_flight else ("latency",):
            out = self.work / "bench.json"
            words = ["bench", str(export), "--batch", str(batch), "--no-memory", "--mode", mode]
            named = self.sizes.engine(engine)
            words += [word for precision in precisions for word in ("--engine", f"{named}:{precision}")]
            words += ["--budget", str(self.sizes.budget_s), "--json", str(out)]
            what = f"{labels['backbone']}, {labels['schedule']}, {engine} {'/'.join(precisions)}, batch {batch}, {mode}"
            if not self.lifedeploy(*words, what=what):
                continue
            for row in read_json(out)["rows"]:
                fusion = self.fusion(export, engine, row["precision"])
                facts = {"engine": engine, "fusion": {name: fusion.get(name) for name in ("attention", "topk")}}
                self.record["rows"].append(row | labels | facts)
            self.write()

    def eight_bits(self, export: Path, engine: str, batch: int, labels: dict[str, str]) -> None:
        """FP8 and INT8 beside FP16, in the same rounds. With random weights four photographs calibrate well enough."""
        built = []
        for precision in tables.EIGHT_BITS:
            what = f"{labels['backbone']}, {labels['schedule']}, {engine} {precision}"
            words = ["calibrate", str(export), f"--{precision}", "--data", str(photo_folder())]
            if self.lifedeploy(*words, "--images", "4", "--check-images", "4", what=f"calibrating {what}"):
                words = ["build-engine", str(export), "-e", self.sizes.engine(engine), f"--{precision}"]
                words += ["--batch", self.sizes.profile, "--allow-unfused"]
                if self.lifedeploy(*words, what=f"build of {what}"):
                    built.append(precision)
        if built:
            self.bench(export, engine, batch, labels, (PRECISION, *built))

    def bare(self, export: Path, engine: str, batch: int) -> None:
        """Our runtime against a bare loop over the same plan."""
        out = self.work / "bare.json"
        words = [str(export / f"{self.sizes.engine(engine)}-{PRECISION}"), "--batch", str(batch)]
        words += ["--budget", str(self.sizes.bare_s), "--json", str(out)]
        if self.script("bare", *words, what=f"{engine} against a bare loop"):
            self.record["bare"].append(read_json(out) | {"engine": engine})
            self.write()

    def kernels(self, export: Path, engine: str, batch: int) -> None:
        """Where the time of an engine goes."""
        folder, words = export / f"{self.sizes.engine(engine)}-{PRECISION}", self.sizes.kernels.split()
        words += ["--batch", str(batch), "--out", str(self.out)]
        self.script("kernels", str(folder), *words, what=f"kernels of {engine}")

    def forms(self, export: Path, script: str, words: str, what: str) -> None:
        """Other forms of the graph against each other."""
        self.script(script, str(export / "model.onnx"), "--out", str(self.out), *words.split(), what=what)

    def write(self) -> None:
        """What there is so far."""
        self.record["gpu_state"]["after"] = gpu_state()
        publish(self.out, "results", self.record, tables.results(self.record))


def measure(run: Run, engines: Sequence[str]) -> None:
    """All of it, most important first."""
    sizes = run.sizes
    labels = {"backbone": sizes.backbones[0], "schedule": sizes.schedules[0][0]}
    first, built = run.export(sizes.backbones[0], 0), []

    def begin(export: Path, engine: str) -> None:
        if run.build(export, engine, labels):
            built.append(engine)
            run.bench(export, engine, sizes.batches[0], labels)

    plans = [engine for engine in engines if engine in PLANS]
    if first is not None:
        for engine in engines:
            if engine in LEAD or engine in PLANS:
                begin(first, engine)
            if engine in plans and engine in built:
                run.bare(first, engine, sizes.batches[0])
        if LEAD[0] in engines:
            run.forms(first, "attentions", sizes.attentions, "forms of attention on ONNX Runtime")
        if LEAD[0] in built:
            run.kernels(first, LEAD[0], sizes.batches[0])
        for engine in engines:
            if engine not in LEAD and engine not in PLANS:
                begin(first, engine)
        for engine in plans:
            if engine in built:
                run.eight_bits(first, engine, sizes.batches[0], labels)
        if plans:
            run.forms(first, "variants", sizes.variants, "other forms of the graph in TensorRT")
        for batch in sizes.batches[1:]:
            for engine in built[: sizes.later]:
                run.bench(first, engine, batch, labels)
    for backbone in sizes.backbones:
        for number, (schedule, _) in enumerate(sizes.schedules):
            if (backbone, number) == (sizes.backbones[0], 0):
                continue
            export = run.export(backbone, number)
            if export is None:
                continue
            others = {"backbone": backbone, "schedule": schedule}
            ready = [engine for engine in engines[: sizes.later] if run.build(export, engine, others)]
            for batch in sizes.batches[: sizes.elsewhere]:
                for engine in ready:
                    run.bench(export, engine, batch, others)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, help="default: beside this file; a dry run needs it")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--engines", help="only these, in this order")
    parser.add_argument("--backbones")
    parser.add_argument("--batches")
    parser.add_argument("--dry", action="store_true", help="walk all steps without a GPU, at toy size")
    given = parser.parse_args(arguments)
    if given.dry and (given.out is None or given.out.resolve() == HERE):
        raise SystemExit(f"a dry run needs --out FOLDER, and not {HERE}, where results are")
    out = (given.out or HERE).resolve()
    sizes = DRY if given.dry else GPU
    if given.engines:
        sizes = replace(sizes, engines=tuple(given.engines.split(",")))
    if given.backbones:
        sizes = replace(sizes, backbones=tuple(given.backbones.split(",")))
    if given.batches:
        sizes = replace(sizes, batches=tuple(int(batch) for batch in given.batches.split(",")))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    states = {name: registry.examine(registry.get(sizes.engine(name))) for name in sizes.engines}
    if not any(state.ok for state in states.values()):
        reasons = "; ".join(f"{name}: {state.reason}" for name, state in states.items())
        raise SystemExit(f"no engine runs on a GPU here: {reasons}")
    with tempfile.TemporaryDirectory() as work:
        run = Run(out, Path(work), given.minutes, command_line("gpu.measure", arguments), sizes)
        run.record["failed"] += [
            {"what": name, "reason": state.reason} for name, state in states.items() if not state.ok
        ]
        if given.dry:
            _put_on_path(Path(work) / "bin" / "fake_trtexec", FAKE_TRTEXEC)
        measure(run, [name for name, state in states.items() if state.ok])
        run.write()
    print((out / "RESULTS.md").read_text(encoding="utf-8"))
    undone = len(run.record["failed"]) + len(run.record["skipped"])
    if given.dry and undone:
        raise SystemExit(
            f"error: {undone} steps of the dry run failed or were skipped: {out / 'RESULTS.md'} says which"
        )


def _put_on_path(tool: Path, text: str) -> None:
    tool.parent.mkdir()
    tool.write_text(text, encoding="utf-8")
    tool.chmod(0o755)
    os.environ["PATH"] = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    main()
