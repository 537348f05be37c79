"""Everything on one NVIDIA GPU: engines, our runtime against a bare loop, and the open questions (see ``run.sh``).

    python benchmarks/gpu/measure.py [--out DIR] [--minutes 8.5] [--backbones deit_s,deit_b] [--batches 128,8,1,32,256]
    python benchmarks/gpu/measure.py --dry --out DIR

Each engine is built, held against PyTorch and measured by ``lifedeploy`` itself. What matters most comes first: DeiT-S
at keep rate 0.7 and batch 128 on ONNX Runtime, torch.compile and TensorRT, then the forms of attention, PyTorch's
questions, the other engines, 8 bits, other batches, the other schedule, DeiT-B. Results are written after every step,
and every step has a limit of its own, so that a run that is cut off, or a step that hangs, leaves what there is. A step
that fails is a line with its reason. Where only torch is installed, only its questions are asked.

A dry run takes the same steps at toy size, with an engine of numpy in the place of every engine and a CPU in the place
of the GPU. It fails if any step failed or was skipped, and never writes to this folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tables
from sizes import DRY, GPU, LEAD, PLANS, UNFUSED_TOO, Sizes

from lifedeploy.data.samples import photo_folder
from lifedeploy.engines import registry
from lifedeploy.engines.base import Availability
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, gpu_state

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
}
LEAST_S = 20.0  # a step that has less is not begun


# What the tool of that name says; it is how the section on trtexec comes about without one.
FAKE_TRTEXEC = """#!/bin/sh
echo "Throughput: 250.0 qps"
echo "GPU Compute Time: min = 3.9 ms, max = 4.1 ms, mean = 4 ms, median = 4.0 ms"
"""


class Run:
    """The measurement, with a clock that ends it."""

    def __init__(self, out: Path, work: Path, minutes: float, command: str, sizes: Sizes = GPU) -> None:
        self.out, self.work, self.sizes = out, work, sizes
        self.ends = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"rows": [], "bare": [], "kernels": {}, "failed": [], "skipped": [], "steps": []}
        self.found |= {"date": now(), "command": command, "dry": bool(sizes.stand_in), "machine": describe()}
        self.found |= {"gpu_state": {"before": gpu_state()}}

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def command(self, *words: str, what: str, limit_s: float, least_s: float = LEAST_S) -> bool:
        """Run a command; whether it ended well. A failure is written down with its last line, and so is no time."""
        if self.left() < least_s:
            self.found["skipped"].append(what)
            self.write()
            return False
        print(f"[{self.left():4.0f} s left] {shlex.join(words)}", flush=True)
        began, allowed = time.monotonic(), min(limit_s, self.left())
        code, said = _ended(words, self.work, allowed)
        self.found["steps"].append({"what": what, "seconds": time.monotonic() - began})
        if code is None and allowed < limit_s:
            self.found["skipped"].append(f"{what} (cut off)")
        elif code != 0:
            lines = [line for line in said if line.startswith("error:")] or said or ["no reason given"]
            reason = f"took over {allowed:.0f} s, and was ended" if code is None else lines[-1]
            self.found["failed"].append({"what": what, "reason": reason})
            print(f"  failed: {reason}", flush=True)
        self.write()
        return code == 0

    def lifedeploy(self, *words: str, what: str) -> bool:
        """One of our own commands."""
        return self.command(*self.sizes.lifedeploy, *words, what=what, limit_s=LIMITS[words[0]])

    def script(self, name: str, *words: str, what: str, limit_s: float, least_s: float = LEAST_S) -> bool:
        """One of the scripts in this folder."""
        return self.command(str(HERE / f"{name}.py"), *words, what=what, limit_s=limit_s, least_s=least_s)

    def export(self, backbone: str, number: int) -> Path | None:
        """A model with random weights, by the schedule of that number; None where that failed."""
        schedule, options = self.sizes.schedules[number]
        target = Path(f"{backbone}-{number}")
        words = ["export", "--backbone", backbone, *options.split(), "--weights", "random", "--no-parity"]
        made = self.lifedeploy(*words, "-o", str(target), what=f"export of {backbone}, {schedule}")
        return target if made else None

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
            self.found["kernels"][what.removeprefix("build of ")] = "; ".join(filter(None, (kernels, fusion["note"])))
            self.write()
        return built

    def fusion(self, export: Path, engine: str, precision: str) -> dict[str, Any]:
        """What the manifest says of the kernels of a build."""
        folder = self.work / export / f"{self.sizes.engine(engine)}-{precision}"
        found: dict[str, Any] = json.loads((folder / "model.json").read_text())["engine"]["details"].get("fusion", {})
        return found

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
            for row in json.loads(out.read_text())["rows"]:
                fusion = self.fusion(export, engine, row["precision"])
                own = {"engine": engine, "fusion": {name: fusion.get(name) for name in ("attention", "topk")}}
                self.found["rows"].append(row | labels | own)
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
        if self.script("bare", *words, what=f"{engine} against a bare loop", limit_s=LIMITS["bare"]):
            self.found["bare"].append(json.loads(out.read_text()) | {"engine": engine})
            self.write()

    def kernels(self, export: Path, engine: str, batch: int) -> None:
        """Where the time of an engine goes."""
        words = [str(export / f"{self.sizes.engine(engine)}-{PRECISION}"), "--batch", str(batch), *self.sizes.kernels]
        what = f"kernels of {engine}"
        self.script("kernels", *words, "--out", str(self.out), what=what, limit_s=LIMITS["kernels"])

    def attentions(self, export: Path) -> None:
        """The forms of attention against each other, on ONNX Runtime."""
        words = [str(export / "model.onnx"), "--out", str(self.out), *self.sizes.attentions.split()]
        self.script("attentions", *words, what="forms of attention on ONNX Runtime", limit_s=LIMITS["attentions"])

    def questions(self) -> None:
        """The open questions, asked of PyTorch."""
        minutes = self.sizes.questions_minutes
        words = ["--out", str(self.out), "--minutes", str(minutes), *self.sizes.questions.split()]
        what, seconds = "open questions, asked of PyTorch", 60 * minutes
        self.script("questions", *words, what=what, limit_s=1.5 * seconds, least_s=0.5 * seconds)

    def variants(self, export: Path) -> None:
        """The open questions, asked of TensorRT."""
        minutes = self.sizes.variants_minutes
        words = [str(export / "model.onnx"), "--out", str(self.out), "--minutes", str(minutes)]
        what, seconds = "open questions, asked of TensorRT", 60 * minutes
        words += self.sizes.variants.split()
        self.script("variants", *words, what=what, limit_s=1.5 * seconds, least_s=seconds)

    def write(self) -> None:
        """What there is so far."""
        self.found["gpu_state"]["after"] = gpu_state()
        write_json(self.out / "results.json", self.found)
        (self.out / "RESULTS.md").write_text(tables.results(self.found), encoding="utf-8")


def _ended(words: Sequence[str], folder: Path, limit_s: float) -> tuple[int | None, list[str]]:
    """Run Python with ``words``: its exit code, None where it was ended, with all that it began; and what it said."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # no pipe: one that a grandchild holds never ends
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return code, [line for line in said.read().splitlines() if line.strip()]


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
            run.attentions(first)
        if LEAD[0] in built:
            run.kernels(first, LEAD[0], sizes.batches[0])
    run.questions()
    if first is not None:
        for engine in engines:
            if engine not in LEAD and engine not in PLANS:
                begin(first, engine)
        for engine in plans:
            if engine in built:
                run.eight_bits(first, engine, sizes.batches[0], labels)
        if plans:
            run.variants(first)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: beside this file; a dry run needs it")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--backbones")
    parser.add_argument("--batches")
    parser.add_argument("--dry", action="store_true", help="walk all steps without a GPU, at toy size")
    given = parser.parse_args(arguments)
    if given.dry and (given.out is None or given.out.resolve() == HERE):
        raise SystemExit(f"a dry run needs --out FOLDER, and not {HERE}, where results are")
    out = (given.out or HERE).resolve()
    sizes = DRY if given.dry else GPU
    if given.backbones:
        sizes = replace(sizes, backbones=tuple(given.backbones.split(",")))
    if given.batches:
        sizes = replace(sizes, batches=tuple(int(batch) for batch in given.batches.split(",")))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    found = {} if missing else {name: _examine(sizes.engine(name)) for name in sizes.engines}
    engines = [name for name, health in found.items() if health.ok]
    if not missing and not engines:
        reasons = "; ".join(f"{name}: {health.reason}" for name, health in found.items())
        raise SystemExit(f"no engine runs on a GPU here: {reasons}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = shlex.join(
            ["python", "benchmarks/gpu/measure.py", *(sys.argv[1:] if arguments is None else arguments)]
        )
        run = Run(out, Path(work), given.minutes, command, sizes)
        for name, health in found.items():
            if not health.ok:
                run.found["failed"].append({"what": name, "reason": health.reason})
        if missing:
            run.found["skipped"].append(f"all engines: not installed are {', '.join(missing)}")
            run.questions()
        else:
            if given.dry:
                _put_on_path(Path(work) / "bin" / "fake_trtexec", FAKE_TRTEXEC)
            measure(run, engines)
        run.write()
    print((out / "RESULTS.md").read_text(encoding="utf-8"))
    undone = len(run.found["failed"]) + len(run.found["skipped"])
    if given.dry and undone:
        raise SystemExit(
            f"error: {undone} steps of the dry run failed or were skipped: {out / 'RESULTS.md'} says which"
        )


def _examine(name: str) -> Availability:
    return registry.examine(registry.get(name))


def _put_on_path(tool: Path, text: str) -> None:
    tool.parent.mkdir()
    tool.write_text(text, encoding="utf-8")
    tool.chmod(0o755)
    os.environ["PATH"] = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    main()
