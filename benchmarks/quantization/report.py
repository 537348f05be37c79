"""``results.json`` as ``RESULTS.md``: ``python -m benchmarks.quantization.report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import Results, interval, new_parser, number, source, table

HERE = Path(__file__).parent


def text() -> str:
    """All tables that there are results for."""
    lines = [
        "# INT8: what it loses and what it gives",
        "",
        "Accuracy: photographs of solar cells, DINOv2 ViT-S/14 at 112 pixels (64 patches), trained by the distilled",
        "recipe of [real/TRAINING.md](../real/TRAINING.md): 656 validation photographs, average precision (AP) of the",
        "defective class. Differences of 0.3 points are noise: one seed's AP moves by that between equal recipes.",
        "Models were trained anew on each processor, so AP compares within a table. Recipes: [RECIPES.md](RECIPES.md).",
    ]
    results = Results(HERE / "results.json").read()
    for title, key, section in SECTIONS:
        for entry in results.get(key, {}).values():
            where = ", ".join(entry["machine"]["features"]) or entry["machine"]["cpu"]
            lines += ["", f"## {title}: {where}", "", *section(entry["result"]), ""]
            lines.append(source(entry, "onnxruntime", "openvino", "onnx"))
    return "\n".join(lines) + "\n"


def _engines(results: dict[str, Any]) -> list[str]:
    seeds = [results[key] for key in sorted(results)]
    forms = dict.fromkeys((row["engine"], row["precision"]) for row in seeds[0] if row["precision"] != "fp32")
    cells = []
    for method, form in ((method, form) for method in ("life", "dense") for form in forms):
        pairs = []
        for rows in seeds:
            by_form = {(row["engine"], row["precision"]): row for row in rows if row["method"] == method}
            base = next(row for (_, precision), row in by_form.items() if precision == "fp32")
            pairs.append((base, by_form[form]))
        deltas = [100 * (row["average_precision"] - base["average_precision"]) for base, row in pairs]
        bases = ", ".join(f"{100 * base['average_precision']:.2f}" for base, _ in pairs)
        losses = f"{mean(deltas):+.2f} ({', '.join(f'{delta:+.2f}' for delta in deltas)})"
        kept = [row["kept"] for _, row in pairs if row["kept"] is not None]
        each = f"{mean(kept):.1%} ({', '.join(f'{share:.1%}' for share in kept)})" if kept else "–"
        cells.append((method, " ".join(form), bases, losses, f"{mean(row['same_top1'] for _, row in pairs):.1%}", each))
    return [
        "`calibrate --int8` with 512 photographs, `build-engine`, `evaluate`. ΔAP and kept tokens against the FP32",
        "graph of the same seed and method: mean (each seed). Wanted of INT8: ΔAP at least −0.5, kept at least 95 %.",
        "",
        *table("method | engine | AP FP32 | ΔAP | same class | kept", cells),
    ]


def _choice(rows: list[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        name = f"**{row['engine']} {row['precision']}**" if row["pareto"] else f"{row['engine']} {row['precision']}"
        shares = (number(row[name], ".1%") for name in ("average_precision", "same_top1", "kept_overlap"))
        top1 = f"{100 * row['top1']:.1f} ± {100 * row['standard_error']:.1f}"
        speed = f"{row['images_per_s']:.0f}"
        cells.append((name, row["method"], speed, interval(row, "over_base", 2), top1, *shares))
    return [
        f"`bench --data`, batch 8, {rows[0]['images']} validation photographs, one seed; **bold**: nothing is both",
        "faster and as accurate. Accuracies differ by less than their standard error: the picture says so.",
        "",
        *table(f"engine | method | img/s | over {rows[0]['base']} | top-1 % | mean AP | same top-1 | kept", cells),
        "",
        "![accuracy against images per second](choice.png)",
    ]


def _speed(rows: list[dict[str, Any]]) -> list[str]:
    flight = {"latency": "one request at a time", "throughput": "two requests in flight"}
    head = f"precision | method | img/s | over {rows[0]['base']} | over dense of the same precision"
    lines: list[str] = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        cells = []
        for row in (row for row in rows if row["mode"] == mode):
            speedup = "–" if row["method"] == "dense" else interval(row, "speedup", 2)
            start = (row["precision"], row["method"], f"{row['images_per_s']:.1f}")
            cells.append((*start, interval(row, "over_base", 2), speedup))
        lines += [""] if lines else []
        lines += [f"DeiT-S, ρ 0.7, batch {rows[0]['batch']}, {flight[mode]}.", "", *table(head, cells)]
    return lines


def _profile(profiles: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of every part."""
    shown = [profile for profile in profiles if profile["method"] != "first-k"]
    groups = dict.fromkeys(name for profile in shown for name in profile["shares"])
    cells = [("all", *(f"{profile['ms']:.1f}" for profile in shown))]
    for group in groups:
        cells.append((group, *(f"{profile['shares'].get(group, 0) * profile['ms']:.2f}" for profile in shown)))
    return [
        f"DeiT-S, batch {shown[0]['batch']}: milliseconds of each part, by the runtime's own profiler, which slows it",
        "down. What is quantised counts to the product that it is fused with.",
        "",
        *table("part" + "".join(f" | {profile['precision']} {profile['method']}" for profile in shown), cells),
    ]


def _cost(result: dict[str, Any]) -> list[str]:
    return [
        f"DeiT-S, {result['images']} images of 500 × 375 pixels, {result['graphs']} graphs (life, dense, first-k), "
        f"report included, nothing cached: {result['seconds']:.0f} s, {result['peak_mib'] / 1024:.1f} GiB at most."
    ]


SECTIONS: tuple[tuple[str, str, Callable[[Any], list[str]]], ...] = (
    ("What the commands give", "engines", _engines),
    ("Which one to deploy", "choice", _choice),
    ("Speed, OpenVINO", "speed, openvino", _speed),
    ("Where OpenVINO's time goes", "profile, openvino", _profile),
    ("Speed, OpenVINO, attention in INT8 too", "speed, openvino, linear,attention", _speed),
    ("Where its time goes", "profile, openvino, linear,attention", _profile),
    ("Speed, ONNX Runtime", "speed, onnxruntime", _speed),
    ("Cost of calibrating", "calibrating", _cost),
)

if __name__ == "__main__":
    new_parser(__doc__).parse_args()
    (HERE / "RESULTS.md").write_text(text(), encoding="utf-8")
