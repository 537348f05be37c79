"""Graph edits on an exported model: small passes, each with the condition under which it acts.

All work in place on an :class:`onnx_ir.Model`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from lifedeploy.errors import ExportError
from lifedeploy.kept import is_kept_name
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME

_SCOPES = "pkg.torch.onnx.name_scopes"
_ORDER = re.compile(r"(^|\.)reducer\.order\.(\d+)$")
_KEEP = re.compile(r"(^|\.)reducer\.keep\.(\d+)$")


def clean(model: ir.Model) -> None:
    """Drop what nothing uses any more, then infer all shapes anew; what ONNX knows no shapes of keeps those it has.

    What the graph may be asked for by name stays (:func:`is_asked_for`), whether anything uses it or not.
    """
    outputs = list(model.graph.outputs)
    asked_for = [value for value in _node_outputs(model) if is_asked_for(value) and not value.is_graph_output()]
    model.graph.outputs.extend(asked_for)
    common.RemoveUnusedNodesPass()(model)
    model.graph.outputs[:] = outputs  # after a `del`, onnx_ir would take them for outputs still, and save no types
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    common.ShapeInferencePass()(model)


def constant(model: ir.Model, name: str, numbers: NDArray[Any]) -> ir.Value:
    """An initializer of a graph: the one that holds the same ``numbers`` under that name already, or a new one.

    Raises:
        ExportError: there is one of that name with another value or type.
    """
    tensor = ir.tensor(numbers, name=name)
    known = model.graph.initializers.get(name)
    if known is not None:
        held = known.const_value
        if held is None or held.dtype != tensor.dtype or not np.array_equal(held.numpy(), numbers):
            raise ExportError(f"{name} is a constant of this graph already, with another value")
        return known
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def integers(model: ir.Model, *numbers: int) -> ir.Value:
    """A list of integers as an initializer of a graph, called as :func:`read_well` calls them."""
    return constant(model, f"int_{_in_a_name(numbers)}", np.array(numbers, dtype=np.int64))


def is_asked_for(value: ir.Value) -> bool:
    """Whether a tensor has a name that engines tap it by: kept tokens, scores, groups."""
    return value.name in (SCORES_NAME, GROUPS_NAME) or is_kept_name(value.name)


def _node_outputs(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]


def values(model: ir.Model) -> list[ir.Value]:
    """All tensors of a graph: inputs, weights, and what nodes give."""
    return [*model.graph.inputs, *model.graph.initializers.values(), *_node_outputs(model)]


def forget_names(model: ir.Model) -> None:
    """Take the names that engines tap tensors by from a graph that has nothing behind them any more."""
    for value in _node_outputs(model):
        if is_asked_for(value):
            value.name = f"{value.name}_of_another_method"


def kept_tokens(model: ir.Model) -> list[ir.Value]:
    """The tensors of kept tokens, first drop first."""
    return [value for value in _node_outputs(model) if is_kept_name(value.name)]


def scope_of(node: ir.Node) -> str:
    """The module path that a node was traced in, e.g. ``model.backbone.blocks.0.attn.qkv``."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2] if len(scopes) > 1 else ""


def relative_reshapes(model: ir.Model) -> None:
    """Say Reshapes relative to their input: 0 where a leading size is kept, -1 for the one size left unknown.

    Condition: shapes on both sides are known, and at most one size beyond the kept ones is not a number. That frees
    the graph of the arithmetic on the batch size, and an attention block of its token count, which is what lets
    :func:`without_drops` make the baseline out of the very same nodes.
    """
    for node in list(model.graph):
        if node.op_type != "Reshape":
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None:
            continue
        kept = 0
        while kept < min(len(source.shape), len(result.shape)) and source.shape[kept] == result.shape[kept]:
            kept += 1
        kept = min(kept, len(result.shape) - 1)
        rest = [size if isinstance(size, int) else -1 for size in list(result.shape)[kept:]]
        if rest.count(-1) > 1:
            continue
        shape = np.array([0] * kept + rest, dtype=np.int64)
        node.replace_input_with(1, constant(model, f"{result.name}_shape", shape))
        node.attributes.pop("allowzero", None)


def without_drops(model: ir.Model, *, slices: dict[int, int] | None = None) -> None:
    """Take the token drops of a graph that orders once out again, and with them the scoring.

    With ``slices`` (drop layer → tokens to keep, prefix included) an ordering is replaced by a Slice of that many
    tokens instead; slices stay. What is left is the baseline's, or the bound's graph, node for node: the baseline
    differs from the slimmed model in nothing but the drops.

    Raises:
        ExportError: an ordering is not of the form that ``TakeOrdered`` exports to.
    """
    for node in list(model.graph):
        scope = scope_of(node)
        order, keep = _ORDER.search(scope), _KEEP.search(scope)
        if order and node.op_type == "Gather":
            tokens, ordered = around_gather(node)
            layer = int(order.group(2))
            replacement = tokens if slices is None else _prefix_slice(model, node, tokens, slices[layer])
        elif keep and node.op_type == "Slice" and slices is None:
            before, ordered = node.inputs[0], node.outputs[0]
            assert before is not None  # a Slice has its data
            replacement = before
        else:
            continue
        ir.convenience.replace_all_uses_with(ordered, replacement)


def around_gather(gather: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The token tensors before and after a flat Gather: Reshape → Gather → Reshape."""
    data = gather.inputs[0]
    before = data.producer() if data is not None else None
    after = [use.node for use in gather.outputs[0].uses()]
    tokens = before.inputs[0] if before is not None and before.op_type == "Reshape" else None
    if tokens is None or len(after) != 1 or after[0].op_type != "Reshape":
        raise ExportError(f"{gather.name} is not the flat Gather between two Reshapes that was expected")
    return tokens, after[0].outputs[0]


def _prefix_slice(model: ir.Model, before: ir.Node, tokens: ir.Value, kept: int) -> ir.Value:
    """Insert ``tokens[:, :kept]`` in front of ``before``."""
    constants = [
        constant(model, f"{before.name}_{label}", np.array([number], dtype=np.int64))
        for label, number in (("start", 0), ("end", kept), ("axis", 1))
    ]
    node = ir.node("Slice", [tokens, *constants], metadata_props=dict(before.metadata_props))
    model.graph.insert_before(before, node)
    return node.outputs[0]


def keep_outputs(model: ir.Model, names: tuple[str, ...]) -> None:
    """Keep only these graph outputs."""
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in names]


def read_well(model: ir.Model) -> None:
    """Name nodes and values after the modules they come from, and drop the exporter's traces of this machine.

    ``blocks.0.attn.qkv/MatMul`` gives ``blocks.0.attn.qkv/MatMul_output_0``; weights keep the model's own names.
    """
    taken: Counter[str] = Counter()
    fixed = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    fixed |= {value.name for value in _node_outputs(model) if is_asked_for(value)}
    for node in model.graph:
        base = f"{_short(scope_of(node))}/{node.op_type}".lstrip("/")
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base] - 1}"
        for index, value in enumerate(node.outputs):
            if value.name not in fixed:
                value.name = f"{node.name}_output_{index}"
    for value in list(model.graph.initializers.values()):
        users = value.uses()
        if not users or value.name is None:
            continue
        if value.name.startswith("model."):
            value.name = _short(value.name)
            continue
        user, index = next(iter(users))
        name = _constant_name(value) or _weight_name(value, user) or f"{user.name}_input_{index}"
        twin = model.graph.initializers.get(name)
        if twin is None:
            value.name = name
        else:  # the name says the value, so they are equal
            ir.convenience.replace_all_uses_with(value, twin)
            del model.graph.initializers[value.name]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in values(model):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def _short(name: str) -> str:
    """Module path without the wrappers: ``model.backbone.norm`` → ``norm``."""
    if name in ("", "model") or name.startswith("_empty_nn_module_stack"):
        return "tokens"
    return re.sub(r"^(model\.)?(backbone\.)?", "", name)


def _weight_name(value: ir.Value, user: ir.Node) -> str:
    """``blocks.0.attn.qkv.weight_t`` for a Linear's weight, which the exporter has transposed."""
    linear = user.op_type == "MatMul" and user.inputs[1] is value and value.shape is not None and len(value.shape) == 2
    return f"{(user.name or '').rpartition('/')[0]}.weight_t" if linear else ""


def _constant_name(value: ir.Value) -> str:
    """A name that says the value, for the small integer constants that shapes, axes and bounds are."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > 8 or tensor.shape.rank() > 1:
        return ""
    numbers = _in_a_name(tensor.numpy().ravel().tolist())
    return f"int_{numbers}" if tensor.shape.rank() else f"int_scalar_{numbers}"


def _in_a_name(numbers: Iterable[int]) -> str:
    return "_".join(str(number).replace("-", "m") for number in numbers)
