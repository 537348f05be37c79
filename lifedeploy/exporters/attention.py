"""Attention as one operator: MatMul → Softmax → MatMul turned into ONNX's ``Attention`` (opset 23).

TensorRT recommends the operator as the form that is sure to be fused; ONNX Runtime and OpenVINO fuse the three.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lifedeploy.exporters import passes

OPSET = 23  # the first with Attention, and with BF16 in every operator of a ViT (Conv: 22)


def raise_opset(model: ir.Model, opset: int = OPSET) -> None:
    """Declare ``opset``, if the graph's is lower.

    From 20 to 23 the operators of a ViT only gained types, so no node changes
    (https://github.com/onnx/onnx/blob/main/docs/Changelog.md).
    """
    model.graph.opset_imports[""] = max(opset, model.graph.opset_imports.get("", 0))


@dataclass(frozen=True)
class _Attention:
    """The values around one attention of heads: (B, H, N, D) each."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    output: ir.Value


def fuse(model: ir.Model) -> int:
    """Put an ``Attention`` node in the place of every unmasked MatMul → Softmax → MatMul; how many there were.

    Condition: the scale is a constant that multiplies the query, the key is transposed in front of the product, and
    neither product is used elsewhere. What has another form stays as it is.
    """
    fused = 0
    for softmax in list(model.graph):
        found = _match(softmax) if softmax.op_type == "Softmax" else None
        if found is None:
            continue
        node = ir.node(
            "Attention",
            [found.query, found.key, found.value],
            {"scale": found.scale},
            name=f"{(softmax.name or '').rpartition('/')[0]}/Attention",
        )
        node.outputs[0].type, node.outputs[0].shape = found.output.type, found.output.shape
        name = found.output.name
        model.graph.insert_before(softmax, node)
        ir.convenience.replace_all_uses_with(found.output, node.outputs[0])
        found.output.name, node.outputs[0].name = None, name
        fused += 1
    if fused:
        raise_opset(model)
        passes.clean(model)
    return fused


def _match(softmax: ir.Node) -> _Attention | None:
    scores = _made_by(softmax.inputs[0], "MatMul")
    after = list(softmax.outputs[0].uses())
    last = after[0].node if len(after) == 1 and after[0].node.op_type == "MatMul" and after[0].idx == 0 else None
    if scores is None or last is None or len(scores.outputs[0].uses()) != 1 or not _over_last_axis(softmax):
        return None
    scaled, turned = _made_by(scores.inputs[0], "Mul"), _made_by(scores.inputs[1], "Transpose")
    if scaled is None or turned is None or _permutation(turned) != (0, 1, 3, 2):
        return None
    query, factor = scaled.inputs
    key, value = turned.inputs[0], last.inputs[1]
    constant = factor.const_value if factor is not None else None
    if query is None or key is None or value is None or constant is None or constant.size != 1:
        return None
    return _Attention(query, key, value, float(constant.numpy().item()), last.outputs[0])


def _made_by(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 3)


def _permutation(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes["perm"].as_ints())
