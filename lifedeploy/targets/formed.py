"""A graph in the form that an engine asks for, and what can be proven of it without the engine.

Graphs are taken apart for that, as by an export; what compiles them as exported, or opens an engine, needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ParityError
from lifedeploy.evaluation import parity
from lifedeploy.exporters import forms
from lifedeploy.exporters.emulation import LARGEST
from lifedeploy.exporters.precision import LARGEST_NUMBER
from lifedeploy.records import FormedRecord, ParityRecord, ReachRecord
from lifedeploy.spec import QUANTIZED, GraphForm
from lifedeploy.targets.evidence import compiled, questions
from lifedeploy.targets.session import Session
from lifedeploy.writing import scratch_folder


def in_form(graph: Artifact, form: GraphForm, destination: Path) -> FormedRecord:
    """Write ``graph`` in another form as ``destination``; what was done to it, and proven of it.

    Raises:
        ArtifactError, ExportError: the graph is damaged, or cannot take that form.
        ParityError: it does not compute the same in it.
    """
    formed = forms.prepare(graph.path, form, destination)
    if form.precision != "fp32" and registry.examine(OnnxRuntime).ok:
        precision = graph.precision if graph.precision in QUANTIZED else form.precision
        evidence, reach = check_graph(destination, graph, precision, form.precision)
        evidence.require(f"{graph.path.name} turned into {form.precision.upper()}")
        formed = formed.but(parity=evidence, reach=reach)
    return formed


def check_graph(path: Path, graph: Artifact, precision: str, half: str) -> tuple[ParityRecord, ReachRecord]:
    """The numbers of a half-precision ONNX graph, emulated in ONNX Runtime on the CPU: no GPU is needed.

    Args:
        path: the half-precision form of ``graph``.
        graph: the exported or calibrated graph.
        precision: what the numbers are held to.
        half: what the floating-point tensors of ``path`` are in.

    Raises:
        ParityError: a tensor goes beyond the range of ``half``; it is named.
    """
    samples, inputs, reference = questions(graph)
    target = compiled(graph, OnnxRuntime, path, "fp32")
    with scratch_folder("emulated") as folder:
        emulation = folder / "emulated.onnx"
        forms.emulated(path, emulation, watch=True)
        # Kept tokens may be outputs of the graph already; as a tap they have the same name either way.
        with Session(replace(target, path=emulation), "drops") as session:
            answers, reach = [], ReachRecord(tensor="", largest=0.0, limit=LARGEST_NUMBER[half], sample="")
            for sample, images in zip(samples, inputs, strict=True):
                tensors = session.tensors(images)
                answers.append(session.read(tensors))
                reach = _further(reach, tensors, f"{sample.kind}, batch {sample.batch}")
    if reach.overflows:
        raise ParityError(
            f"{graph.path.name} does not fit into {half.upper()}: {reach.tensor} reaches {reach.largest:.3g} "
            f"({reach.sample}), and {half.upper()} ends at {reach.limit:.3g}",
            hint=None if half == "bf16" else "--bf16 has the range of FP32",
        )
    return parity.compare(reference, answers, samples, precision, merges=target.merges), reach


def _further(reach: ReachRecord, tensors: Mapping[str, Array], sample: str) -> ReachRecord:
    """``reach``, or what comes nearer to the limit; where several are beyond, the one that is computed first.

    What follows from an infinite tensor is infinite or no number: the first one is the cause.
    """
    for name, value in tensors.items():
        if name.endswith(LARGEST) and not reach.overflows:
            largest = float(value)
            if not largest <= reach.largest:
                reach = reach.but(tensor=name.removesuffix(LARGEST), largest=largest, sample=sample)
    return reach
