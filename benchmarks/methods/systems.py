"""The systems of the literature in compiled engines, against each other; writes ``RESULTS.md`` and ``results.json``
beside this file, and a picture per comparison.

    python -m benchmarks.methods.systems --work DIR [--engines NAME:PRECISION,…] [--budget SECONDS] [--kernels]

DeiT-S, keep rate 0.7, random weights (speed does not depend on them): all methods by ``lifedeploy compare``, at the
same keep rate and at the same GMACs, in latency and throughput mode, at batch 1, 8 and 32. What ``compare`` has
measured is in ``DIR/artifacts``, so that the same command goes on where it was ended. ``--kernels``: also count what
TensorRT for RTX launches for each method, which needs no GPU. About 70 minutes on two cores, 15 of them for exports,
engines and calibration.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    BF16,
    Results,
    command_line,
    interval,
    lifedeploy,
    new_parser,
    number,
    read_json,
    source,
    table,
)
from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.data.samples import photo_folder
from lifedeploy.machine import identity
from lifedeploy.spec import GraphForm
from lifedeploy.typed import COMPARED_AT

HERE = Path(__file__).parent
BACKBONE = "deit_s"
KEEP_RATE = "0.7"
METHODS = ("dense", "first-k", *methods.names(methods.SLIMMED))
ENGINES = ("onnxruntime:fp32", "openvino:bf16" if BF16 else "openvino:fp32", "openvino:int8")
SAME = COMPARED_AT[:2]
BATCHES = "1,8,32"
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt-rtx")


def whole_memory() -> bool:
    """Drop the file cache and compact memory, if this process may: else what is opened first is slower than what is
    opened last (benchmarks/README.md)."""
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        Path("/proc/sys/vm/compact_memory").write_text("1", encoding="ascii")
    except OSError:
        return False
    return True


def compared(work: Path, engine: str, at: str, budget: str) -> dict[str, Any]:
    """One comparison; what was measured of it before is taken."""
    name = f"{engine.replace(':', '-')}-{at}"
    whole = whole_memory()
    more = ("--calibration-data", photo_folder()) if engine.endswith(":int8") else ()
    lifedeploy(
        *("compare", "--backbone", BACKBONE, "--methods", ",".join(METHODS), "--rho", KEEP_RATE, "--at", at),
        *("--engine", engine, "--mode", "latency", "--mode", "throughput", "--batch", BATCHES, "--budget", budget),
        *("--weights", "random", "--json", f"{name}.json", "--plot", HERE / f"{name}.png", *more),
        folder=work,
    )
    return read_json(work / f"{name}.json") | {"whole_memory": whole}


def kernels(work: Path) -> list[dict[str, Any]]:
    """What TensorRT for RTX launches for each method, FP16, a profile of batches 1, 8 and 128."""
    from benchmarks.tensorrt.kernels import built

    rows: list[dict[str, Any]] = []
    exports = [Artifact.read(path) for path in sorted((work / "artifacts").glob(f"*-r{KEEP_RATE}/model.json"))]
    for export in sorted(exports, key=lambda export: METHODS.index(export.method)):
        dense = export.sibling(methods.baseline().name)
        assert dense is not None  # every export has one
        for graph in (dense, export) if not rows else (export,):
            form = GraphForm("fp16", "operator", with_order=True)
            rows.append({"method": graph.method} | built(graph.folder, graph.path.stem, form))
            print(rows[-1], flush=True)
    return rows


def markdown(content: Mapping[str, Any]) -> str:
    """All results as a page: a section per processor."""
    lines = [
        "# The systems against each other",
        "",
        f"DeiT-S, keep rate {KEEP_RATE}, random weights: speeds are valid, accuracy there is none. All methods of one",
        "engine took turns in one contest per mode and batch size. *Speed-up* is over dense, median of the rounds with",
        "its 95 % interval; *efficiency* is that over the ratio of the GMACs; *of life* is img/s over life's in the",
        "same rounds: below 1, life is faster. *first-k* keeps as many tokens as life, and looks at none. What all of",
        "it means: [FINDINGS.md](FINDINGS.md).",
        "",
    ]
    for processor, parts in content.get("compare", {}).items():
        lines += [f"## {processor}", ""]
        for name, report in parts["result"].items():
            lines += _comparison(name, report)
    counted: Mapping[str, Any] = content.get("kernels", {})
    for entry in counted.values():
        lines += _kernels(entry)
    return "\n".join(lines).rstrip() + "\n"


def _comparison(name: str, report: Mapping[str, Any]) -> list[str]:
    engine, _, at = name.partition(" ")
    told = {"keep-rate": "each at its own keep rate 0.7", "macs": "all at the GMACs of life"}[at]
    whole = "File cache dropped and memory compacted before. " if report["whole_memory"] else ""
    lines = [f"### {engine}, {told}", "", whole + source(report, *PACKAGES), ""]
    models = {model["method"]: model for model in report["models"]}
    for mode in ("latency", "throughput"):
        rows = [row for row in report["rows"] if row["mode"] == mode]
        if not rows:
            continue
        batches = list(dict.fromkeys(row["batch"] for row in rows))
        streams = rows[0]["streams"]
        head = "method | tokens | GMACs"
        for batch in batches:
            head += f" | batch {batch}: img/s | speed-up | efficiency | of life"
        cells = []
        for method, model in models.items():
            cell = [method, "→".join(map(str, model["tokens"])), f"{model['gmacs']:.2f}"]
            for batch in batches:
                row = next(row for row in rows if (row["method"], row["batch"]) == (method, batch))
                cell += _cells(row)
            cells.append(cell)
        flight = f", {streams} requests in flight" if mode == "throughput" else ", one request at a time"
        lines += [f"{mode.capitalize()}{flight}:", "", *table(head, cells), ""]
    return [*lines, f"![speed against GMACs]({engine.replace(':', '-')}-{at}.png)", ""]


def _cells(row: Mapping[str, Any]) -> list[str]:
    drops = methods.role_of(row["method"]) != methods.BASELINE
    return [
        number(row["images_per_s"], ".3g"),
        interval(row, "speedup", 2) if drops else "–",
        number(row["efficiency"], ".0%") if drops else "–",
        interval(row, "over_like"),
    ]


def _kernels(entry: Mapping[str, Any]) -> list[str]:
    rows = entry["result"]
    dense = rows[0]["kernels"]
    cells: Iterable[Iterable[object]] = (
        (row["method"], row["attention"], row["topk"], row["kernels"], f"{row['kernels'] - dense:+d}") for row in rows
    )
    return [
        "## Kernels in a TensorRT plan",
        "",
        "FP16, a profile of batches 1, 8 and 128, built by TensorRT for RTX on a machine without a GPU: counted, not",
        "timed.",
        "",
        source(entry, *PACKAGES),
        "",
        *table("method | attention fused | TopK | kernels | over dense", cells),
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--budget", default="30")
    parser.add_argument("--kernels", action="store_true")
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    line = command_line("methods.systems", arguments, {"DIR": given.work})
    results = Results(HERE / "results.json")
    for engine in given.engines.split(","):
        for at in SAME:
            report = compared(work, engine, at, given.budget)
            kept = {name: report[name] for name in ("machine", "rows", "models", "contests", "whole_memory")}
            kept |= {"command": line, "date": report["created"]}
            results.keep("compare", kept, line, part=f"{engine} {at}")
            (HERE / "RESULTS.md").write_text(markdown(results.read()), encoding="utf-8")
    if given.kernels:
        results.keep("kernels", kernels(work), line)
        (HERE / "RESULTS.md").write_text(markdown(results.read()), encoding="utf-8")
    print(f"of {identity()}: {HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
