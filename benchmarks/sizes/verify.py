"""Weights against their graphs, for backbones of every family at image sizes of every shape, through the files.

    python -m benchmarks.sizes.verify [--out DIR] [--backbones test_vit,deit_t] [--sizes 5]

Each model is exported, and exported again from the checkpoint that came of it. `lifedeploy verify` then holds the first
checkpoint against both slimmed graphs, and the second one against the first dense graph. Random weights: their position
embeddings are noise, so that one in the wrong place shows. Results are written after every model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import command_line, lifedeploy, new_parser, publish, record_of, report_of, source, table

# timm's own test model, DeiT, ViT, a second prefix token, CLS without a position, and registers with patches of 14.
BACKBONES = ("test_vit", "deit_t", "vit_t", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")
OF_14 = ("vit_small_patch14_reg4_dinov2",)
# As many patches as the usual grid, in its shape and in two others; wider than high; test_vit's 100 in another shape.
SIZES = ("224x224", "112x448", "448x112", "96x160", "80x320")
SIZES_OF_14 = ("224x224", "112x448", "518x98", "98x154", "70x280")
# Column → checkpoint and graph that are compared.
COMPARISONS = {
    "graph beside it": ("first/weights.safetensors", "first/model.onnx"),
    "graph from it": ("first/weights.safetensors", "second/model.onnx"),
    "dense": ("second/weights.safetensors", "first/dense.onnx"),
}


def measure(backbone: str, size: str, work: Path) -> dict[str, Any]:
    """The largest relative errors of the three comparisons, and whether all passed."""
    export = ("export", "--backbone", backbone, "--rho", "0.7", "--no-parity")
    lifedeploy(*export, "--weights", "random", "--img-size", size, "-o", "first", folder=work)
    lifedeploy(*export, "--weights", "first/weights.safetensors", "-o", "second", folder=work)
    row: dict[str, Any] = {"backbone": backbone, "image_size": size, "passed": True}
    for name, (checkpoint, graph) in COMPARISONS.items():
        parity = report_of("verify", checkpoint, graph, folder=work)["parity"]
        row[name] = parity["max_rel"]
        row["passed"] = row["passed"] and parity["passed"] and parity["overlap"] in (None, 1.0)
    return row


def markdown(record: Mapping[str, Any]) -> str:
    """As Markdown."""
    rows = record["rows"]
    verdict = "all" if all(row["passed"] for row in rows) else "NOT all"
    worst = max(row[name] for row in rows for name in COMPARISONS)
    cells = ((row["backbone"], row["image_size"], *(f"{row[name]:.1e}" for name in COMPARISONS)) for row in rows)
    lines = [
        "# Weights against graphs at every size",
        "",
        source(record, "torch", "timm", "onnx", "onnxruntime"),
        "",
        f"Largest error over the largest logit, of photographs and noise at batch 1 and 3: {worst:.1e} in "
        f"{len(COMPARISONS) * len(rows)} comparisons, {verdict} passed, with the same kept tokens. "
        "Random weights, keep rate 0.7. The checkpoint is held against the graph beside it and "
        "against the one that was exported from the checkpoint; and the dense graph against the second checkpoint.",
        "",
        *table(f"backbone | pixels | {' | '.join(COMPARISONS)}", cells),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--backbones", default=",".join((*BACKBONES, *OF_14)))
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of them")
    given = parser.parse_args(arguments)
    record: dict[str, Any] = record_of(command_line("sizes.verify", arguments)) | {"rows": []}
    for backbone in given.backbones.split(","):
        for size in (SIZES_OF_14 if backbone in OF_14 else SIZES)[: given.sizes]:
            with tempfile.TemporaryDirectory() as work:
                record["rows"].append(measure(backbone, size, Path(work)))
            print(record["rows"][-1], flush=True)
            publish(given.out, "results", record, markdown(record))
    if not all(row["passed"] for row in record["rows"]):
        raise SystemExit("error: not all comparisons passed")


if __name__ == "__main__":
    main()
