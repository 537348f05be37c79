"""Which kernels an engine launches on an NVIDIA GPU and how long each takes, by PyTorch's profiler (CUPTI).

    python -m benchmarks.gpu.kernels FOLDER [--batch 128] [--out DIR]

FOLDER is one that ``lifedeploy build-engine`` made. Its dense model and the slimmed one are asked without copies;
CUDA graphs are seen through. Kernels are summed by the first word that tells what they do; names are the vendors'.
``--host`` times PyTorch's operators on a CPU instead, which tests this script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import command_line, new_parser, publish, record_of, source, table
from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import DeviceLane

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


def markdown(record: Mapping[str, Any]) -> str:
    """Kinds of kernels by row, engines and models by column."""
    rows = record["rows"]
    sums: list[Counter[str]] = []
    for row in rows:
        sums.append(Counter())
        for name, facts in row["kernels"].items():
            sums[-1][kind_of(name)] += facts["us"]
    kinds = sorted({kind for column in sums for kind in column}, key=lambda kind: -max(column[kind] for column in sums))
    launches = [sum(facts["launches"] for facts in row["kernels"].values()) for row in rows]
    cells = [
        (kind, *(f"{us[kind]:.0f} ({us[kind] / us.total():.0%})" if us[kind] else "–" for us in sums)) for kind in kinds
    ]
    cells += [("all", *(f"{us.total():.0f}" for us in sums)), ("launches", *(f"{count:.0f}" for count in launches))]
    head = "".join(f" | {row['engine']} {row['method']}, batch {row['batch']}" for row in rows)
    lines = [
        "# Where the time on a GPU goes",
        "",
        source(record),
        *([record["note"]] if record.get("note") else []),
        "Microseconds of kernels in one call without copies, and the share of all of them.",
        "",
        *table(head, cells),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, profile, write."""
    parser = new_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--host", action="store_true", help="PyTorch's operators on a CPU, to test this script")
    given = parser.parse_args(arguments)
    if not given.host:
        torch.cuda.init()  # the profiler sees what comes after it
    record = {"rows": measured(given.folder, given.batch, host=given.host)}
    record |= record_of(command_line("gpu.kernels", arguments, {"FOLDER": given.folder}))
    publish(given.out, "kernels", record, markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
