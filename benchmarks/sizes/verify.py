"""Weights against their graphs, for backbones of every family at image sizes of every shape, through the files.

    python benchmarks/sizes/verify.py [--out DIR] [--backbones test_vit,deit_t] [--sizes 5]

Each model is exported, and exported again from the checkpoint that came of it. `lifedeploy verify` then holds the first
checkpoint against both slimmed graphs, and the second one against the first dense graph. Random weights: their position
embeddings are noise, so that one in the wrong place shows. Results are written after every model.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifedeploy.artifact import Workspace
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.files import now, write_json
from lifedeploy.machine import describe
from lifedeploy.model.weights import ModelRequest
from lifedeploy.workflows.export import ExportRequest, export
from lifedeploy.workflows.verify import VerifyRequest, verify

HERE = Path(__file__).parent
# timm's own test model, DeiT, ViT, a second prefix token, CLS without a position, and registers with patches of 14.
BACKBONES = ("test_vit", "deit_t", "vit_t", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")
OF_14 = ("vit_small_patch14_reg4_dinov2",)
# As many patches as the usual grid, in its shape and in two others; wider than high; test_vit's 100 in another shape.
SIZES = ((224, 224), (112, 448), (448, 112), (96, 160), (80, 320))
SIZES_OF_14 = ((224, 224), (112, 448), (518, 98), (98, 154), (70, 280))


def measure(backbone: str, size: tuple[int, int], work: Path) -> dict[str, Any]:
    """The largest relative errors of the three comparisons, and whether all passed."""
    workspace, options = Workspace(work), GraphOptions()
    request = ModelRequest(backbone, keep_rate=0.7, weights="random", image_size=size)
    first = export(ExportRequest(request, options, work / "first", check_parity=False), workspace).folder
    again = ModelRequest(backbone, keep_rate=0.7, weights=str(first / "weights.safetensors"))
    second = export(ExportRequest(again, options, work / "second", check_parity=False), workspace).folder
    found: dict[str, Any] = {"backbone": backbone, "image_size": list(size), "passed": True}
    for name, weights, graph in (
        ("own", first / "weights.safetensors", first / "model.onnx"),
        ("again", first / "weights.safetensors", second / "model.onnx"),
        ("dense", second / "weights.safetensors", first / "dense.onnx"),
    ):
        parity = verify(VerifyRequest(weights, graph)).parity
        found[name] = parity.summary()["max_rel"]
        found["passed"] = found["passed"] and parity.passed and parity.summary()["overlap"] in (None, 1.0)
    return found


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "timm", "onnx", "onnxruntime"))
    rows = found["rows"]
    verdict = "all" if all(row["passed"] for row in rows) else "NOT all"
    worst = max(row[name] for row in rows for name in ("own", "again", "dense"))
    lines = [
        "# Weights against graphs at every size",
        "",
        f"Command: `{found['command']}`; {machine['cpu']}; {versions}; {found['date'][:10]}.",
        "",
        f"Largest error over the largest logit, of photographs and noise at batch 1 and 3: {worst:.1e} in "
        f"{3 * len(rows)} comparisons, {verdict} passed, with the same kept tokens. "
        "Random weights, keep rate 0.7. The checkpoint is held against the graph beside it and "
        "against the one that was exported from the checkpoint; and the dense graph against the second checkpoint.",
        "",
        "| backbone | pixels | graph beside it | graph from it | dense |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['backbone']} | {row['image_size'][0]}x{row['image_size'][1]} | {row['own']:.1e} | {row['again']:.1e} "
        f"| {row['dense']:.1e} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--backbones", default=",".join((*BACKBONES, *OF_14)))
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of them")
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    found: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/sizes/verify.py", *words]), "rows": []}
    found |= {"machine": describe(), "date": now()}
    for backbone in given.backbones.split(","):
        for size in (SIZES_OF_14 if backbone in OF_14 else SIZES)[: given.sizes]:
            with tempfile.TemporaryDirectory() as work:
                found["rows"].append(measure(backbone, size, Path(work)))
            print(found["rows"][-1], flush=True)
            write_json(given.out / "results.json", found)
            (given.out / "RESULTS.md").write_text(table(found), encoding="utf-8")
    if not all(row["passed"] for row in found["rows"]):
        raise SystemExit("error: not all comparisons passed")


if __name__ == "__main__":
    main()
