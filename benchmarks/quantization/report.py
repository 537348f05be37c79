"""results.json as RESULTS.md: python benchmarks/quantization/report.py"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

from recipes import SCANNED
from store import read

TITLES = {"model": "life ρ 0.7", "dense": "dense"}


def text() -> str:
    """All tables that there are results for."""
    lines = [
        "# INT8: what it loses and what it gives",
        "",
        "Accuracy: photographs of solar cells, DINOv2 ViT-S/14 at 112 pixels (64 patches), trained by the distilled",
        "recipe of [real/TRAINING.md](../real/TRAINING.md): 656 validation photographs, average precision (AP) of the",
        "defective class. Differences of 0.3 points are noise: one seed's AP moves by that between equal recipes.",
        "Models were trained anew on each processor, so AP compares within a table.",
    ]
    for title, key, section in SECTIONS:
        for entry in read(key).values():
            where = ", ".join(entry["machine"]["features"]) or entry["machine"]["cpu"]
            lines += ["", f"## {title}: {where}", "", *section(entry["found"]), "", _source(entry)]
    return "\n".join(lines) + "\n"


def _source(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("onnxruntime", "openvino", "onnx"))
    features = f" ({', '.join(machine['features'])})" if machine["features"] else ""
    where = f"{machine['cpu']}{features}, {machine['threads']} threads"
    return f"`{entry['command']}`, {entry['date'][:10]}: {where}, {versions}"


def _recipes(found: dict[str, Any]) -> list[str]:
    lines = [
        "Graphs computed as they stand, without any runtime's kernels. ΔAP in points against FP32, a number per seed;",
        "logits: energy over that of their error, in dB, mean; kept: share of the tokens in the last layer that the",
        "FP32 graph keeps too, mean.",
    ]
    for stem, title in TITLES.items():
        seeds = [rows for key, rows in sorted(found.items()) if key.startswith(f"{stem},")]
        lines += ["", f"| {title} | ΔAP | logits, dB | same class | kept |", "|---|---|---|---|---|"]
        for name in dict.fromkeys(row["recipe"] for rows in seeds for row in rows[1:]):
            own = [(rows[0], row) for rows in seeds for row in rows if row["recipe"] == name]
            deltas = [100 * (row["average_precision"] - base["average_precision"]) for base, row in own]
            lines.append(
                f"| {name} | {_each(deltas)} "
                f"| {mean(_decibels(row['noise']) for _, row in own):.1f} "
                f"| {mean(row['same_top1'] for _, row in own):.1%} | {_kept([row for _, row in own])} |"
            )
    scanned = [row for rows in found.values() for row in rows if row["recipe"] == SCANNED]
    for row, title in zip(scanned, TITLES.values(), strict=False):
        worst = list(row["noises"].items())[:6]
        total = sum(row["noises"].values())
        named = ", ".join(f"{name.rpartition('/')[0]} {value / total:.0%}" for name, value in worst)
        lines += ["", f"Scan, {title}: shares of the summed noise of the layers quantised alone: {named}."]
    return lines


def _engines(found: dict[str, Any]) -> list[str]:
    lines = [
        "`calibrate --int8` with 512 photographs, `build-engine`, `evaluate`. ΔAP and kept tokens against the FP32",
        "graph of the same seed and method: mean (each seed). Wanted of INT8: ΔAP at least −0.5, kept at least 95 %.",
        "",
        "| method | engine | AP FP32 | ΔAP | same class | kept |",
        "|---|---|---|---|---|---|",
    ]
    seeds = [found[key] for key in sorted(found)]
    for method in ("life", "dense"):
        for form in dict.fromkeys((row["engine"], row["precision"]) for row in seeds[0] if row["precision"] != "fp32"):
            pairs = []
            for rows in seeds:
                by_form = {(row["engine"], row["precision"]): row for row in rows if row["method"] == method}
                base = next(row for (_, precision), row in by_form.items() if precision == "fp32")
                pairs.append((base, by_form[form]))
            deltas = [100 * (own["average_precision"] - base["average_precision"]) for base, own in pairs]
            bases = ", ".join(f"{100 * base['average_precision']:.2f}" for base, _ in pairs)
            kept = ", ".join(f"{own['kept']:.1%}" for _, own in pairs if own["kept"] is not None)
            lines.append(
                f"| {method} | {' '.join(form)} | {bases} | {mean(deltas):+.2f} ({_each(deltas)}) "
                f"| {mean(own['same_top1'] for _, own in pairs):.1%} "
                f"| {_kept([own for _, own in pairs])}{f' ({kept})' if kept else ''} |"
            )
    return lines


def _choice(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"`bench --data`, batch 8, {rows[0]['images']} validation photographs, one seed; **bold**: nothing is both",
        "faster and as accurate. Accuracies differ by less than their standard error: the picture says so.",
        "",
        f"| engine | method | img/s | over {rows[0]['base']} | top-1 % | mean AP | same top-1 | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"**{row['engine']} {row['precision']}**" if row["pareto"] else f"{row['engine']} {row['precision']}"
        shares = (row["average_precision"], row["same_top1"], row["kept_overlap"])
        precision, same, kept = ("–" if share is None else f"{100 * share:.1f}" for share in shares)
        lines.append(
            f"| {name} | {row['method']} | {row['images_per_s']:.0f} "
            f"| {_interval(row['over_base'], row['over_base_low'], row['over_base_high'])} "
            f"| {100 * row['top1']:.1f} ± {100 * row['standard_error']:.1f} | {precision} | {same} | {kept} |"
        )
    return [*lines, "", "![accuracy against images per second](choice.png)"]


def _speed(rows: list[dict[str, Any]]) -> list[str]:
    base, flight = rows[0]["base"], {"latency": "one request at a time", "throughput": "two requests in flight"}
    lines: list[str] = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        lines += [
            *([""] if lines else []),
            f"DeiT-S, ρ 0.7, batch {rows[0]['batch']}, {flight[mode]}.",
            "",
            f"| precision | method | img/s | over {base} | over dense of the same precision |",
            "|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row["mode"] == mode):
            own = "–"
            if row["method"] != "dense":
                own = _interval(row["speedup"], row["speedup_low"], row["speedup_high"])
            over = _interval(row["over_base"], row["over_base_low"], row["over_base_high"])
            lines.append(f"| {row['precision']} | {row['method']} | {row['images_per_s']:.1f} | {over} | {own} |")
    return lines


def _profile(profiles: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of every part."""
    shown = [profile for profile in profiles if profile["method"] != "first-k"]
    groups = dict.fromkeys(name for profile in shown for name in profile["shares"])
    names = " | ".join(f"{profile['precision']} {profile['method']}" for profile in shown)
    totals = " | ".join(f"{profile['ms']:.1f}" for profile in shown)
    lines = [
        f"DeiT-S, batch {shown[0]['batch']}: milliseconds of each part, by the runtime's own profiler, which slows it",
        "down. What is quantised counts to the product that it is fused with.",
        "",
        f"| part | {names} |",
        "|---" * (1 + len(shown)) + "|",
        f"| all | {totals} |",
    ]
    for group in groups:
        spent = (f"{profile['shares'].get(group, 0) * profile['ms']:.2f}" for profile in shown)
        lines.append(f"| {group} | {' | '.join(spent)} |")
    return lines


def _cost(found: dict[str, Any]) -> list[str]:
    return [
        f"DeiT-S, {found['images']} images of 500 × 375 pixels, {found['graphs']} graphs (life, dense, first-k), "
        f"report included, nothing cached: {found['seconds']:.0f} s, {found['peak_mib'] / 1024:.1f} GiB at most."
    ]


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _each(values: Iterable[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _kept(rows: list[dict[str, Any]]) -> str:
    shares = [row["kept"] for row in rows if row["kept"] is not None]
    return f"{mean(shares):.1%}" if shares else "–"


def _decibels(noise: float) -> float:
    return -10 * log10(noise)


SECTIONS: tuple[tuple[str, str, Callable[[Any], list[str]]], ...] = (
    ("What the commands give", "engines", _engines),
    ("Which one to deploy", "choice", _choice),
    ("Speed, OpenVINO", "speed, openvino", _speed),
    ("Where OpenVINO's time goes", "profile, openvino", _profile),
    ("Speed, OpenVINO, attention in INT8 too", "speed, openvino, linear,attention", _speed),
    ("Where its time goes", "profile, openvino, linear,attention", _profile),
    ("Speed, ONNX Runtime", "speed, onnxruntime", _speed),
    ("Cost of calibrating", "calibrating", _cost),
    ("Which recipe", "recipes", _recipes),
)

if __name__ == "__main__":
    (Path(__file__).parent / "RESULTS.md").write_text(text(), encoding="utf-8")
    sys.exit(0)
