"""DeiT-S and DeiT-B on one NVIDIA GPU: dense, life and first-k on every engine that runs there (see ``run.sh``).

    python benchmarks/gpu/measure.py [--out DIR] [--minutes 7.5] [--backbones deit_s,deit_b] [--batches 1,8,32,128,256]

Each engine is built, held against PyTorch and measured by ``lifedeploy`` itself. What matters most comes first
(DeiT-S, keep rate 0.7, batch 128), and results are written after every step, so that a run that is cut off keeps what
it has. An engine that fails is a row with its reason.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifedeploy.artifact import now, write_json
from lifedeploy.engines import registry
from lifedeploy.machine import describe

HERE = Path(__file__).parent
ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch-cuda", "torch-compiled")
PRECISION = "fp16"
SCHEDULES = {"ρ 0.7": ("--rho", "0.7"), "127, 95, 63": ("--counts", "127,95,63")}
TARGET = "speed-up 1.43, of first-k 0.98 (DeiT-S, ρ 0.7, batch 128, FP16)"


class Run:
    """The measurement, with a clock that ends it."""

    def __init__(self, out: Path, work: Path, minutes: float) -> None:
        self.out, self.work = out, work
        self.ends = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"rows": [], "failed": [], "skipped": [], "machine": describe(), "date": now()}
        self.found["gpu"] = gpu_state()

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def lifedeploy(self, *arguments: str, what: str) -> bool:
        """Run a command; whether it ended well. A failure is written down with its last line."""
        if self.left() < 20:
            self.found["skipped"].append(what)
            return False
        command = [sys.executable, "-m", "lifedeploy", *arguments]
        print(f"[{self.left():4.0f} s left] lifedeploy {shlex.join(arguments)}", flush=True)
        try:
            done = subprocess.run(
                command,
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

    def bench(self, export: Path, engine: str, batch: int, labels: dict[str, str], budget: float) -> None:
        """One contest: rows with the fusion and parity that the manifest holds."""
        out = self.work / "bench.json"
        arguments = ["bench", str(export), "--engine", f"{engine}:{PRECISION}", "--batch", str(batch), "--no-memory"]
        what = f"{labels['backbone']}, {labels['schedule']}, {engine}, batch {batch}"
        if not self.lifedeploy(*arguments, "--budget", str(budget), "--json", str(out), what=what):
            return
        manifest = json.loads((self.work / export / f"{engine}-{PRECISION}" / "model.json").read_text())
        fusion = manifest["engine"]["details"].get("fusion", {})
        for row in json.loads(out.read_text())["rows"]:
            row |= labels | {"fusion": {name: fusion.get(name) for name in ("attention", "topk")}}
            self.found["rows"].append(row)
        self.write()

    def write(self) -> None:
        """What there is so far."""
        write_json(self.out / "results.json", self.found)
        (self.out / "RESULTS.md").write_text(table(self.found), encoding="utf-8")


def gpu_state() -> list[str]:
    """Clocks, power and temperature, as nvidia-smi tells them; nothing where there is none."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.strip().splitlines()


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
    lines = [
        "# On a GPU",
        "",
        f"`benchmarks/gpu/run.sh`; {'; '.join(found['gpu']) or 'no nvidia-smi'}; {versions}; {found['date'][:10]}.",
        f"Wanted: {TARGET}. Copies to and from the GPU are part of every request. Random weights.",
        "",
        "| backbone | schedule | engine | batch | method | img/s | p50, ms | speed-up | MAC bound | of first-k "
        "| attention fused | kept tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        slimmed = row["method"] != "dense" and row["speedup"] is not None
        speedup = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if slimmed else "–"
        share = f"{row['first_k_share']:.3f}" if row["method"] == "life" and row["first_k_share"] else "–"
        overlap = (row["parity"] or {}).get("overlap")
        fused = row["fusion"]["attention"] if row["method"] == "life" else None
        lines.append(
            f"| {row['backbone']} | {row['schedule']} | {row['engine']} {row['precision']} | {row['batch']} "
            f"| {row['method']} | {row['images_per_s']:.0f} | {row['latency_ms']['p50']:.2f} | {speedup} "
            f"| {row['mac_ratio']:.2f} | {share} | {'–' if fused is None else fused} "
            f"| {'–' if overlap is None else f'{100 * overlap:.1f} %'} |"
        )
    if found["failed"]:
        lines += ["", "Failed:", ""] + [f"- {one['what']}: {one['reason']}" for one in found["failed"]]
    if found["skipped"]:
        lines += ["", "No time for:", ""] + [f"- {one}" for one in found["skipped"]]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--backbones", default="deit_s,deit_b")
    parser.add_argument("--batches", default="128,8,1,32,256")
    given = parser.parse_args(arguments)
    engines = [name for name in ENGINES if registry.examine(registry.get(name)).ok]
    if not engines:
        reasons = "; ".join(f"{name}: {registry.examine(registry.get(name)).reason}" for name in ENGINES)
        raise SystemExit(f"no engine runs on a GPU here: {reasons}")
    given.out.mkdir(parents=True, exist_ok=True)
    batches = [int(batch) for batch in given.batches.split(",")]
    with tempfile.TemporaryDirectory() as work:
        run = Run(given.out.resolve(), Path(work), given.minutes)
        for backbone in given.backbones.split(","):
            for schedule, options in SCHEDULES.items():
                export = Path(f"{backbone}-{len(run.found['rows'])}")
                labels = {"backbone": backbone, "schedule": schedule}
                making = ["export", "--backbone", backbone, *options, "--weights", "random", "--no-parity"]
                if not run.lifedeploy(*making, "-o", str(export), what=f"export of {backbone}, {schedule}"):
                    continue
                built = []
                for engine in engines:
                    extra = ["--batch", "1,128,256"] if engine.startswith("tensorrt") else []
                    what = f"build of {backbone}, {schedule}, {engine}"
                    if run.lifedeploy("build-engine", str(export), "-e", engine, f"--{PRECISION}", *extra, what=what):
                        built.append(engine)
                        run.bench(export, engine, batches[0], labels, budget=6)
                for batch in batches[1:]:
                    for engine in built:
                        run.bench(export, engine, batch, labels, budget=6)
        run.found["gpu"] += gpu_state()
        run.write()
    print((given.out / "RESULTS.md").read_text())


if __name__ == "__main__":
    main()
