"""Where the time of DeiT-S goes on a CPU, layer by layer, against the machine's own ceiling: ``SHARES.md`` and
``shares.json`` beside this file.

    python -m benchmarks.cpu.shares [--work DIR] [--quick]

Dense and life at keep rate 0.7, OpenVINO in BF16 (FP32 where the CPU has no BF16) and INT8, batch 1 and 8, one request
at a time. The engine's profile says what every executed node takes; every product of the model is also the only one
of a model of its own, in the same process, in turns with the model: that is its ceiling. About eight minutes on two
cores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product as pairs
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.common import (
    BF16,
    Results,
    command_line,
    lifedeploy,
    new_parser,
    number,
    source,
    table,
)
from benchmarks.cpu import rows
from benchmarks.cpu.products import Product, config, executed, peak
from benchmarks.cpu.rows import Shape
from lifedeploy.artifact import Artifact
from lifedeploy.data.samples import photo_folder
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions

HERE = Path(__file__).parent
KEEP_RATE = "0.7"
BASE = "bf16" if BF16 else "fp32"  # what is in no 8 bits
GRAPHS = {"dense": "dense", "life": "model"}
BATCHES = (1, 8)
SQUARES: tuple[Shape, ...] = ((1, 512, 512, 512), (1, 1024, 1024, 1024), (1, 2048, 2048, 2048))
RUNS = 2  # of a profile, in every round: what disturbs the machine disturbs few of them
ASKED = 3  # inferences that are not profiled, in every round
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "openvino")
HEAD = "row | ran in | ms | share | GMACs | 10⁹ op/s | ceiling | of ceiling | ONNX nodes in it"


def exported(work: Path) -> Path:
    """DeiT-S with random weights, and its quantised graphs."""
    export = work / "deit_s"
    if not (export / "model.json").is_file():
        lifedeploy("export", "--backbone", "deit_s", "--rho", KEEP_RATE, "--weights", "random", "-o", export)
    if not (export / "int8" / "model.json").is_file():
        lifedeploy("calibrate", export, "--int8", "--data", photo_folder())
    return export


def measured(export: Path, precision: str, method: str, batch: int, rounds: int) -> dict[str, Any]:
    """A table: the model and its products in turns."""
    artifact = Artifact.read(export / f"{GRAPHS[method]}.json")
    counted = artifact.manifest.macs
    assert counted.attention_tokens is not None and counted.query_tokens is not None  # just exported
    graph = export / ("int8" if precision == "int8" else "") / f"{GRAPHS[method]}.onnx"
    model = ov.Core().read_model(graph)
    model.reshape([batch, 3, 224, 224])
    nodes = executed(model, BASE)
    ran, work = rows.precisions(nodes), rows.shapes(counted.attention_tokens, counted.query_tokens, batch)
    wanted = {(ran[row], shape) for row, shapes in work.items() if row in ran for shape in shapes}
    wanted |= {(name, shape) for name in {name for name, _ in wanted} for shape in SQUARES}
    products = {key: Product(key[1], key[0], BASE) for key in sorted(wanted)}
    profiles: list[dict[str, float]] = []
    asked: list[float] = []
    feeds = {"images": np.random.default_rng(1).standard_normal((batch, 3, 224, 224), dtype=np.float32)}
    # As it is profiled: of an engine each thread would have images of its own.
    request = ov.Core().compile_model(model, "CPU", config(BASE)).create_infer_request()
    with registry.get("openvino")(graph, EngineOptions(precision=precision, batch=batch)) as engine:
        for _ in range(rounds):
            layers = engine.profile(feeds, runs=RUNS)
            profiles.append(rows.summed((layer.name, layer.kind, layer.ms) for layer in layers))
            asked += [_timed(partial(request.infer, feeds)) for _ in range(ASKED)]
            for product in products.values():
                product.run()
    spent = {row: float(np.median([profile.get(row, 0.0) for profile in profiles])) for row in profiles[0]}
    alone = {key: float(np.median(product.ms)) for key, product in products.items()}
    latency = float(np.median(asked))
    return {
        "engine": f"openvino {precision}",
        "method": method,
        "batch": batch,
        "rounds": rounds,
        "latency_ms": latency,
        "sum_ms": float(np.median([sum(profile.values()) for profile in profiles])),
        "peak": {name: {"gops": rate, "shape": shape} for name, (rate, shape) in peak(products).items()},
        "rows": rows.table_rows(spent, ran, work, alone),
        "held": {row: names[:6] for row, names in rows.held(nodes).items()},
    }


def _timed(call: Any) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def markdown(content: Mapping[str, Any]) -> str:
    """A section per processor, a table per engine, method and batch."""
    lines = [
        "# Where the time of DeiT-S goes on a CPU",
        "",
        f"One request at a time, 224 px; dense, and life at keep rate {KEEP_RATE}; random weights, biases and norms",
        "too. *ms*: what OpenVINO's profiler says of the executed nodes of a row, per inference, median of the rounds.",
        "*10⁹ op/s*: two operations per multiply-accumulate. *Ceiling*: what OpenVINO reaches with the row's products",
        "alone, each the only one of a model, of the same shape (M = batch · tokens), precision and threads, in",
        "turns with the model, median: no bias, no GELU, no softmax. *Peak*: the best that any product did. A node may",
        "hold more than its product: the last column says what, and that is what takes a row below its ceiling,",
        "together with activations that are in no cache. Above 100 %, they were nearer than those of a product alone.",
        "",
    ]
    for processor, entry in content.get("shares", {}).items():
        lines += [f"## {processor}", "", source(entry, *PACKAGES), ""]
        tables = entry["result"]
        if not any(part["engine"] == "openvino bf16" for part in tables):
            lines += ["**Not measured here: BF16**, which this CPU has not; FP32 stands in its place.", ""]
        for part in tables:
            lines += _section(part)
    return "\n".join(lines).rstrip() + "\n"


def _section(part: Mapping[str, Any]) -> list[str]:
    ratio = part["sum_ms"] / part["latency_ms"]
    busy = sum(row["ms"] for row in part["rows"] if row["gmacs"])
    work = 2e3 * sum(row["gmacs"] for row in part["rows"] if row["gmacs"])
    peaks = "; ".join(
        f"{name} {facts['gops']:.0f} ({_chained(facts['shape'])})" for name, facts in part["peak"].items()
    )
    cells = (
        (
            row["row"],
            row["in"] or "–",
            number(row["ms"], ".3f"),
            number(row["share"], ".1%"),
            number(row["gmacs"], ".3f"),
            number(row["gops"], ".0f"),
            number(row["ceiling"], ".0f"),
            number(row["of_ceiling"], ".0%"),
            ", ".join(part["held"].get(row["row"], ())) or "–",
        )
        for row in part["rows"]
    )
    return [
        f"### {part['engine']}, {part['method']}, batch {part['batch']}",
        "",
        f"Latency without the profiler {part['latency_ms']:.1f} ms; the nodes' sum {part['sum_ms']:.1f} ms, "
        f"{ratio:.3f} of it; {part['rounds']} rounds. In products {number(busy / part['sum_ms'], '.1%')} of it, at "
        f"{work / busy:.0f} 10⁹ op/s. Peak: {peaks}.",
        "",
        *table(HEAD, cells),
        "",
    ]


def _chained(shape: Sequence[int]) -> str:
    several, *three = shape
    return "·".join(map(str, (several, *three) if several > 1 else three))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, export, measure, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder for the export (default: a temporary one)")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, to see that it runs; written to the work folder"
    )
    given = parser.parse_args(arguments)
    rounds = 2 if given.quick else 13
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        command = command_line("cpu.shares", arguments, {"DIR": given.work} if given.work else None)
        export = exported(work)
        tables = []
        for precision, method, batch in pairs((BASE, "int8"), GRAPHS, BATCHES):
            tables.append(measured(export, precision, method, batch, rounds))
            print("\n".join(_section(tables[-1])), flush=True)
        folder = work if given.quick else HERE
        results = Results(folder / "shares.json")
        results.keep("shares", tables, command)
        (folder / "SHARES.md").write_text(markdown(results.read()), encoding="utf-8")
        print(folder / "SHARES.md")


if __name__ == "__main__":
    main()
