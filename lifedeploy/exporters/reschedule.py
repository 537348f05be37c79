"""Another schedule in a graph that was exported. Where tokens are ordered once, a schedule is a few constants and a
Slice for each later drop: no weight is made or traced for it, and a quantised graph stays as it was calibrated.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from lifedeploy.errors import ExportError
from lifedeploy.exporters import passes
from lifedeploy.exporters.inspect import load
from lifedeploy.kept import kept_name, of_reducer
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec
from lifedeploy.writing import saving

_BLOCK = re.compile(r"blocks\.(\d+)[./]")
_ORDER = re.compile(r"reducer\.order\.\d+(?=/)")
_KEEP = re.compile(r"reducer\.keep\.\d+/")


class Reschedulable:
    """An exported or calibrated graph, of which graphs under other schedules are made.

    Args:
        path: the ONNX file.
        spec: of the model in it.

    Raises:
        ArtifactError: it is damaged.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self.path, self.spec = path, spec
        self._model = ir.from_proto(load(path))

    def shortened(self, tokens: int, destination: Path) -> None:
        """Write the graph with only the first ``tokens`` patch tokens, from the first layer on; of a baseline.

        Raises:
            ExportError: its blocks cannot be told apart.
            OSError: it cannot be written.
        """
        model = self._model.clone()
        if tokens < self.spec.schedule.patches:
            entering = _entering(model, 1)
            _lead(model, 1, _sliced(model, entering, self.spec.prefix_tokens + tokens, "tokens/Slice"))
        _save(model, destination)

    def rescheduled(self, schedule: Schedule, destination: Path) -> None:
        """Write the graph under another ``schedule``; of a method that orders once, exported in that form.

        Raises:
            ExportError: its blocks or its ordering cannot be told apart.
            OSError: it cannot be written.
        """
        model, base, prefix = self._model.clone(), schedule.base_layer, self.spec.prefix_tokens
        leaving = {layer: _leaving(model, layer) for layer in range(1, schedule.depth)}
        for layer, value in leaving.items():
            _lead(model, layer + 1, value)  # every token goes on everywhere
        ordered = _move_ordering(model, leaving[base], prefix + schedule.after(base), prefix, kept_name(base))
        for layer in schedule.drop_layers:
            if layer == base:
                _lead(model, layer + 1, ordered)
            elif layer in schedule.leaving_layers:
                name = f"reducer.keep.{layer}/Slice"
                _lead(model, layer + 1, _sliced(model, leaving[layer], prefix + schedule.after(layer), name))
        for node in model.graph:
            node.name = _ORDER.sub(f"reducer.order.{base}", node.name or "")
        _save(model, destination)


def _save(model: ir.Model, destination: Path) -> None:
    model.graph.sort()
    passes.clean(model)
    with saving(destination):
        ir.save(model, destination)


def _layer_of(node: ir.Node | None) -> int | None:
    """The layer whose block a node was traced in; None: in none."""
    match = _BLOCK.match(node.name or "") if node is not None else None
    return int(match[1]) + 1 if match else None


def _is_tokens(value: ir.Value | None) -> bool:
    """Whether a tensor may be tokens: floats that an image has an influence on."""
    return value is not None and value.producer() is not None and value.dtype == ir.DataType.FLOAT


def _entering(model: ir.Model, layer: int) -> ir.Value:
    """The tokens that enter the block of a layer.

    Raises:
        ExportError: it cannot be told which they are.
    """
    nodes = [node for node in model.graph if _layer_of(node) == layer]
    taken = {value for node in nodes for value in node.inputs if _is_tokens(value)}
    return _only([value for value in taken if value and _layer_of(value.producer()) != layer], "enter", layer)


def _leaving(model: ir.Model, layer: int) -> ir.Value:
    """The tokens that leave it.

    Raises:
        ExportError: it cannot be told which they are.
    """
    outputs = [value for node in model.graph if _layer_of(node) == layer for value in node.outputs]
    return _only(
        [value for value in outputs if any(_layer_of(use.node) != layer for use in value.uses())], "leave", layer
    )


def _only(values: list[ir.Value], verb: str, layer: int) -> ir.Value:
    if len(values) != 1:
        raise ExportError(f"{len(values)} tensors {verb} the block of layer {layer}, where one was expected")
    return values[0]


def _lead(model: ir.Model, layer: int, tokens: ir.Value) -> None:
    """Have ``tokens`` enter the block of a layer, in the place of what did."""
    before = _entering(model, layer)
    for use in tuple(before.uses()):
        if _layer_of(use.node) == layer:
            use.node.replace_input_with(use.idx, tokens)


def _sliced(model: ir.Model, tokens: ir.Value, length: int, name: str) -> ir.Value:
    """``tokens[:, :length]``, as a node called ``name``."""
    numbers = (0, length, 1, 1)  # start, end, axis, step
    constants = [passes.integers(model, number) for number in numbers]
    node = ir.node("Slice", [tokens, *constants], name=name)
    node.outputs[0].name = f"{name}_output_0"
    node.outputs[0].type = tokens.type
    model.graph.append(node)
    return node.outputs[0]


def _move_ordering(model: ir.Model, tokens: ir.Value, length: int, prefix: int, kept: str) -> ir.Value:
    """Order other ``tokens``, and take ``length`` of them, ``prefix`` ones first; the ordered tokens.

    Raises:
        ExportError: the graph orders more or less than once, or in a form that is not known.
    """
    nodes = [node for node in model.graph if of_reducer(node.name) and not _KEEP.match(node.name or "")]
    sorting = [node for node in nodes if node.op_type == "TopK"]
    gathers = [node for node in nodes if node.op_type == "Gather" and _ORDER.match(node.name or "")]
    if len(sorting) != 1 or len(gathers) != 1:
        raise ExportError(f"the graph orders its tokens {len(sorting)} times, where once was expected")
    _, ordered = passes.around_gather(gathers[0])
    for node in nodes:
        for place, value in enumerate(node.inputs):
            if _is_tokens(value) and _layer_of(value.producer() if value else None) is not None:
                node.replace_input_with(place, tokens)
    topk, shaped, rows = sorting[0], ordered.producer(), gathers[0].inputs[1]
    flat = rows.producer() if rows is not None else None
    sizes, indices = _numbers(shaped), _numbers(flat)
    if shaped is None or flat is None or len(sizes) != 3 or len(indices) != 1:
        raise ExportError(f"{gathers[0].name} takes tokens, or gives them, in a shape that is not known")
    images = indices[0] // sizes[1]  # of a batch that the export fixed; of any batch it is -1
    _give(model, topk, [length - prefix])
    _give(model, flat, [images * length if images > 0 else -1])
    _give(model, shaped, [sizes[0], length, sizes[2]])
    topk.outputs[1].name = kept
    return ordered


def _numbers(node: ir.Node | None) -> list[int]:
    """The constant that a Reshape has as its shape; nothing where it is computed."""
    value = node.inputs[1] if node is not None else None
    held = value.const_value if value is not None else None
    return [] if held is None else [int(number) for number in held.numpy()]


def _give(model: ir.Model, node: ir.Node, numbers: list[int]) -> None:
    """Give a Reshape another shape, or a TopK another k."""
    node.replace_input_with(1, passes.integers(model, *numbers))
