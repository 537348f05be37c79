"""Attention as one operator against MatMul, Softmax, MatMul, on CPU runtimes; writes ``ATTENTION.md`` and ``.json``.

    python benchmarks/cpu/attention.py MODEL.onnx [--batch 8] [--budget 120]

MODEL is an exported order-once graph with ``dense.onnx`` beside it. All four graphs take turns in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lifedeploy.artifact import Artifact
from lifedeploy.bench.measure import Contender, Stop, measure
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.exporters import forms
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe
from lifedeploy.spec import STANDARD_ATTENTIONS, GraphForm

HERE = Path(__file__).parent
ENGINES = ("onnxruntime", "openvino")


def contest(name: str, graphs: dict[tuple[str, str], Path], batch: int, budget: float) -> list[dict[str, Any]]:
    """All graphs on one runtime, the operator's throughput against that of the products."""
    with ExitStack() as stack:
        contenders = []
        for (method, attention), path in graphs.items():
            engine = stack.enter_context(registry.get(name)(path, EngineOptions(batch=batch)))
            lane = engine.lane(batch)
            images = lane.inputs["images"]
            images[...] = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
            contenders.append(Contender(f"{method} {attention}", batch, (lane,), f"{method} products"))
        samples = measure(contenders, Stop(budget_s=budget))
    rows = []
    for method in dict.fromkeys(method for method, _ in graphs):
        ratio = samples.ratio(f"{method} operator", f"{method} products")
        rates = {
            attention: float(np.median([turn.images_per_s for turn in samples.rounds[f"{method} {attention}"]]))
            for attention in STANDARD_ATTENTIONS
        }
        row = {"engine": name, "method": method, "batch": batch, "rounds": samples.count, "images_per_s": rates}
        rows.append(row | {"ratio": ratio.median, "low": ratio.low, "high": ratio.high, "coverage": ratio.coverage})
    return rows


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ENGINES)
    lines = [
        "# Attention as one operator, on CPUs",
        "",
        f"Command: `{found['command']}`; {found['model']}, FP32, random weights.",
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['cores']} cores, {versions}; "
        f"{found['date'][:10]}.",
        "",
        "| engine | method | batch | products, img/s | operator, img/s | operator over products | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        rates = row["images_per_s"]
        lines.append(
            f"| {row['engine']} | {row['method']} | {row['batch']} | {rates['products']:.1f} | {rates['operator']:.1f} "
            f"| {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['rounds']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds per runtime")
    given = parser.parse_args(arguments)
    spec = Artifact.read(given.model.with_suffix(".json")).manifest.spec
    with tempfile.TemporaryDirectory() as folder:
        graphs = {}
        for method, source in (("life", given.model), ("dense", given.model.with_name("dense.onnx"))):
            for attention in STANDARD_ATTENTIONS:
                graphs[method, attention] = Path(folder) / f"{method}.{attention}.onnx"
                forms.prepare(source, GraphForm(attention=attention), graphs[method, attention])
        rows = [row for name in ENGINES for row in contest(name, graphs, given.batch, given.budget)]
    command = f"python benchmarks/cpu/attention.py MODEL.onnx --batch {given.batch} --budget {given.budget:g}"
    found = {"rows": rows, "model": spec.backbone, "command": command, "machine": describe(), "date": now()}
    write_json(HERE / "attention.json", found)
    (HERE / "ATTENTION.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
