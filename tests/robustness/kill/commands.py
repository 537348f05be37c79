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
    takes: tuple[str, ...] = ()  # inputs that no other command takes
    # A pattern of the files that come one after the other: those that are there are not made again. Half of the kills
    # are counted from when the first one is.
    parts: str = ""
    on_ray: bool = False  # whose processes end the command at once when they are asked to end, as the whole group is


def _writer(name: str, *argv: str, again: tuple[str, ...] = ()) -> Writer:
    return Writer(name, argv, (*argv, *again))


def _score(name: str, images: str, out: str, *more: str) -> Writer:
    words = ("score", f"{EXPORT}/onnxruntime-fp32", images, f"--out={out}", "--json=score.json", "--batch=4", *more)
    parts = f"{out}.parts/part-*" if "." in out else f"{out}/part-*"
    return Writer(name, words, words, (images,), parts, on_ray="--on=ray" in more)


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
    _writer(
        "tune",
        *(
            "tune",
            EXPORT,
            "--engine=fake",
            "--budget=10",
            "--output=tune.json",
            "--json=tuned.json",
            "--plot=front.png",
        ),
    ),
    _writer("evaluate", "evaluate", EXPORT, "--data=data", "--json=evaluate.json"),
    _writer("visualize", "visualize", EXPORT, "image.png", "--output=lives.png", "--json=lives.json"),
    _writer("package", "package", EXPORT, "--for=triton", "--engine=openvino", "--out=repo", "--json=package.json"),
    _writer("predict", "predict", f"--model={EXPORT}", "--json=predict.json", "image.png"),
    _score("score", "many", "rows", "--part=4", "--workers=1"),
    _score("score one file", "many", "rows.parquet", "--part=4", "--workers=1", "--keep=logits"),
    _score("score shards", "tars", "rows", "--format=jsonl", "--workers=1"),
    _score("score on ray", "many", "rows", "--part=2", "--on=ray", "--actors=2", "--actor-cores=1"),
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


def furnish(folder: Path, inputs: Inputs, writer: Writer) -> None:
    """The workspace in which a writer is killed."""
    inputs.copy(folder, "data", "image.png", "artifacts", *writer.takes)
