"""Which kernels an engine launches on an NVIDIA GPU and how long each takes, by PyTorch's profiler (CUPTI).

    python benchmarks/gpu/kernels.py FOLDER [--batch 128] [--out DIR]

FOLDER is one that ``lifedeploy build-engine`` made. Its dense model and the slimmed one are asked without copies;
CUDA graphs are seen through. Kernels are summed by the first word that tells what they do; names are the vendors'. ``--host`` times
PyTorch's operators on a CPU instead, which tests this script.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import DeviceLane
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe

HERE = Path(__file__).parent
CALLS = 3
# What a kernel does, by the first word that its name has.
KINDS = {
    "copying biases": ("BroadcastBias",),
    "attention": ("sdpa", "flash", "mha"),
    "patch embedding": ("fprop", "convolve", "nchw", "nhwc"),
    "matrix products": ("nvjet", "gemm", "gemv", "cutlass", "aten::addmm", "aten::mm"),
    "GELU": ("Gelu", "gelu"),
    "norms": ("LayerNorm", "layer_norm"),
    "splitting Q, K, V": ("Split",),
    "TopK": ("TopK", "topk", "sort", "Sort"),
    "Gather": ("Gather", "gather", "index"),
    "additions": ("Add", "add"),
}
ELSE = "all else"


def kind_of(kernel: str) -> str:
    """What a kernel does."""
    return next((kind for kind, words in KINDS.items() if any(word in kernel for word in words)), ELSE)


def kernels(call: Callable[[], Any], *, host: bool) -> dict[str, dict[str, float]]:
    """Kernel → microseconds and launches per call."""
    for _ in range(CALLS):
        call()
    with profile(activities=[ProfilerActivity.CPU if host else ProfilerActivity.CUDA]) as recorded:
        for _ in range(CALLS):
            call()
        if not host:
            torch.cuda.synchronize()
    took: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in recorded.events() or ():
        if host or event.device_type == torch.autograd.DeviceType.CUDA:
            took[event.name] += event.time_range.end - event.time_range.start
            launches[event.name] += 1
    return {name: {"us": us / CALLS, "launches": launches[name] / CALLS} for name, us in took.most_common()}


def measured(folder: Path, batch: int, *, host: bool) -> list[dict[str, Any]]:
    """A row for the dense model of an engine's folder and one for the slimmed."""
    rows = []
    for name in ("dense", "model"):
        artifact = Artifact.read(folder / f"{name}.json")
        record = artifact.manifest.engine
        assert record is not None  # build-engine wrote it
        options = EngineOptions(precision=record.precision)
        with registry.running(record.name, artifact.path)(artifact.path, options) as engine:
            lane = engine.lane(batch)
            for array in lane.inputs.values():
                array[...] = np.random.default_rng(1).standard_normal(array.shape, dtype=np.float32)
            lane.infer()
            call = lane.compute if isinstance(lane, DeviceLane) else lane.infer
            row = {"engine": record.name, "precision": record.precision, "method": artifact.manifest.spec.method}
            rows.append(row | {"batch": batch, "kernels": kernels(call, host=host)})
    return rows


def table(found: Mapping[str, Any]) -> str:
    """As Markdown: kinds of kernels by row, engines and models by column."""
    machine, rows = found["machine"], found["rows"]
    sums: list[Counter[str]] = []
    for row in rows:
        sums.append(Counter())
        for name, facts in row["kernels"].items():
            sums[-1][kind_of(name)] += facts["us"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Where the time on a GPU goes",
        "",
        f"Command: `{found['command']}`;",
        f"{', '.join(machine['gpu']) or 'no GPU'}, {versions}, {machine['cpu']}; {found['date'][:10]}.",
        *([found["note"]] if found.get("note") else []),
        "Microseconds of kernels in one call without copies, and the share of all of them.",
        "",
        "| | " + " | ".join(f"{row['engine']} {row['method']}, batch {row['batch']}" for row in rows) + " |",
        "|---" * (1 + len(rows)) + "|",
    ]
    for kind in sorted({kind for one in sums for kind in one}, key=lambda kind: -max(one[kind] for one in sums)):
        cells = [f"{one[kind]:.0f} ({one[kind] / sum(one.values()):.0%})" if one[kind] else "–" for one in sums]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join(f"{sum(one.values()):.0f}" for one in sums) + " |")
    launches = [sum(facts["launches"] for facts in row["kernels"].values()) for row in rows]
    lines.append("| launches | " + " | ".join(f"{count:.0f}" for count in launches) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, profile, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--host", action="store_true", help="PyTorch's operators on a CPU, to test this script")
    given = parser.parse_args(arguments)
    options = sys.argv[1:] if arguments is None else list(arguments)
    shown = ["FOLDER" if one == str(given.folder) else one for one in options]
    command = f"python benchmarks/gpu/kernels.py {shlex.join(shown)}"
    if not given.host:
        torch.cuda.init()  # the profiler sees what comes after it
    rows = measured(given.folder, given.batch, host=given.host)
    path = given.out / "kernels.json"
    given.out.mkdir(parents=True, exist_ok=True)
    found = {"rows": rows, "machine": describe(), "date": now(), "command": command}
    write_json(path, found)
    path.with_name("KERNELS.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
