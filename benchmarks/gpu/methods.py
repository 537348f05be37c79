"""All methods against each other on one NVIDIA GPU, by ``lifedeploy compare``; writes ``methods-BACKBONE.json``,
``METHODS-BACKBONE.md`` and ``methods-BACKBONE.png``; what they say is in ``METHODS.md``.

    python -m benchmarks.gpu.methods [--out DIR] [--engine onnxruntime-cuda:fp16] [--backbone deit_s] [--at macs]
                                     [--batches 128,8] [--budget SECONDS] [--methods NAME,NAME] [--workers 6]

Exports and engines are made side by side first, which ``compare`` alone does one after the other: with 16 cores that
takes a minute or two, not eight. Random weights: speeds are valid, accuracy there is none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import command_line, new_parser, publish, read_json, record_of, run_python
from lifedeploy import methods
from lifedeploy.budget import at_keep_rate, at_macs
from lifedeploy.engines import registry
from lifedeploy.machine import gpu_state
from lifedeploy.model import backbones
from lifedeploy.schedule import DEFAULT_KEEP_RATE

HERE = Path(__file__).parent
MOST_S = 200.0  # for the export and the engines of one method


def prepared(work: Path, backbone: str, names: Sequence[str], at: str, engine: str, workers: int) -> list[str]:
    """Export and build what ``compare`` will ask for; what failed, in a line each."""
    sized = backbones.sized(backbone)
    first, *_ = (row for name in names if (row := methods.get(name)).role == methods.SLIMMED)
    macs = at_keep_rate(first, DEFAULT_KEEP_RATE, sized).macs
    kind, _, precision = engine.partition(":")

    def make(name: str) -> str:
        row = methods.get(name)
        same = at == "keep-rate" or row is first
        budget = at_keep_rate(row, DEFAULT_KEEP_RATE, sized) if same else at_macs(row, macs, sized)
        rate = [] if budget.keep_rate is None else ["--rho", str(budget.keep_rate)]
        export = ["-m", "lifedeploy", "export", "--backbone", backbone, "--method", name, *rate]
        code, said = run_python([*export, "--weights", "random", "-o", f"artifacts/{name}"], work, MOST_S)
        if code == 0:
            unfused = ["--allow-unfused"] if "allow_unfused" in registry.get(kind).takes else []
            build = ["-m", "lifedeploy", "build-engine", f"artifacts/{name}", "-e", kind, f"--{precision}", *unfused]
            code, said = run_python(build, work, MOST_S)
        print(f"{name}: {'made' if code == 0 else said[-1:]}", flush=True)
        return "" if code == 0 else f"{name}: {said[-1] if said else 'no reason given'}"

    with ThreadPoolExecutor(workers) as pool:
        slimmed = [name for name in names if methods.role_of(name) == methods.SLIMMED]
        return [failure for failure in pool.map(make, slimmed) if failure]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, make, compare, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--engine", default="onnxruntime-cuda:fp16")
    parser.add_argument("--backbone", default="deit_s")
    parser.add_argument("--at", default="macs")
    parser.add_argument("--batches", default="128,8")
    parser.add_argument("--budget", default="20")
    parser.add_argument("--methods", default=",".join(methods.names()))
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=8, help="after so long the comparison is ended")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    names = given.methods.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        failed = prepared(work, given.backbone, names, given.at, given.engine, given.workers)
        left = [name for name in names if not any(line.startswith(f"{name}:") for line in failed)]
        words = ["-m", "lifedeploy", "compare", "--backbone", given.backbone, "--methods", ",".join(left)]
        words += ["--at", given.at, "--engine", given.engine, "--batch", given.batches, "--budget", given.budget]
        words += ["--weights", "random", "--allow-unfused", "--json", "compare.json", "--rho", str(DEFAULT_KEEP_RATE)]
        words += ["--markdown", "compare.md", "--plot", "compare.png"]
        code, said = run_python(words, work, 60 * given.minutes)
        print("\n".join(said[-20:]), flush=True)
        if code != 0:
            raise SystemExit(
                f"error: the comparison did not end well; before it: {'; '.join(failed) or 'all was made'}"
            )
        command = command_line("gpu.methods", arguments)
        record = record_of(command) | {"failed": failed, "gpu_state": gpu_state()}
        page = (work / "compare.md").read_text(encoding="utf-8") + "".join(f"- not there: {line}\n" for line in failed)
        name = f"methods-{given.backbone}"
        publish(out, name, record | {"compare": read_json(work / "compare.json")}, f"`{command}`\n\n{page}")
        shutil.copyfile(work / "compare.png", out / f"{name}.png")


if __name__ == "__main__":
    main()
