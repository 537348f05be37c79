"""The quantised patch embedding as ONNX Runtime's integer operator: for its CPU provider.

A convolution whose stride is its kernel is a product of patches side by side. ONNX Runtime has an integer kernel for
convolutions whose output is quantised too, and computes others in floating point. Pixels are quantised before they are
moved, so that a quarter of the bytes is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lifedeploy.exporters import passes
from lifedeploy.exporters.attention import put
from lifedeploy.exporters.attention_patterns import integers_of, only_user, permutation_of, sizes_of
from lifedeploy.exporters.integer import (
    OPERATOR,
    numbers_of,
    quantize_of,
    settled,
    unsigned,
    weight_of,
    zero_of,
    zero_point,
)

_PATCHES_FIRST = (0, 2, 4, 1, 3, 5)  # (B, C, rows, height, columns, width) → (B, rows, columns, C, height, width)


@dataclass(frozen=True, kw_only=True)
class _Embedding:
    """A convolution over patches, (B, C, H, W) → (B, patches, channels)."""

    quantize: ir.Node
    weight: ir.Node
    rows: int  # of patches
    columns: int
    patch: tuple[int, int]  # (height, width) in pixels
    output: ir.Value


def fuse(model: ir.Model) -> int:
    """Put the integer operator in the place of every quantised convolution over patches; how many there were.

    Condition: INT8 on both sides with zero point 0; stride as the kernel, no padding, no groups, patches that fill the
    image; and what it gives is flattened and transposed to (B, patches, channels). What has another form stays.
    """
    fused = 0
    for node in list(model.graph):
        embedding = _match(node) if node.op_type == "Conv" else None
        if embedding is not None:
            _rewrite(model, node, embedding)
            fused += 1
    return settled(model, fused)


def _match(convolution: ir.Node) -> _Embedding | None:
    quantize, weight = quantize_of(convolution.inputs[0]), weight_of(convolution.inputs[1], axis=0, rank=4)
    flat = only_user(convolution.outputs[0], "Reshape")
    turned = only_user(flat.outputs[0], "Transpose") if flat is not None else None
    if quantize is None or weight is None or flat is None or turned is None or permutation_of(turned) != (0, 2, 1):
        return None
    stored, image = numbers_of(weight.inputs[0]), quantize.inputs[0]
    if stored is None or image is None or turned.outputs[0].is_graph_output():
        return None
    channels, depth, height, width = stored.shape
    sizes = [size for size in sizes_of(image)[1:] if isinstance(size, int)]
    if len(sizes) != 3 or not _tiles(convolution, [height, width]):
        return None
    rows, columns = sizes[1] // height, sizes[2] // width
    flattened = integers_of(flat.inputs[1])
    if sizes != [depth, rows * height, columns * width] or len(flattened) != 3:
        return None
    batch = 0 if flattened[0] == 0 else sizes_of(image)[0]
    if flattened[0] != batch or flattened[1] not in (0, channels) or flattened[2] not in (-1, rows * columns):
        return None
    return _Embedding(
        quantize=quantize,
        weight=weight,
        rows=rows,
        columns=columns,
        patch=(height, width),
        output=turned.outputs[0],
    )


def _tiles(convolution: ir.Node, patch: list[int]) -> bool:
    """Whether a convolution takes every pixel once."""
    told = {name: attribute.value for name, attribute in convolution.attributes.items()}
    group, strides, padded = told.get("group", 1), told.get("strides", (1, 1)), told.get("auto_pad", "NOTSET")
    spread = [*told.get("pads", ()), *(step - 1 for step in told.get("dilations", ()))]
    return group == 1 and list(strides) == patch and padded == "NOTSET" and not any(spread)


def _rewrite(model: ir.Model, convolution: ir.Node, embedding: _Embedding) -> None:
    scope = (convolution.name or "").rpartition("/")[0]
    pixels = unsigned(model, embedding.quantize)
    (height, width), rows, columns = embedding.patch, embedding.rows, embedding.columns
    stored, scale = numbers_of(embedding.weight.inputs[0]), embedding.weight.inputs[1]
    assert stored is not None  # matched as a constant
    grid = np.array([0, stored.shape[1], rows, height, columns, width], dtype=np.int64)
    listed = np.array([0, rows * columns, -1], dtype=np.int64)
    apart = ir.node("Reshape", [pixels, passes.constant(model, f"{scope}/grid", grid)], name=f"{scope}/Reshape_grid")
    turned = ir.node("Transpose", apart.outputs, {"perm": _PATCHES_FIRST}, name=f"{scope}/Transpose_grid")
    patches = ir.node(
        "Reshape",
        [turned.outputs[0], passes.constant(model, f"{scope}/listed", listed)],
        name=f"{scope}/Reshape_listed",
    )
    matrix = passes.constant(
        model, f"{convolution.name}/matrix", np.ascontiguousarray(stored.reshape(len(stored), -1).T)
    )
    product = ir.node(
        OPERATOR[1],
        [
            patches.outputs[0],
            matrix,
            embedding.quantize.inputs[1],
            scale,
            zero_point(model),
            zero_of(model, matrix),
            *([] if len(convolution.inputs) < 3 else [convolution.inputs[2]]),
        ],
        domain=OPERATOR[0],
        name=convolution.name,
    )
    for node in (apart, turned, patches):
        node.outputs[0].dtype = ir.DataType.UINT8
    put(model, [apart, turned, patches, product], before=convolution, output=embedding.output)
