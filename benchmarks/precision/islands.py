"""Which parts of a half-precision graph have to stay in FP32; writes ``RESULTS.md`` and ``results.json`` beside itself.

    python benchmarks/precision/islands.py MODEL.onnx --data DIR [--images 200] [--threads N]

MODEL.onnx is an FP32 export of a trained life model, DIR images as ``lifedeploy evaluate`` takes them. Every form is
emulated (lifedeploy/exporters/emulation.py) and compared with the FP32 graph on the same images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from lifedeploy.data.images import read_images
from lifedeploy.data.preprocess import normalise, to_pixels
from lifedeploy.evaluation.parity import overlap
from lifedeploy.exporters import attention, emulation, precision
from lifedeploy.exporters.precision import RANKING, Island
from lifedeploy.files import now, write_json
from lifedeploy.kept import KeptTokens
from lifedeploy.machine import describe
from lifedeploy.workflows.find import find

HERE = Path(__file__).parent
BATCH = 25


def logits(model: ir.Model) -> set[ir.Node]:
    """The head."""
    head = model.graph.outputs[0].producer()
    return {head} if head is not None else set()


def predictor_norm(model: ir.Model) -> set[ir.Node]:
    """The LayerNormalization in front of the score."""
    return {node for node in model.graph if node.op_type == "LayerNormalization" and "predictor" in (node.name or "")}


LOGITS, NORM = Island("logits", "", logits), Island("predictor's norm", "", predictor_norm)
# name → (islands, attention as one operator)
FORMS: dict[str, tuple[tuple[Island, ...], bool]] = {
    "nothing in FP32": ((), False),
    "ranking": ((RANKING,), False),
    "ranking, Attention operator": ((RANKING,), True),
    "logits": ((LOGITS,), False),
    "ranking, logits": ((RANKING, LOGITS), False),
    "ranking, logits, predictor's norm": ((RANKING, LOGITS, NORM), False),
}


def answers(
    model: ir.Model, batches: Sequence[np.ndarray], kept: KeptTokens, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, classes) and the tokens that are kept to the end (N, n_T)."""
    model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in kept.last_tap)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [session.get_outputs()[0].name, *kept.last_tap]
    found = [
        dict(zip(names, session.run(names, {session.get_inputs()[0].name: batch}), strict=True)) for batch in batches
    ]
    return np.concatenate([one[names[0]] for one in found]), np.concatenate([kept.survivors(one) for one in found])


def run(path: Path, data: str, count: int, threads: int) -> dict[str, Any]:
    """Every form in both precisions."""
    artifact = find(path).artifact
    assert artifact is not None, f"{path} has no manifest beside it"
    spec = artifact.manifest.spec
    images = read_images(data, split="val")
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    pixels = [to_pixels(images.image(int(index)), spec.preprocess) for index in chosen]
    parts = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    batches = [normalise(part, spec.preprocess) for part in parts]
    kept = artifact.manifest.kept
    reference = answers(ir.load(path), batches, kept, threads)
    rows = []
    for to in precision.HALF:
        for name, (islands, operator) in FORMS.items():
            if to == "bf16" and RANKING not in islands:
                continue  # ONNX has no TopK in BF16 before opset 24
            model = ir.load(path)
            if operator:
                attention.fuse(model)
            attention.raise_opset(model)
            precision.to_half(model, to, islands)
            emulation.emulate(model)
            found = answers(model, batches, kept, threads)
            rows.append({"precision": to, "in FP32": name} | compare(reference, found))
            print(rows[-1], flush=True)
    facts = {"model": artifact.name, "weights": spec.provenance.weights, "images": len(pixels)}
    facts |= {"patches": spec.schedule.patches, "kept": spec.schedule.tokens[-1]}
    return facts | {"rows": rows, "machine": describe(threads=threads), "date": now()}


def compare(reference: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """How far a form is from FP32."""
    error = np.abs(found[0] - reference[0])
    return {
        "largest": float(error.max() / np.abs(reference[0]).max()),
        "mean": float(error.mean()),
        "top1": float(100 * (found[0].argmax(1) == reference[0].argmax(1)).mean()),
        "overlap": 100 * overlap(reference[1], found[1]),
    }


def table(found: dict[str, Any], command: str) -> str:
    """As Markdown."""
    versions = found["machine"]["versions"]
    lines = [
        "# What has to stay in FP32",
        "",
        f"{found['model']} ({found['patches']} patches, {found['kept']} in the last layers), {found['images']}",
        "held-out photographs, each form emulated tensor by tensor and compared with the FP32 graph.",
        "",
        f"Command: `{command}`;",
        f"{found['machine']['cpu']}, onnxruntime {versions.get('onnxruntime')}, onnx {versions.get('onnx')}; "
        f"{found['date'][:10]}.",
        "",
        "| precision | in FP32 | largest error of a logit | mean error | same class | same tokens kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['precision']} | {row['in FP32']} | {100 * row['largest']:.1f} % of the largest logit "
            f"| {row['mean']:.4f} | {row['top1']:.1f} % | {row['overlap']:.2f} % |"
        )
    lines += [
        "",
        "The logits and the predictor's normalisation in FP32 change nothing beyond chance, so they are not islands.",
        "The ranking is one: ONNX has no TopK in BF16 before opset 24. What FP16 cannot hold is infinite here too.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    found = run(given.model, given.data, given.images, given.threads)
    write_json(HERE / "results.json", found)
    command = f"python benchmarks/precision/islands.py MODEL.onnx --data DIR --images {given.images}"
    (HERE / "RESULTS.md").write_text(table(found, command), encoding="utf-8")


if __name__ == "__main__":
    main()
