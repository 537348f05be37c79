"""The parity gate around an engine: opened, asked, compared with PyTorch's recorded answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy.artifact import Artifact, TensorSpec
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ArtifactError, ParityError
from lifedeploy.evaluation import parity
from lifedeploy.exporters.emulation import LARGEST, largest_of
from lifedeploy.exporters.forms import emulated
from lifedeploy.records import ReachRecord
from lifedeploy.spec import QUANTIZED
from lifedeploy.writing import scratch_folder


@dataclass(frozen=True)
class Checked:
    """What the gate found out about an engine."""

    evidence: parity.Parity
    precision: str  # what ran
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    eight_bits: int | None  # products that run in 8 bits; None: of a float graph, or the runtime does not tell


def check(cls: type[Engine], path: Path, member: Artifact, precision: str, *, trust: bool = False) -> Checked:
    """Ask the engine at ``path``, which was built of ``member``, and compare.

    ``trust`` is for what this process has just built, and has no manifest yet. What was there before is opened like any
    other: after its manifest's hashes, version and processor were compared.
    """
    samples, inputs, reference = _questions(member)
    options = EngineOptions(precision=precision, method=member.method, trust=trust)
    kept = member.manifest.kept
    with cls(path, options) as engine:
        ran, inputs_of, outputs_of = engine.precision, engine.inputs, engine.outputs
        eight_bits = engine.eight_bits if precision in QUANTIZED else None
        # A probe of its own, since a further output may change what the runtime fuses: logits come from the real one.
        probe = cls(path, replace(options, taps=kept.taps)).open() if kept else None
        try:
            run = parity.asker(engine, probe, kept, whole=True)
            answers = [run(images) for images in inputs]
        finally:
            if probe is not None:
                probe.close()
    return Checked(parity.compare(reference, answers, samples, ran), ran, inputs_of, outputs_of, eight_bits)


@dataclass(frozen=True)
class Reach:
    """The tensor of a half-precision graph that comes nearest to the end of its type, or first goes beyond."""

    tensor: str
    largest: float  # magnitude, over all samples
    limit: float  # the largest number that the type has
    sample: str  # where

    @property
    def overflows(self) -> bool:
        """Whether it is beyond."""
        return not self.largest <= self.limit

    def to_dict(self) -> ReachRecord:
        """As plain JSON types."""
        return {"tensor": self.tensor, "largest": self.largest, "limit": self.limit, "sample": self.sample}


def check_graph(graph: Path, member: Artifact, precision: str, half: str) -> tuple[parity.Parity, Reach]:
    """The numbers of a half-precision ONNX graph, emulated in ONNX Runtime on the CPU: no GPU is needed.

    ``precision`` is what the graph is held to, ``half`` what its floating-point tensors are in.

    Raises:
        ParityError: a tensor goes beyond the range of ``half``; it is named.
    """
    samples, inputs, reference = _questions(member)
    kept = member.manifest.kept
    with scratch_folder("emulated") as folder:
        path = folder / "emulated.onnx"
        emulated(graph, path, watch=True)
        # Kept tokens may be outputs of the graph already; as a tap they are found under the same name either way.
        with OnnxRuntime(path, EngineOptions(taps=kept.taps)) as engine:
            answers, reach = [], Reach("", 0.0, largest_of(half), "")
            for sample, images in zip(samples, inputs, strict=True):
                results = engine.run({engine.inputs[0].name: images})
                whole = kept.whole(results) if kept else None
                answers.append(parity.Answer(results[engine.outputs[0].name], whole))
                reach = _further(reach, results, f"{sample.kind}, batch {sample.batch}")
    if reach.overflows:
        raise ParityError(
            f"{member.path.name} does not fit into {half.upper()}: {reach.tensor} reaches {reach.largest:.3g} "
            f"({reach.sample}), and {half.upper()} ends at {reach.limit:.3g}",
            hint=None if half == "bf16" else "--bf16 has the range of FP32",
        )
    return parity.compare(reference, answers, samples, precision), reach


def _further(reach: Reach, results: Mapping[str, Array], sample: str) -> Reach:
    """``reach``, or what comes nearer to the limit; where several are beyond, the one that is computed first.

    What follows from an infinite tensor is infinite or no number: the first one is the cause.
    """
    for name, value in results.items():
        if name.endswith(LARGEST) and not reach.overflows:
            largest = float(value)
            if not largest <= reach.largest:
                reach = replace(reach, tensor=name.removesuffix(LARGEST), largest=largest, sample=sample)
    return reach


def samples_of(member: Artifact) -> tuple[Sequence[Sample], list[Array]]:
    """The samples, and what of them goes into the graph."""
    manifest = member.manifest
    preprocess = manifest.spec.preprocess
    samples = parity_samples(preprocess, manifest.graph.get("batch_size"))
    in_graph = bool(manifest.graph.get("with_preprocess"))
    return samples, [model_input(sample.pixels, preprocess, in_graph=in_graph) for sample in samples]


def _questions(member: Artifact) -> tuple[Sequence[Sample], list[Array], list[parity.Answer]]:
    """The same, and what PyTorch said; of a quantised graph, what it says when computed as it stands."""
    manifest = member.manifest
    if not manifest.reference:
        raise ArtifactError(f"{member.manifest_path} names no recorded answers to compare with", hint="export again")
    samples, inputs = samples_of(member)
    return samples, inputs, parity.recorded(member.file(manifest.reference), manifest.spec.method, inputs)
