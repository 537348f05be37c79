"""Everything on one NVIDIA GPU: engines, our runtime against a bare loop, and the open questions (see ``run.sh``).

    python benchmarks/gpu/measure.py [--out DIR] [--minutes 7.5] [--backbones deit_s,deit_b] [--batches 128,8,1,32,256]

Each engine is built, held against PyTorch and measured by ``lifedeploy`` itself. What matters most comes first
(DeiT-S, keep rate 0.7, batch 128), and results are written after every step, so that a run that is cut off keeps what
it has. An engine that fails is a line with its reason. Where only torch is installed, only its questions are asked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifedeploy.data.samples import photo_folder
from lifedeploy.engines import registry
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe, gpu_state

HERE = Path(__file__).parent
ENGINES = (
    *("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"),
    *("onnxruntime-cuda", "torch-compiled", "torch-cuda"),
)
PLANS = ("tensorrt", "tensorrt-rtx")
NEEDED = ("timm", "onnx", "onnxscript", "onnx_ir", "typer", "rich", "safetensors")
PRECISION = "fp16"
EIGHT_BITS = ("fp8", "int8")
SCHEDULES = {"ρ 0.7": ("--rho", "0.7"), "127, 95, 63": ("--counts", "127,95,63")}
IN_FLIGHT = 8  # the batch that is also measured with two requests in flight
BUDGET_S = 6  # of one contest
QUESTIONS_MINUTES = 1.5
VARIANTS_MINUTES = 1.2
TARGET = "speed-up 1.43, of first-k 0.98, of a bare loop 0.99 (DeiT-S, ρ 0.7, batch 128, FP16)"


class Run:
    """The measurement, with a clock that ends it."""

    def __init__(self, out: Path, work: Path, minutes: float, command: str) -> None:
        self.out, self.work = out, work
        self.ends = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"rows": [], "bare": [], "failed": [], "skipped": [], "date": now()}
        self.found |= {"command": command, "machine": describe(), "gpu_state": {"before": gpu_state()}}

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def command(self, *words: str, what: str, least_s: float = 20.0) -> bool:
        """Run a command; whether it ended well. A failure is written down with its last line."""
        if self.left() < least_s:
            self.found["skipped"].append(what)
            return False
        print(f"[{self.left():4.0f} s left] {shlex.join(words)}", flush=True)
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.work,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                timeout=self.left(),
            )
        except subprocess.TimeoutExpired:
            self.found["skipped"].append(f"{what} (cut off)")
            return False
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")] or done.stderr.splitlines()
            self.found["failed"].append({"what": what, "reason": (lines or ["no reason given"])[-1]})
            print(f"  failed: {self.found['failed'][-1]['reason']}", flush=True)
        return done.returncode == 0

    def lifedeploy(self, *words: str, what: str) -> bool:
        """One of our own commands."""
        return self.command("-m", "lifedeploy", *words, what=what)

    def bench(
        self, export: Path, engine: str, batch: int, labels: dict[str, str], precisions: Sequence[str] = (PRECISION,)
    ) -> None:
        """One contest, with copies and without: rows with the fusion and parity that the manifest holds."""
        out = self.work / "bench.json"
        words = ["bench", str(export), "--batch", str(batch), "--no-memory"]
        words += [word for precision in precisions for word in ("--engine", f"{engine}:{precision}")]
        words += ["--mode", "latency", *(["--mode", "throughput"] if batch == IN_FLIGHT else [])]
        what = f"{labels['backbone']}, {labels['schedule']}, {engine} {'/'.join(precisions)}, batch {batch}"
        if not self.lifedeploy(*words, "--budget", str(BUDGET_S), "--json", str(out), what=what):
            return
        for row in json.loads(out.read_text())["rows"]:
            manifest = json.loads((self.work / export / f"{engine}-{row['precision']}" / "model.json").read_text())
            fusion = manifest["engine"]["details"].get("fusion", {})
            row |= labels | {"fusion": {name: fusion.get(name) for name in ("attention", "topk")}}
            self.found["rows"].append(row)
        self.write()

    def eight_bits(self, export: Path, engine: str, batch: int, labels: dict[str, str]) -> None:
        """FP8 and INT8 beside FP16, in the same rounds. With random weights four photographs calibrate well enough."""
        built = []
        for precision in EIGHT_BITS:
            what = f"{labels['backbone']}, {labels['schedule']}, {engine} {precision}"
            words = ["calibrate", str(export), f"--{precision}", "--data", str(photo_folder())]
            if self.lifedeploy(*words, "--images", "4", "--check-images", "4", what=f"calibrating {what}"):
                words = ["build-engine", str(export), "-e", engine, f"--{precision}", "--batch", "1,128,256"]
                if self.lifedeploy(*words, what=f"build of {what}"):
                    built.append(precision)
        if built:
            self.bench(export, engine, batch, labels, (PRECISION, *built))

    def bare(self, export: Path, engine: str, batch: int) -> None:
        """Our runtime against a bare loop over the same plan."""
        out = self.work / "bare.json"
        words = [str(HERE / "bare.py"), str(export / f"{engine}-{PRECISION}"), "--batch", str(batch)]
        if self.command(*words, "--budget", "10", "--json", str(out), what=f"{engine} against a bare loop"):
            self.found["bare"].append(json.loads(out.read_text()))
            self.write()

    def questions(self) -> None:
        """The open questions, asked of PyTorch."""
        words = [str(HERE / "questions.py"), "--out", str(self.out), "--minutes", str(QUESTIONS_MINUTES)]
        self.command(*words, what="open questions, asked of PyTorch", least_s=60 * QUESTIONS_MINUTES)

    def variants(self, export: Path) -> None:
        """The open questions, asked of TensorRT."""
        words = [str(HERE / "variants.py"), str(export / "model.onnx"), "--out", str(self.out)]
        words += ["--minutes", str(VARIANTS_MINUTES)]
        self.command(*words, what="open questions, asked of TensorRT", least_s=60 * VARIANTS_MINUTES)

    def write(self) -> None:
        """What there is so far."""
        self.found["gpu_state"]["after"] = gpu_state()
        write_json(self.out / "results.json", self.found)
        (self.out / "RESULTS.md").write_text(table(self.found), encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
    states = [f"{when}: {', '.join(state.values())}" for when, all_ in found["gpu_state"].items() for state in all_]
    lines = [
        "# On a GPU",
        "",
        f"Command: `{found['command']}`; {found['machine']['cpu']}; {versions}; {found['date'][:10]}.",
        f"GPU, driver, SM and memory MHz, W, °C: {'; '.join(states) or 'no nvidia-smi'}.",
        f"Wanted: {TARGET}. FP16, random weights. Device: median time of a request by CUDA events.",
        "",
        "| backbone | schedule | engine | batch | in flight | copies | method | img/s | p50, ms | device, ms "
        "| speed-up | MAC bound | of first-k | attention fused, TopK | same class | kept tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in found["rows"]]
    if found["bare"]:
        lines += ["", "## Our runtime against a bare loop on the same plan", ""]
        lines += [
            f"- {one['engine']}, batch {one['batch']}: {one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}], "
            f"{one['rounds']} rounds"
            for one in found["bare"]
        ]
    eight = [row for row in found["rows"] if row.get("over_base") and row["precision"] in EIGHT_BITS]
    if eight:
        lines += ["", "## 8 bits, over the FP16 dense model in the same rounds", ""]
        lines += [
            f"- {row['engine']} {row['precision']}, batch {row['batch']}, {row['method']}: {row['over_base']:.2f} "
            f"[{row['over_base_low']:.2f}, {row['over_base_high']:.2f}]"
            for row in eight
            if row["copies"] is not True
        ]
    seconds = [row for row in found["rows"] if row.get("trtexec")]
    if seconds:
        lines += ["", "## Our runtime against trtexec on the same plan", ""]
        lines += [f"- {row['engine']}, batch {row['batch']}, {row['method']}: {row['trtexec']}" for row in seconds]
    if found["failed"]:
        lines += ["", "Failed:", ""] + [f"- {one['what']}: {one['reason']}" for one in found["failed"]]
    if found["skipped"]:
        lines += ["", "No time for, so nothing is said about:", ""] + [f"- {one}" for one in found["skipped"]]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    slimmed = row["method"] != "dense" and row["speedup"] is not None
    speedup = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if slimmed else "–"
    share = f"{row['first_k_share']:.3f}" if row["method"] == "life" and row["first_k_share"] else "–"
    parity, fusion = row["parity"] or {}, row["fusion"]
    overlap = "–" if parity.get("overlap") is None else f"{100 * parity['overlap']:.1f} %"
    same = "–" if parity.get("top1") is None else f"{100 * parity['top1']:.1f} %"
    fused = (
        "–" if row["method"] != "life" or fusion["attention"] is None else f"{fusion['attention']}, {fusion['topk']}"
    )
    device = f"{row['device_ms']['p50']:.2f}" if row["device_ms"] else "–"
    copies = {True: "with", False: "without", None: "–"}[row["copies"]]
    return (
        f"| {row['backbone']} | {row['schedule']} | {row['engine']} {row['precision']} | {row['batch']} "
        f"| {row['streams']} | {copies} | {row['method']} | {row['images_per_s']:.0f} | {row['latency_ms']['p50']:.2f} "
        f"| {device} | {speedup} | {row['mac_ratio']:.2f} | {share} | {fused} | {same} | {overlap} |"
    )


def measure(run: Run, engines: Sequence[str], backbones: Sequence[str], batches: Sequence[int]) -> None:
    """All of it, most important first."""
    asked = False
    for backbone in backbones:
        for number, (schedule, options) in enumerate(SCHEDULES.items()):
            export = Path(f"{backbone}-{number}")
            labels = {"backbone": backbone, "schedule": schedule}
            making = ["export", "--backbone", backbone, *options, "--weights", "random", "--no-parity"]
            if not run.lifedeploy(*making, "-o", str(export), what=f"export of {backbone}, {schedule}"):
                continue
            built = []
            for engine in engines:
                extra = ["--batch", "1,128,256"] if engine in PLANS else []
                what = f"build of {backbone}, {schedule}, {engine}"
                if run.lifedeploy("build-engine", str(export), "-e", engine, f"--{PRECISION}", *extra, what=what):
                    built.append(engine)
                    run.bench(export, engine, batches[0], labels)
            if not asked:
                for engine in built:
                    if engine in PLANS:
                        run.bare(export, engine, batches[0])
                        run.eight_bits(export, engine, batches[0], labels)
                run.questions()
                run.variants(export)
                asked = True
            for batch in batches[1:]:
                for engine in built:
                    run.bench(export, engine, batch, labels)
    if not asked:
        run.questions()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--backbones", default="deit_s,deit_b")
    parser.add_argument("--batches", default="128,8,1,32,256")
    given = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    found = {} if missing else {name: registry.examine(registry.get(name)) for name in ENGINES}
    engines = [name for name, health in found.items() if health.ok]
    if not missing and not engines:
        reasons = "; ".join(f"{name}: {health.reason}" for name, health in found.items())
        raise SystemExit(f"no engine runs on a GPU here: {reasons}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = shlex.join(
            ["python", "benchmarks/gpu/measure.py", *(sys.argv[1:] if arguments is None else arguments)]
        )
        run = Run(given.out.resolve(), Path(work), given.minutes, command)
        for name, health in found.items():
            if not health.ok:
                run.found["failed"].append({"what": name, "reason": health.reason})
        if missing:
            run.found["skipped"].append(f"all engines: not installed are {', '.join(missing)}")
            run.questions()
        else:
            measure(run, engines, given.backbones.split(","), [int(batch) for batch in given.batches.split(",")])
        run.write()
    print((given.out / "RESULTS.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
