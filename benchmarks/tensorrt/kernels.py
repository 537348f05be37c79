"""What TensorRT for RTX makes of the graphs, no GPU needed; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python benchmarks/tensorrt/kernels.py --out DIR [--backbones deit_t,deit_s,…] [--forms all]

For each backbone (NAME or NAME@PIXELS) the dense, first-k, order-once and per-stage graphs at keep rate 0.7, random
weights, are turned into FP16 and built with a profile of batches 1, 8 and 128, and at a static batch; ``--forms all``
also with attention as products and in BF16. Counted are all launches of a kernel, read off the plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from lifedeploy import children
from lifedeploy.artifact import Artifact
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.exporters import forms
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe
from lifedeploy.spec import GraphForm

HERE = Path(__file__).parent
BACKBONES = "deit_t,deit_s,deit_b,vit_t,vit_s,vit_b,vit_small_patch14_dinov2@224"
STATIC = 8
# (file of the export, method as shown, sorts)
GRAPHS = (("order-once", "dense", "dense", 0), ("order-once", "first-k", "first-k", 0))
GRAPHS += (("order-once", "model", "life, order once", 1), ("per-stage", "model", "life, per stage", 3))


def exported(out: Path, backbone: str, graph: str, batch: int | None) -> Path:
    """The export's folder; made if it is not there."""
    folder = out / f"{backbone}-{graph}-{batch or 'dynamic'}"
    if not (folder / "model.json").is_file():
        name, _, size = backbone.partition("@")
        command = children.command("lifedeploy", "export", "--backbone", name, "--rho", "0.7")
        command += ["--img-size", size] if size else []
        command += ["--weights", "random", "--graph", graph, "-o", str(folder), "--no-parity"]
        subprocess.run([*command, *(["--batch-size", str(batch)] if batch else [])], check=True)
    return folder


def one(folder: Path, stem: str, form: GraphForm) -> dict[str, Any]:
    """Convert and build one graph."""
    graph = folder / f"{stem}.{form.precision}.{form.attention}.onnx"
    began = time.perf_counter()
    forms.prepare(folder / f"{stem}.onnx", form, graph)
    prepared = time.perf_counter()
    plan = build_plan(trt, graph, BuildOptions())
    found = fusion.of_plan(plan.data)
    graph.unlink()
    return {
        "seconds_to_convert": round(prepared - began, 1),
        "seconds_to_build": round(time.perf_counter() - prepared, 1),
        "mib": round(len(plan.data) / 1024**2, 1),
        "attention": found.attention,
        "topk": found.topk,
        "kernels": sum(found.launches.values()),
        "precision": found.precision,
    }


def run(out: Path, backbones: Sequence[str], wanted: Sequence[GraphForm]) -> list[dict[str, Any]]:
    """All builds; a finished one is in ``DIR/rows.json`` and is not repeated."""
    ledger = out / "rows.json"
    rows: list[dict[str, Any]] = json.loads(ledger.read_text())["rows"] if ledger.is_file() else []
    for backbone in backbones:
        for batch in (None, STATIC):
            for graph, stem, label, sorts in GRAPHS:
                for form in wanted:
                    key = {"backbone": backbone, "batch": batch or "1, 8, 128", "graph": label}
                    key |= {"form": f"{form.precision}, {form.attention}"}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    folder = exported(out, backbone, graph, batch)
                    row = key | one(folder, stem, form) | {"sorts": sorts}
                    row["layers"] = Artifact.read(folder / "model.json").manifest.spec.schedule.depth
                    print(row, flush=True)
                    rows.append(row)
                    write_json(ledger, {"rows": rows})
    return rows


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    machine = found["machine"]
    more = list(dict.fromkeys(row["backbone"] for row in found["rows"] if row["form"] != "fp16, operator"))
    also = f" (and `--forms all` for {', '.join(more)})" if more else ""
    lines = [
        "# What TensorRT makes of the graphs",
        "",
        "Built by TensorRT for RTX on a machine without a GPU: **nothing here has run on a GPU**, and kernels are",
        "counted, not timed: all launches in the program of the plan. Keep rate 0.7, random weights.",
        "",
        f"Command: `{found['command']}`{also};",
        f"tensorrt-rtx {machine['versions'].get('tensorrt-rtx')}, onnx {machine['versions'].get('onnx')}, "
        f"{machine['cpu']}, {machine['cores']} cores; {found['date'][:10]}.",
        "",
        "| backbone | batch | graph | precision, attention | attention fused | TopK | kernels | over dense | build, s "
        "| MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        same = ("backbone", "batch", "form")
        dense = next(r for r in found["rows"] if r["graph"] == "dense" and all(r[name] == row[name] for name in same))
        lines.append(
            f"| {row['backbone']} | {row['batch']} | {row['graph']} | {row['form']} "
            f"| {row['attention']} of {row['layers']} | {row['topk']} | {row['kernels']} "
            f"| {row['kernels'] - dense['kernels']:+d} | {row['seconds_to_build']} | {row['mib']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--forms", choices=("usual", "all"), default="usual")
    given = parser.parse_args(arguments)
    wanted = [GraphForm("fp16", "operator", with_order=True)]
    if given.forms == "all":
        wanted += [GraphForm("fp16", "products", with_order=True), GraphForm("bf16", "operator", with_order=True)]
    given.out.mkdir(parents=True, exist_ok=True)
    rows = run(given.out, given.backbones.split(","), wanted)
    command = f"python benchmarks/tensorrt/kernels.py --out DIR --backbones {given.backbones}"
    found = {"rows": rows, "command": command, "machine": describe(), "date": now()}
    write_json(HERE / "results.json", found)
    (HERE / "RESULTS.md").write_text(table(found), encoding="utf-8")
    wrong = [row for row in rows if row["attention"] != row["layers"] or row["topk"] != row["sorts"]]
    if wrong:
        raise SystemExit(f"not fused, or sorted more often than the graph says: {wrong}")


if __name__ == "__main__":
    main()
