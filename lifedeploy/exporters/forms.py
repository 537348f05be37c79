"""From the exported graph to the form that a runtime compiles best."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from lifedeploy.errors import ExportError, UsageError
from lifedeploy.exporters import attention, emulation, integer, integer_attention, integer_embedding, passes, precision
from lifedeploy.exporters.attention_patterns import has_queries
from lifedeploy.exporters.inspect import load
from lifedeploy.exporters.ranking import is_inside
from lifedeploy.records import FormedRecord, FormRecord
from lifedeploy.spec import ATTENTIONS, GraphForm
from lifedeploy.writing import saving

_FUSE = {"operator": attention.fuse, "contrib": attention.fuse_contrib}


def prepare(source: Path, form: GraphForm, destination: Path) -> FormedRecord:
    """Write ``source``, an FP32 graph, as ``destination`` in another form.

    Raises:
        UsageError: there is no such form.
        ArtifactError, ExportError: the graph is damaged, or cannot take that form.
    """
    if form.attention not in ATTENTIONS:
        raise UsageError(f"attention as {form.attention!r} is unknown; there are: {', '.join(ATTENTIONS)}")
    model = ir.from_proto(load(source))
    attentions, done = 0, precision.Conversion({}, 0, 0)
    if form.with_order:
        model.graph.outputs.extend(value for value in passes.kept_tokens(model) if not value.is_graph_output())
    if form.integer != "none":
        integer.fuse(model)  # before attention: what is split there has its bias then
        integer_embedding.fuse(model)
        integer_attention.fuse(model, signed=form.integer == "signed")
    if form.attention in _FUSE:
        attentions = _FUSE[form.attention](model, form.least_queries)
        others = [node for node in model.graph if node.op_type == "Softmax" and not is_inside(node)]
        left = [node for node in others if has_queries(node, form.least_queries)]
        if (left or not attentions) and form.integer == "none":
            quantized = bool(left) and all(integer_attention.is_quantized(node) for node in left)
            why = "are quantised" if quantized else "have a form that is not known"
            ways = [f"--attention {other}" for other in ATTENTIONS if other != form.attention]
            raise ExportError(
                f"{len(left)} of {len(left) + attentions} attentions in {source} {why}, so they cannot become "
                f"{form.attention!r}",
                hint="; ".join([*(["calibrate without --parts attention"] if quantized else []), *ways]),
            )
    if form.integer != "none":
        integer.take_apart(model)
    if form.precision != "fp32":
        if form.precision == "bf16":
            # For convolutions. FP16 does without: kernels of later operator versions came late to ONNX Runtime's CUDA
            # provider (https://github.com/microsoft/onnxruntime/issues/26065).
            attention.raise_opset(model)
        done = precision.to_half(model, form.precision)
        precision.require_half(model, form.precision)
    with saving(destination):
        ir.save(model, destination)
    load(destination)  # checks it
    return FormedRecord(
        form=FormRecord(**asdict(form)),
        opset=model.graph.opset_imports[""],
        attentions=attentions,
        casts=done.casts,
        islands=done.islands,
        subnormal=done.subnormal,
    )


def emulated(source: Path, destination: Path, *, watch: bool = False) -> None:
    """Write a half-precision graph as the FP32 graph that computes the same; see :func:`emulation.emulate`."""
    model = ir.from_proto(load(source))
    emulation.emulate(model, watch=watch)
    with saving(destination):
        ir.save(model, destination)
