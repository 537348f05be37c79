"""Probabilities divided by the largest of their row, so that 8 bits have levels for them.

A row of softmax sums to 1: where a token attends to 196 others alike, each probability is a 196th, and in steps of
1/127, one scale for all rows, next to nothing is left of it. Divided by its largest, every row ends at 1: a known end,
so that no images are needed to find the scale. The product is multiplied by the largest afterwards, which changes it by
rounding only. SageAttention quantises the same numbers, exp(S - max S), which ends at 1 in every row (J. Zhang et al.,
https://arxiv.org/abs/2410.02367); here they are said with a Softmax, which runtimes have a kernel for.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lifedeploy.exporters import passes
from lifedeploy.exporters.attention_patterns import only_user, producer

LARGEST = 1.0  # of every row, once it is divided


def level(model: ir.Model, product: ir.Node) -> bool:
    """Divide the probabilities that ``product`` is of by the largest of each row, and multiply its output by that.

    Condition: its first factor comes from a Softmax, and its output is none of the graph's. Whether that was so.
    """
    softmax, output = producer(product.inputs[0], "Softmax"), product.outputs[0]
    if softmax is None or output.is_graph_output():
        return False
    probabilities = softmax.outputs[0]
    last = passes.constant(model, "int_m1", np.array([-1], dtype=np.int64))
    largest = ir.node("ReduceMax", [probabilities, last], {"keepdims": 1}, name=f"{product.name}/ReduceMax")
    levelled = ir.node("Div", [probabilities, largest.outputs[0]], name=f"{product.name}/Div")
    restored = ir.node("Mul", [output, largest.outputs[0]], name=f"{product.name}/Mul")
    for node, like in ((largest, probabilities), (levelled, probabilities), (restored, output)):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_output_0", like.type
    levelled.outputs[0].shape, restored.outputs[0].shape = probabilities.shape, output.shape
    ir.convenience.replace_all_uses_with(output, restored.outputs[0])
    restored.replace_input_with(0, output)
    product.replace_input_with(0, levelled.outputs[0])
    model.graph.insert_before(product, [largest, levelled])
    model.graph.insert_after(product, [restored])
    return True


def unlevel(product: ir.Node) -> None:
    """Undo :func:`level`, where it was done; what nothing uses any more stays in the graph."""
    levelled = product.inputs[0]
    restored = restored_of(product, levelled)
    if restored is not None and levelled is not None:
        ir.convenience.replace_all_uses_with(restored, product.outputs[0])
        divided = levelled.producer()
        assert divided is not None  # a restored product is of a Div
        product.replace_input_with(0, divided.inputs[0])


def is_levelled(value: ir.Value | None) -> bool:
    """Whether a value is what :func:`level` divides."""
    return _largest_of(value) is not None


def restored_of(product: ir.Node, levelled: ir.Value | None) -> ir.Value | None:
    """What becomes of a ``product`` of ``levelled`` probabilities when the largest of their rows multiplies it; None
    where they are not levelled, or it is used without."""
    largest = _largest_of(levelled)
    restored = only_user(product.outputs[0], "Mul")
    return restored.outputs[0] if largest is not None and restored is not None and largest in restored.inputs else None


def _largest_of(levelled: ir.Value | None) -> ir.Value | None:
    divided = producer(levelled, "Div")
    largest = producer(divided.inputs[1], "ReduceMax") if divided is not None else None
    if divided is None or largest is None or largest.inputs[0] is not divided.inputs[0]:
        return None
    return largest.outputs[0] if producer(divided.inputs[0], "Softmax") is not None else None
