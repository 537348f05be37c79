"""What TensorRT for RTX makes of the graphs, no GPU needed; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python -m benchmarks.tensorrt.kernels --out DIR [--backbones deit_t,deit_s,…] [--forms all]

For each backbone (NAME or NAME@PIXELS) the dense, first-k, order-once and per-stage graphs at keep rate 0.7, random
weights, are turned into FP16 and built with a profile of batches 1, 8 and 128, and at a static batch; ``--forms all``
also with attention as products and in BF16. Counted are all launches of a kernel, read off the plan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from benchmarks.common import Results, command_line, lifedeploy, new_parser, publish, record_of, source, table
from lifedeploy.artifact import Artifact
from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.engine import TensorRT
from lifedeploy.exporters import forms
from lifedeploy.spec import GraphForm

BACKBONES = "deit_t,deit_s,deit_b,vit_t,vit_s,vit_b,vit_small_patch14_dinov2@224"
STATIC = 8
HEAD = (
    "backbone | batch | graph | precision, attention | attention fused | TopK | kernels | over dense | build, s | MiB"
)
# (file of the export, method as shown, sorts)
GRAPHS = (
    ("order-once", "dense", "dense", 0),
    ("order-once", "first-k", "first-k", 0),
    ("order-once", "model", "life, order once", 1),
    ("per-stage", "model", "life, per stage", 3),
)


def exported(out: Path, backbone: str, graph: str, batch: int | None) -> Path:
    """The export's folder; made if it is not there."""
    folder = out / f"{backbone}-{graph}-{batch or 'dynamic'}"
    if not (folder / "model.json").is_file():
        name, _, size = backbone.partition("@")
        options = ["--img-size", size] if size else []
        options += ["--batch-size", str(batch)] if batch else []
        words = ("export", "--backbone", name, "--rho", "0.7", "--weights", "random", "--graph", graph, "--no-parity")
        lifedeploy(*words, *options, "-o", folder)
    return folder


def built(folder: Path, stem: str, form: GraphForm) -> dict[str, Any]:
    """Convert and build one graph."""
    graph = folder / f"{stem}.{form.precision}.{form.attention}.onnx"
    began = time.perf_counter()
    forms.prepare(folder / f"{stem}.onnx", form, graph)
    prepared = time.perf_counter()
    plan = build_plan(trt, graph, BuildOptions())
    kernels = fusion.of_plan(plan.data).record
    graph.unlink()
    return {
        "seconds_to_convert": round(prepared - began, 1),
        "seconds_to_build": round(time.perf_counter() - prepared, 1),
        "mib": round(len(plan.data) / 1024**2, 1),
        "attention": kernels.attention,
        "topk": kernels.topk,
        "kernels": sum(kernels.launches.values()),
        "precision": kernels.precision,
    }


def run(out: Path, backbones: Sequence[str], wanted: Sequence[GraphForm]) -> list[dict[str, Any]]:
    """All builds; a finished one is in ``DIR/rows.json`` and is not repeated."""
    results = Results(out / "rows.json")
    rows: list[dict[str, Any]] = results.read().get("rows", [])
    for backbone, batch, (graph, stem, label, sorts), form in product(backbones, (None, STATIC), GRAPHS, wanted):
        key = {"backbone": backbone, "batch": batch or "1, 8, 128", "graph": label}
        key |= {"form": f"{form.precision}, {form.attention}"}
        if any(key.items() <= row.items() for row in rows):
            continue
        folder = exported(out, backbone, graph, batch)
        depth = Artifact.read(folder / "model.json").manifest.spec.schedule.depth
        rows.append(key | built(folder, stem, form) | {"sorts": sorts, "layers": depth})
        print(rows[-1], flush=True)
        results.update(lambda content: content.update(rows=rows))
    return rows


def markdown(record: Mapping[str, Any]) -> str:
    """As Markdown."""
    dense = {_key(row): row["kernels"] for row in record["rows"] if row["graph"] == "dense"}
    cells = []
    for row in record["rows"]:
        graph = (row["backbone"], row["batch"], row["graph"], row["form"], f"{row['attention']} of {row['layers']}")
        more = f"{row['kernels'] - dense[_key(row)]:+d}"
        cells.append((*graph, row["topk"], row["kernels"], more, row["seconds_to_build"], row["mib"]))
    lines = [
        "# What TensorRT makes of the graphs",
        "",
        "Built by TensorRT for RTX on a machine without a GPU: **nothing here has run on a GPU**, and kernels are",
        "counted, not timed: all launches in the program of the plan. Keep rate 0.7, random weights.",
        "",
        source(record, "tensorrt-rtx", "onnx"),
        "",
        *table(HEAD, cells),
    ]
    return "\n".join(lines) + "\n"


def _key(row: Mapping[str, Any]) -> tuple[object, ...]:
    return row["backbone"], row["batch"], row["form"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, check, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--forms", choices=("usual", "all"), default="usual")
    given = parser.parse_args(arguments)
    wanted = [TensorRT.form("fp16", BuildOptions())]
    if given.forms == "all":
        products = BuildOptions(attention="products")
        wanted += [TensorRT.form("fp16", products), TensorRT.form("bf16", BuildOptions())]
    given.out.mkdir(parents=True, exist_ok=True)
    rows = run(given.out.resolve(), given.backbones.split(","), wanted)
    record = {"rows": rows} | record_of(command_line("tensorrt.kernels", arguments, {"DIR": given.out}))
    publish(Path(__file__).parent, "results", record, markdown(record))
    wrong = [row for row in rows if row["attention"] != row["layers"] or row["topk"] != row["sorts"]]
    if wrong:
        raise SystemExit(f"not fused, or sorted more often than the graph says: {wrong}")


if __name__ == "__main__":
    main()
