"""What ``measure.py`` measured, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import interval, number, source, table

EIGHT_BITS = ("fp8", "int8")
TARGET = "speed-up 1.43, of first-k 0.98, of a bare loop 0.99 (DeiT-S, ρ 0.7, batch 128, FP16)"
DRY = "**Dry run: no GPU, an engine of numpy in the place of every engine. The numbers here mean nothing.**"
HEAD = (
    "backbone | schedule | engine | batch | in flight | copies | method | img/s | p50, ms | device, ms "
    "| speed-up | MAC bound | of first-k | attention fused, TopK | same class | kept tokens"
)


def results(record: Mapping[str, Any]) -> str:
    """All of it: ``RESULTS.md``."""
    states = [f"{when}: {', '.join(state.values())}" for when, gpus in record["gpu_state"].items() for state in gpus]
    lines = [
        "# On a GPU" if not record["dry"] else "# A dry run of what is measured on a GPU",
        "",
        *([DRY, ""] if record["dry"] else []),
        source(record),
        f"GPU, driver, SM and memory MHz, W, °C: {'; '.join(states) or 'no nvidia-smi'}.",
        f"Wanted: {TARGET}. FP16, random weights. Device: median time of a request by CUDA events.",
        "",
        *table(HEAD, map(_cells, record["rows"])),
    ]
    sections = {
        "Attention kernels, in ONNX Runtime's own words": [
            f"{what}: {kernels}" for what, kernels in record["kernels"].items()
        ],
        "Our runtime against a bare loop on the same plan": [
            f"{row['engine']}, batch {row['batch']}: {row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}], "
            f"{row['rounds']} rounds"
            for row in record["bare"]
        ],
        "8 bits, over the FP16 dense model in the same rounds": [
            f"{_name(row)}: {interval(row, 'over_base', 2)}"
            for row in record["rows"]
            if row.get("over_base") and row["precision"] in EIGHT_BITS and row["copies"] is not True
        ],
        "Our runtime against trtexec on the same plan": [
            f"{_name(row)}: {row['trtexec']['share']:.3f} of its {row['trtexec']['images_per_s']:.0f} img/s "
            f"({row['trtexec']['gpu_ms']:.3f} ms on the GPU)"
            for row in record["rows"]
            if row.get("trtexec")
        ],
        "Failed": [f"{step['what']}: {step['reason']}" for step in record["failed"]],
        "No time for, so nothing is said about": record["skipped"],
    }
    for title, items in sections.items():
        lines += ["", f"## {title}", "", *(f"- {item}" for item in items)] if items else []
    steps = ((step["what"], f"{step['seconds']:.0f}") for step in record["steps"])
    lines += ["", "## Steps", "", *table("step | s", steps)]
    return "\n".join(lines) + "\n"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['engine']} {row['precision']}, batch {row['batch']}, {row['method']}"


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    parity, fusion = row["parity"] or {}, row["fusion"]
    attention = "?" if fusion["attention"] is None else fusion["attention"]
    return (
        row["backbone"],
        row["schedule"],
        f"{row['engine']} {row['precision']}",
        row["batch"],
        row["streams"],
        {True: "with", False: "without", None: "–"}[row["copies"]],
        row["method"],
        f"{row['images_per_s']:.0f}",
        f"{row['latency_ms']['p50']:.2f}",
        f"{row['device_ms']['p50']:.2f}" if row["device_ms"] else "–",
        interval(row, "speedup", 2) if row["method"] != "dense" else "–",
        f"{row['mac_ratio']:.2f}",
        number(row["first_k_share"] if row["method"] == "life" else None, ".3f"),
        "–" if row["method"] != "life" or fusion["topk"] is None else f"{attention}, {fusion['topk']}",
        number(parity.get("top1"), ".1%"),
        number(parity.get("overlap"), ".1%"),
    )
