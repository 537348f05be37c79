"""Every command that writes, in a workspace that has one of everything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.robustness.inputs import EXPORT, TINY, TRAIN, Inputs

RUN = "artifacts/checkpoints/new"


@dataclass(frozen=True)
class Writer:
    """A command that writes, and how it is called again after it was killed."""

    name: str
    argv: tuple[str, ...]
    again: tuple[str, ...]


def _writer(name: str, *argv: str, again: tuple[str, ...] = ()) -> Writer:
    return Writer(name, argv, (*argv, *again))


_TRAINED = (*TRAIN, "--weights=artifacts/checkpoints/dense/best.safetensors", "--checkpoint-every=1", "--name=new")
WRITERS = (
    _writer("export", "export", *TINY, "--rho=0.7"),
    _writer("calibrate", "calibrate", EXPORT, "--data=data", "--images=8", "--check-images=4", "--force"),
    _writer("build-engine openvino", "build-engine", EXPORT, "--engine=openvino", "--force"),
    _writer("build-engine onnxruntime", "build-engine", EXPORT, "--engine=onnxruntime", "--force"),
    _writer("train", *_TRAINED, again=("--resume",)),
    _writer(
        "train --dense", *TRAIN, "--dense", "--epochs=2", "--name=new", "--checkpoint-every=1", again=("--resume",)
    ),
    _writer(
        "bench",
        *("bench", EXPORT, "--engine=fake", "--batch=1", "--budget=0.1", "--memory"),
        *("--json=bench.json", "--csv=bench.csv", "--plot=bench.png"),
    ),
    _writer("evaluate", "evaluate", EXPORT, "--data=data", "--json=evaluate.json"),
    _writer("visualize", "visualize", EXPORT, "image.png", "--output=lives.png", "--json=lives.json"),
    _writer("package", "package", EXPORT, "--for=triton", "--engine=openvino", "--out=repo", "--json=package.json"),
    _writer("predict", "predict", f"--model={EXPORT}", "--json=predict.json", "image.png"),
)
# What others do in the same workspace meanwhile, and must not be tripped.
READERS = (
    ("inspect",),
    ("inspect", f"{EXPORT}/int8"),
    ("predict", "image.png"),
    ("evaluate", f"{EXPORT}/openvino-fp32", "--data=data"),
    ("build-engine", EXPORT, "--engine=fake"),
)
# Another writer in the same workspace: over the export that is there, or beside it.
EXPORTS = (("export", *TINY, "--rho=0.7"), ("export", *TINY, "--counts=3,2,1"))


def furnish(folder: Path, inputs: Inputs) -> None:
    """The workspace in which a writer is killed."""
    inputs.copy(folder, "data", "image.png", "artifacts")
