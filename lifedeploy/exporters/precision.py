"""Precision in the graph: an FP32 model turned into an FP16 or BF16 one with FP32 inputs and outputs.

TensorRT 11 takes the precision of every tensor from the graph, and ONNX Runtime's CUDA provider always did, so this is
where an engine's precision is decided. Everything is in half precision but what :data:`ISLANDS` declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lifedeploy.errors import ExportError
from lifedeploy.exporters import passes
from lifedeploy.exporters.attention import is_contrib, is_core, is_operator
from lifedeploy.exporters.ranking import ranking

HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LARGEST_NUMBER = {name: float(ml_dtypes.finfo(dtype).max) for name, dtype in _NUMPY.items()}
_FLOAT = ir.DataType.FLOAT
_UNSUPPORTED = ("Resize", "Upsample", "If", "Loop", "Scan", "RandomNormal", "RandomUniform")


@dataclass(frozen=True)
class Island:
    """Nodes that stay in FP32; ``nodes`` finds them in a graph."""

    name: str
    nodes: Callable[[ir.Model], set[ir.Node]]


# Logits in FP32 were tried too, and the predictor's LayerNormalization: kept tokens and classes were the same
# (benchmarks/precision/RESULTS.md). Nothing is declared here that was not seen to matter.
# Scores that differ by less than half precision can tell decide which token is kept, and ONNX has no TopK in BF16
# before opset 24.
RANKING = Island("ranking", ranking)
ISLANDS = (RANKING,)


@dataclass(frozen=True)
class Conversion:
    """What was done to a graph."""

    islands: dict[str, tuple[str, ...]]  # name → operators in it
    casts: int
    subnormal: int  # weights other than 0 that became 0


def to_half(model: ir.Model, precision: str, islands: Sequence[Island] = ISLANDS) -> Conversion:
    """Turn a graph's FP32 arithmetic into ``precision``, in place; inputs and outputs stay what they are.

    Args:
        model: all of its floating-point tensors are FP32.
        precision: ``fp16`` or ``bf16``.
        islands: what stays in FP32.

    Raises:
        ExportError: the graph is in mixed precision already, has operators that this does not know how to convert,
            or holds a weight that ``precision`` cannot.
    """
    if precision not in HALF:
        raise ExportError(f"a graph cannot be turned into {precision}; there are: {', '.join(HALF)}")
    kept = {island.name: island.nodes(model) for island in islands}
    conversion = _Converter(model, precision, set().union(*kept.values()))
    conversion.run()
    passes.clean(model)
    names = {name: tuple(sorted({node.op_type for node in nodes})) for name, nodes in kept.items() if nodes}
    return Conversion(names, conversion.casts, conversion.subnormal)


def require_half(model: ir.Model, precision: str, islands: Sequence[Island] = ISLANDS) -> None:
    """Make sure that a converted graph is in ``precision``, but for its inputs, outputs and ``islands``.

    Raises:
        ExportError: an FP32 tensor that no island declares, a Cast of a Cast, or a Cast at an attention's softmax.
    """
    kept = set[ir.Node]().union(*(island.nodes(model) for island in islands))
    outputs = set(model.graph.outputs)
    for node in model.graph:
        if node.op_type == "Cast":
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            # What goes through integers or booleans is made of numbers: those are other numbers.
            if source is not None and source.op_type == "Cast" and _is_float(source.inputs[0], source.outputs[0]):
                raise ExportError(f"{node.name} casts what {source.name} cast")
            behind = source is not None and (source.op_type == "Softmax" or is_operator(source))
            if behind or any(is_core(use.node, use.idx) for use in node.outputs[0].uses()):
                raise ExportError(f"{node.name} casts inside an attention: no runtime will fuse it")
            continue
        for value in node.outputs:
            if value.dtype == _FLOAT and node not in kept and value not in outputs:
                raise ExportError(f"{value.name} is FP32 in an {precision.upper()} graph, and no island declares it")


class _Converter:
    """One walk over the nodes in order. ``self.made`` holds every value in every type that somebody asked for."""

    def __init__(self, model: ir.Model, precision: str, kept: set[ir.Node]) -> None:
        self.model, self.precision, self.kept = model, precision, kept
        self.half = HALF[precision]
        self.converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.was_float = {value for value in passes.values(model) if value.dtype == _FLOAT}
        self.casts = self.subnormal = 0

    def run(self) -> None:
        self._require_convertible()
        for node in list(self.model.graph):
            want = _FLOAT if node in self.kept else self.half
            for index, value in enumerate(node.inputs):
                if value is not None and value in self.was_float:
                    node.replace_input_with(index, self._as(value, want, node))
            self._set_type(node, want)
            for value in node.outputs:
                if value in self.was_float:
                    value.dtype = want
        self._restore_outputs()

    def _require_convertible(self) -> None:
        for value in passes.values(self.model):
            if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
                raise ExportError(f"{value.name} is {value.dtype.name} already: only an FP32 graph can be converted")
        for node in self.model.graph:
            known = node.domain in ("", "ai.onnx") or is_contrib(node)  # which takes all its tensors in one type
            if node.op_type in _UNSUPPORTED or not known:
                raise ExportError(
                    f"{node.name} is a {node.domain}::{node.op_type}, and how it is converted is not known",
                    hint="export the model with lifedeploy, or build from FP32",
                )

    def _as(self, value: ir.Value, want: ir.DataType, before: ir.Node) -> ir.Value:
        """``value`` in the type ``want``: itself, a converted weight, or the output of a Cast in front of a node."""
        if value.dtype == want and value.const_value is None:
            return value
        key = (value, want)
        if key not in self.converted:
            self.converted[key] = (
                self._weight(value, want) if value.const_value is not None else self._cast(value, want, before)
            )
        return self.converted[key]

    def _weight(self, value: ir.Value, want: ir.DataType) -> ir.Value:
        if want == _FLOAT:
            return value
        assert value.const_value is not None  # asked before
        full = value.const_value.numpy()
        largest = float(np.abs(full).max(initial=0))
        if not largest <= LARGEST_NUMBER[self.precision]:
            raise ExportError(
                f"{value.name} holds {largest:.3g}, and {self.precision.upper()} ends at "
                f"{LARGEST_NUMBER[self.precision]:.3g}",
                hint="--bf16 has the range of FP32",
            )
        half = full.astype(_NUMPY[self.precision])
        self.subnormal += int(((half == 0) & (full != 0)).sum())
        return passes.constant(self.model, f"{value.name}_{self.precision}", half)

    def _cast(self, value: ir.Value, want: ir.DataType, before: ir.Node) -> ir.Value:
        label = "fp32" if want == _FLOAT else self.precision
        node = ir.node("Cast", [value], {"to": int(want)}, name=f"{value.name}/Cast_{label}")
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}_{label}", want
        self.model.graph.insert_before(before, node)
        self.casts += 1
        return node.outputs[0]

    def _set_type(self, node: ir.Node, want: ir.DataType) -> None:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == int(_FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(want))
        if node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0] in self.was_float:
            raise ExportError(f"{node.name} is a {node.op_type} in FP32, expected an initializer")

    def _restore_outputs(self) -> None:
        """Give every FP32 output its type and its name back."""
        graph = self.model.graph
        for index, value in enumerate(graph.outputs):
            if value not in self.was_float or value.dtype == _FLOAT:
                continue
            name = value.name
            value.name = f"{name}_{self.precision}"
            node = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{name}/Cast_fp32")
            restored = node.outputs[0]
            restored.name, restored.dtype, restored.shape = name, _FLOAT, value.shape
            graph.append(node)
            graph.outputs[index] = restored
            self.casts += 1


def _is_float(*values: ir.Value | None) -> bool:
    return all(value is not None and value.dtype in (_FLOAT, *HALF.values()) for value in values)
