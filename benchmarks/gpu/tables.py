"""What ``measure.py`` found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EIGHT_BITS = ("fp8", "int8")
TARGET = "speed-up 1.43, of first-k 0.98, of a bare loop 0.99 (DeiT-S, ρ 0.7, batch 128, FP16)"
DRY = "**Dry run: no GPU, an engine of numpy in the place of every engine. The numbers here mean nothing.**"
HEAD = (
    "| backbone | schedule | engine | batch | in flight | copies | method | img/s | p50, ms | device, ms "
    "| speed-up | MAC bound | of first-k | attention fused, TopK | same class | kept tokens |"
)


def results(found: Mapping[str, Any]) -> str:
    """All of it: ``RESULTS.md``."""
    versions = ", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items())
    states = [f"{when}: {', '.join(state.values())}" for when, all_ in found["gpu_state"].items() for state in all_]
    lines = [
        "# On a GPU" if not found["dry"] else "# A dry run of what is measured on a GPU",
        "",
        *([DRY, ""] if found["dry"] else []),
        f"Command: `{found['command']}`; {found['machine']['cpu']}; {versions}; {found['date'][:10]}.",
        f"GPU, driver, SM and memory MHz, W, °C: {'; '.join(states) or 'no nvidia-smi'}.",
        f"Wanted: {TARGET}. FP16, random weights. Device: median time of a request by CUDA events.",
        "",
        HEAD,
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in found["rows"]]
    if found["kernels"]:
        lines += ["", "## Attention kernels, in ONNX Runtime's own words", ""]
        lines += [f"- {what}: {kernels}" for what, kernels in found["kernels"].items()]
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
        lines += [_second(row) for row in seconds]
    if found["failed"]:
        lines += ["", "Failed:", ""] + [f"- {one['what']}: {one['reason']}" for one in found["failed"]]
    if found["skipped"]:
        lines += ["", "No time for, so nothing is said about:", ""] + [f"- {one}" for one in found["skipped"]]
    lines += ["", "## Steps", "", "| step | s |", "|---|---|"]
    lines += [f"| {one['what']} | {one['seconds']:.0f} |" for one in found["steps"]]
    return "\n".join(lines) + "\n"


def _second(row: Mapping[str, Any]) -> str:
    other = row["trtexec"]
    return (
        f"- {row['engine']} {row['precision']}, batch {row['batch']}, {row['method']}: {other['share']:.3f} of its "
        f"{other['images_per_s']:.0f} img/s ({other['gpu_ms']:.3f} ms on the GPU)"
    )


def _line(row: Mapping[str, Any]) -> str:
    slimmed = row["method"] != "dense" and row["speedup"] is not None
    speedup = f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if slimmed else "–"
    share = f"{row['first_k_share']:.3f}" if row["method"] == "life" and row["first_k_share"] else "–"
    parity, fusion = row["parity"] or {}, row["fusion"]
    overlap = "–" if parity.get("overlap") is None else f"{100 * parity['overlap']:.1f} %"
    same = "–" if parity.get("top1") is None else f"{100 * parity['top1']:.1f} %"
    attention = "?" if fusion["attention"] is None else fusion["attention"]
    fused = "–" if row["method"] != "life" or fusion["topk"] is None else f"{attention}, {fusion['topk']}"
    device = f"{row['device_ms']['p50']:.2f}" if row["device_ms"] else "–"
    copies = {True: "with", False: "without", None: "–"}[row["copies"]]
    return (
        f"| {row['backbone']} | {row['schedule']} | {row['engine']} {row['precision']} | {row['batch']} "
        f"| {row['streams']} | {copies} | {row['method']} | {row['images_per_s']:.0f} | {row['latency_ms']['p50']:.2f} "
        f"| {device} | {speedup} | {row['mac_ratio']:.2f} | {share} | {fused} | {same} | {overlap} |"
    )
