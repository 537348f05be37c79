"""The parity gate around an engine: opened, asked, compared with PyTorch's recorded answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy.artifact import Artifact, TensorSpec
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.evaluation import parity
from lifedeploy.exporters.forms import emulated
from lifedeploy.spec import QUANTIZED


@dataclass(frozen=True)
class Checked:
    """What the gate found out about an engine."""

    evidence: parity.Parity
    precision: str  # what ran
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    eight_bits: int | None  # products that run in 8 bits; None: of a float graph, or the runtime does not tell


def check(cls: type[Engine], path: Path, member: Artifact, precision: str) -> Checked:
    """Ask the engine at ``path``, which was built of ``member``, and compare."""
    samples, inputs, reference = _questions(member)
    spec = member.manifest.spec
    options = EngineOptions(precision=precision, method=spec.method, trust=True)
    taps = parity.taps_for(spec)
    with cls(path, options) as engine:
        ran, inputs_of, outputs_of = engine.precision, engine.inputs, engine.outputs
        eight_bits = engine.eight_bits if precision in QUANTIZED else None
        # A probe of its own, since a further output may change what the runtime fuses: logits come from the real one.
        probe = cls(path, replace(options, taps=taps)).open() if taps else None
        try:
            run = parity.asker(engine, probe, spec.schedule.tokens[-1])
            answers = [run(images) for images in inputs]
        finally:
            if probe is not None:
                probe.close()
    return Checked(parity.compare(reference, answers, samples, ran), ran, inputs_of, outputs_of, eight_bits)


def check_graph(graph: Path, member: Artifact, precision: str) -> parity.Parity:
    """The numbers of a half-precision ONNX graph, emulated in ONNX Runtime on the CPU: no GPU is needed."""
    samples, inputs, reference = _questions(member)
    spec = member.manifest.spec
    taps = parity.taps_for(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "emulated.onnx"
        emulated(graph, path)
        # The order may be an output of the graph already; as a tap it is found under the same name either way.
        with OnnxRuntime(path, EngineOptions(taps=taps)) as engine:
            run = parity.asker(engine, engine if taps else None, spec.schedule.tokens[-1])
            answers = [run(images) for images in inputs]
    return parity.compare(reference, answers, samples, precision)


def samples_of(member: Artifact) -> tuple[Sequence[Sample], list[Array]]:
    """The samples, and what of them goes into the graph."""
    manifest = member.manifest
    preprocess = manifest.spec.preprocess
    samples = parity_samples(preprocess, manifest.graph.get("batch_size"))
    in_graph = bool(manifest.graph.get("with_preprocess"))
    return samples, [model_input(sample.pixels, preprocess, in_graph=in_graph) for sample in samples]


def _questions(member: Artifact) -> tuple[Sequence[Sample], list[Array], list[parity.Answer]]:
    """The same, and what PyTorch said; of a quantised graph, what it says when computed as it stands."""
    samples, inputs = samples_of(member)
    manifest = member.manifest
    return samples, inputs, parity.recorded(member.folder / manifest.reference, manifest.spec.method, inputs)
