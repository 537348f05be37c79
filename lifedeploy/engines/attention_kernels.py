"""Which kernel computed each attention on ONNX Runtime's CUDA provider, in its own words.

With ``ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1`` its attention operators say so on standard output, at every run. That
is printed by C++, so a process of its own infers once and what it prints is read (``AttentionKernelDebugInfo::Print``
in https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cuda/bert/attention_kernel_options.cc).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifedeploy import children, graphs
from lifedeploy.engines.attention_nodes import AttentionNode, attention_nodes
from lifedeploy.engines.lanes import buffers
from lifedeploy.engines.onnxruntime import new_session, require_provider, specs_of
from lifedeploy.errors import EngineError
from lifedeploy.optional import require
from lifedeploy.records import FusionRecord
from lifedeploy.text import without_colours

VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
UNFUSED = "MATH"  # what ONNX Runtime calls MatMul, Softmax, MatMul
TIMEOUT_S = 120.0
# Flash attention takes no bias; cuDNN's, preferred from SM 90 on, takes any; memory-efficient attention takes one over
# multiples of so many keys (https://github.com/microsoft/onnxruntime/pull/27831), of the other operator one with
# multiples of so many queries (`sequence_length` in
# https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/contrib_ops/cuda/bert/multihead_attention.cc).
# A single query is otherwise computed as any number of them: kernels that are for decoding ask for past keys too.
# ONNX's Attention told nothing at first (https://github.com/microsoft/onnxruntime/issues/29714).
ALIGNED = {"Attention": 4, "MultiHeadAttention": 8}
_TOLD = re.compile(r"Operator=(?P<operator>\S+)(?: Node=(?P<node>.*?))? DataType=(?P<type>\S+)(?P<rest>[^\r\n]*)")
_NAMED = re.compile(r"\bSdpaKernel=(\w+)")  # since ONNX Runtime 1.20
_FLAGGED = re.compile(r"\b([A-Z]\w*)=1\b")  # before


def parse(text: str) -> dict[str, str]:
    """Node → kernel, from what ONNX Runtime printed; the last word counts where a node ran more than once.

    A node without a name is known by its place. A kernel that is named in neither of the two ways is left out.
    """
    kernels: dict[str, str] = {}
    for number, told in enumerate(_TOLD.finditer(without_colours(text))):
        rest = told["rest"]
        named, flagged = _NAMED.search(rest), _FLAGGED.findall(rest)
        # Earlier versions list what is on, and nothing where that is none of the fused kernels.
        kernel = named[1] if named else next(iter(flagged), "" if rest.strip() else UNFUSED)
        if kernel:
            kernels[told["node"] or f"#{number} {told['operator']}"] = kernel
    return kernels


def report(
    nodes: Sequence[AttentionNode], layers: int, topk: int, told: Mapping[str, str], silence: str
) -> FusionRecord:
    """What the nodes of a graph were computed by.

    Args:
        nodes: attentions in the graph that are one operator.
        layers: attentions in the model.
        topk: sorts in the graph.
        told: node → kernel.
        silence: why nothing may have been told.
    """
    operators = len(nodes)
    kernels = dict(Counter(told.values()).most_common())
    fused: int | None = sum(number for kernel, number in kernels.items() if kernel != UNFUSED)
    unfused = {node.layer: _why(node) for node in nodes if told.get(node.name) == UNFUSED}
    notes = [f"{kernels[UNFUSED]} of {layers} attentions are not fused by ONNX Runtime"] if UNFUSED in kernels else []
    biased = [node.layer for node in nodes if node.layer in unfused and node.half and node.bias is not None]
    if biased:
        notes.append(f"for their bias on keys: {', '.join(biased)}")
    if not operators:
        notes.append("attention is MatMul, Softmax, MatMul in this graph")
    elif operators < layers:
        notes.append(f"{layers - operators} of {layers} attentions are MatMul, Softmax, MatMul in this graph")
    # What is told of others, whatever they are, says nothing of these; those without a name are known by their number.
    known = sum(node.name in told for node in nodes) + sum(name.startswith("#") for name in told)
    if known < operators:
        fused = None
        notes.append(f"{known} of {operators} attention kernels are known: {silence}")
    return FusionRecord(
        attention=fused,
        of=layers,
        topk=topk,
        kernels=kernels,
        unfused=unfused,
        note="; ".join(notes),
        source="onnxruntime",
    )


def has_unfused(fusion: FusionRecord) -> bool:
    """Whether some attention is known to be computed in several kernels, though not all of them may be known."""
    return UNFUSED in fusion.kernels or (fusion.attention is not None and fusion.attention < (fusion.of or 0))


def _why(node: AttentionNode) -> str:
    """Why an attention is in several kernels."""
    if not node.half:
        return "FP32 has no fused kernel for so few tokens"
    if node.bias is None:
        return "no fused kernel was taken"
    step = ALIGNED[node.operator]
    rows = node.queries if node.operator == "MultiHeadAttention" else 0
    if (rows or node.bias) % step:
        sizes = f"with multiples of {step} queries, and here are {rows}" if rows else f"over multiples of {step} keys"
        return f"{node.shape}: memory-efficient attention takes one {sizes}, flash attention none"
    return f"{node.shape}: flash attention takes none"


def read_back(graph: Path, provider: str, layers: int) -> FusionRecord:
    """Infer once in a process of its own and report which kernels ran. Nothing that fails there ends the build.

    Args:
        graph: an ONNX file that ``provider`` runs.
        provider: ONNX Runtime's name of it.
        layers: attentions in the model.
    """
    model = graphs.read(graph)
    operators = [node for node in attention_nodes(model) if node.is_operator]
    topk = sum(node.op_type == "TopK" for node in model.graph.node)
    if not operators:
        return report((), layers, topk, {}, "")
    try:
        told, silence = parse(_listen(graph, provider)), "this onnxruntime does not tell"
    except EngineError as error:
        told, silence = {}, error.message
    return report(operators, layers, topk, told, silence)


def _listen(graph: Path, provider: str) -> str:
    """What one inference prints.

    Raises:
        EngineError: it failed.
    """
    program = children.command(__name__, str(graph), provider)
    what = f"one inference of {graph.name} in a process of its own"
    return children.run(program, what, more={VARIABLE: "1"}, timeout_s=TIMEOUT_S)


def _child(graph: str, provider: str) -> None:
    """One inference of zeros, at batch 1 where the batch is free."""
    ort: Any = require("onnxruntime", extra="gpu")
    if provider == "CUDAExecutionProvider":
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    session = new_session(ort, Path(graph), options, [provider])
    require_provider(session, provider)
    session.run(None, buffers(specs_of(session.get_inputs()), 1))


if __name__ == "__main__":
    _child(*sys.argv[1:])
