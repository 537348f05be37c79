"""The forms that ``variants.py`` builds: an exported graph rewritten, and held against the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from lifedeploy.errors import ExportError, ParityError
from lifedeploy.evaluation.parity import TOLERANCES, overlap
from lifedeploy.exporters import attention, forms, passes, precision
from lifedeploy.exporters.inspect import load
from lifedeploy.kept import is_kept_name
from lifedeploy.spec import GraphForm, ModelSpec

SAME = 1e-4  # of the largest logit, in FP32
PROVEN = 4  # images
DEPLOYED = "as deployed"
Answer = tuple[np.ndarray, np.ndarray]  # logits (B, classes), order (B, K)


@dataclass(frozen=True)
class Variant:
    """One form of the graph."""

    gather: str = "Gather"
    ranking: str = "fp32"
    attention: str = "operator"


VARIANTS = {
    DEPLOYED: Variant(),
    "GatherElements": Variant(gather="GatherElements"),
    "GatherND": Variant(gather="GatherND"),
    "ranking in FP16": Variant(ranking="fp16"),
    "attention as products": Variant(attention="products"),
}


# The other Gathers: tokens (B, N, C) and an index (B, K) to the nodes whose last gives (B, K, C).


def by_elements(model: ir.Model, tokens: ir.Value, index: ir.Value) -> list[ir.Node]:
    """Every element by an index of its own."""
    channels = tokens.shape[2] if tokens.shape is not None else None
    if not isinstance(channels, int):
        raise ExportError(f"{tokens.name} has no fixed number of channels, so no index can be spread over them")
    column = ir.node("Unsqueeze", [index, constant(model, "gather_last", [-1])])
    spread = ir.node("Expand", [column.outputs[0], constant(model, "gather_channels", [1, 1, channels])])
    return [column, spread, ir.node("GatherElements", [tokens, spread.outputs[0]], {"axis": 1})]


def by_images(model: ir.Model, tokens: ir.Value, index: ir.Value) -> list[ir.Node]:
    """Whole tokens, image by image."""
    column = ir.node("Unsqueeze", [index, constant(model, "gather_last", [-1])])
    return [column, ir.node("GatherND", [tokens, column.outputs[0]], {"batch_dims": 1})]


GATHERS: dict[str, Callable[[ir.Model, ir.Value, ir.Value], list[ir.Node]]] = {
    "GatherElements": by_elements,
    "GatherND": by_images,
}


def constant(model: ir.Model, name: str, numbers: Sequence[int]) -> ir.Value:
    """An INT64 initializer."""
    return passes.constant(model, name, np.array(numbers, dtype=np.int64))


def regather(model: ir.Model, gather: str) -> int:
    """Put another Gather in the place of every flat one that takes the tokens of a TopK; how many there were.

    Condition: Reshape, Gather on axis 0 by a reshaped sum of index and start of image, Reshape, as ``gather_tokens``
    exports to.
    """
    changed = 0
    for node in list(model.graph):
        flat = _flat_gather(node)
        if flat is None:
            continue
        tokens, index, gathered = flat
        nodes = GATHERS[gather](model, tokens, index)
        for number, new in enumerate(nodes):
            new.name = f"{node.name}/{new.op_type}"
            new.outputs[0].name = f"{new.name}_output_{number}"
        model.graph.insert_before(node, nodes)
        ir.convenience.replace_all_uses_with(gathered, nodes[-1].outputs[0])
        changed += 1
    passes.clean(model)
    return changed


def _flat_gather(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Tokens (B, N, C), index (B, K) and what was gathered (B, K, C) of a flat Gather; None for any other node."""
    if node.op_type != "Gather":
        return None
    before, rows = (value.producer() if value is not None else None for value in node.inputs)
    after = [use.node for use in node.outputs[0].uses()]
    if not (before and rows and len(after) == 1 and {before.op_type, rows.op_type, after[0].op_type} == {"Reshape"}):
        return None
    added = rows.inputs[0].producer() if rows.inputs[0] is not None else None
    ranked = [value for value in added.inputs if _ranked(value)] if added is not None and added.op_type == "Add" else []
    tokens = before.inputs[0]
    return (tokens, ranked[0], after[0].outputs[0]) if tokens is not None and len(ranked) == 1 and ranked[0] else None


def _ranked(value: ir.Value | None) -> bool:
    """Whether a value is made of a TopK."""
    node = value.producer() if value is not None else None
    return node is not None and (node.op_type == "TopK" or any(map(_ranked, node.inputs)))


def write(source: Path, variant: Variant, half: str, target: Path) -> None:
    """Write ``source`` as ``target`` in another form, in FP32 (``half`` is '') or in half precision.

    Raises:
        ExportError: the graph has no Gather, attention or precision of the form that is to be changed.
    """
    # FP32 first, which TensorRT's own form refuses; the rest is as TensorRT asks for it.
    forms.prepare(
        source, GraphForm(precision="fp32", attention=variant.attention, with_order=True, least_queries=2), target
    )
    model = ir.load(target)
    if variant.gather in GATHERS and not regather(model, variant.gather):
        raise ExportError(f"{source} has no flat Gather of ranked tokens that {variant.gather} could replace")
    if half:
        islands = () if variant.ranking == half else precision.ISLANDS
        attention.raise_opset(model)
        precision.to_half(model, half, islands)
        precision.require_half(model, half, islands)
    ir.save(model, target)
    load(target)  # checks it


# Proof.


def answer(graph: Path, images: np.ndarray) -> Answer:
    """What ONNX Runtime makes of an FP32 graph."""
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return tuple(session.run([names[0], order_among(names)], {session.get_inputs()[0].name: images}))


def order_among(names: Iterable[str]) -> str:
    """The tensor of kept tokens among a graph's outputs: one, since it orders once."""
    (order,) = filter(is_kept_name, names)
    return order


def require_same(
    expected: Answer, answered: Answer, what: str, *, counts: Sequence[int], tolerance: float, least: float
) -> dict[str, Any]:
    """Compare the tokens that survive to the end, and the logits of images that kept the same ones at every drop.

    Raises:
        ParityError: fewer than ``least`` of the tokens are the same, or a logit is off by more than ``tolerance``.
    """
    kept = overlap(expected[1][:, : counts[-1]], answered[1][:, : counts[-1]])
    if kept < least:
        raise ParityError(f"{what} keeps {kept:.1%} of the tokens that the original keeps, expected {least:.0%}")
    alike = [
        all(set(order[:count]) == set(other[:count]) for count in counts)
        for order, other in zip(expected[1], answered[1], strict=True)
    ]
    if not any(alike):
        return {"kept": kept, "error": None}
    error = float(np.abs(expected[0][alike] - answered[0][alike]).max() / np.abs(expected[0]).max())
    if not error <= tolerance:
        raise ParityError(f"{what} is off by {error:.2g} of the largest logit, expected at most {tolerance:g}")
    return {"kept": kept, "error": error}


def prove(
    source: Path, spec: ModelSpec, work: Path, half: str, variants: Mapping[str, Variant]
) -> dict[str, dict[str, Any]]:
    """Hold every variant against the original: in FP32, where it has to be equal, and emulated in half precision.

    Raises:
        ParityError: a variant computes something else.
    """
    shape = (PROVEN, 3, *spec.image_size)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    counts, facts = spec.schedule.counts, {}
    plain, graph = work / "original.onnx", work / "variant.onnx"
    forms.prepare(source, GraphForm(with_order=True), plain)
    original, rounded = answer(plain, images), None
    for name, variant in variants.items():
        write(source, variant, "", graph)
        row = require_same(original, answer(graph, images), f"{name} in FP32", counts=counts, tolerance=SAME, least=1.0)
        write(source, variant, half, graph)
        forms.emulated(graph, plain)
        emulated = answer(plain, images)
        rounded = rounded or emulated
        allowed = {"tolerance": TOLERANCES[half].relative, "least": TOLERANCES[half].overlap}
        there = require_same(rounded, emulated, f"{name}, emulated in {half}", counts=counts, **allowed)
        facts[name] = {"error_fp32": row["error"], "error_emulated": there["error"], "kept_emulated": there["kept"]}
    return facts
