"""The quantised graph held against the float graph on images: what the report says, and what a scan decides by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration import policy, qdq
from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.collect import Count, watch
from lifedeploy.calibration.policy import Product
from lifedeploy.calibration.quantize import Prepared
from lifedeploy.calibration.report import (
    GraphReport,
    ImageReport,
    LayerReport,
    Noise,
    decibels,
    together,
)
from lifedeploy.evaluation.parity import Answer, shared_tokens
from lifedeploy.exporters.inspect import load
from lifedeploy.records import TensorRecord

_MIB = 1024**2


# What a graph answers to all images, with Q and DQ computed as they stand: what every engine has to agree with.
Ask = Callable[[Path, ImageBatches, Count], Answer]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a quantised graph is held against."""

    float_graph: Path  # as exported
    batches: ImageBatches
    method: str
    ask: Ask
    answers: Answer  # of the float graph
    labels: NDArray[np.int64] | None = None  # class of every image among the model's; None: not known


def noise(ours: Answer, theirs: Answer) -> float:
    """Error of the logits relative to how far they differ between images and classes: 0…"""
    reference = ours.logits.astype(np.float64)
    signal = reference - reference.mean(axis=1, keepdims=True)
    error = theirs.logits.astype(np.float64) - reference
    error -= error.mean(axis=1, keepdims=True)  # what all classes share changes no answer
    return float(np.square(error).sum() / max(np.square(signal).sum(), 1e-30))


def report(
    prepared: Prepared,
    graph: Path,
    check: Check,
    *,
    restored: Sequence[str] = (),
    noises: Mapping[str, float] | None = None,
    count: Count = lambda images: None,
) -> GraphReport:
    """Per tensor, layer and image, worst first."""
    theirs = check.ask(graph, check.batches, count)
    accuracy = accuracy_float = None
    if check.labels is not None:
        accuracy_float, accuracy = (
            float((answers.logits.argmax(axis=1) == check.labels).mean()) for answers in (check.answers, theirs)
        )
    return GraphReport(
        method=check.method,
        layers=_layers(prepared, check, restored, noises or {}, count),
        per_image=_images(check, theirs),
        logits_sqnr_db=decibels(1.0, noise(check.answers, theirs)),
        size_mib=graph.stat().st_size / _MIB,
        size_float_mib=check.float_graph.stat().st_size / _MIB,
        accuracy=accuracy,
        accuracy_float=accuracy_float,
        restored=tuple(restored),
    )


def _images(check: Check, theirs: Answer) -> tuple[ImageReport, ...]:
    ours = check.answers
    shares: Sequence[float | None] = [None] * len(ours.logits)
    if ours.kept is not None and theirs.kept is not None:
        shares = shared_tokens(ours.kept, theirs.kept)
    reports = []
    for index, (before, after) in enumerate(zip(ours.logits, theirs.logits, strict=True)):
        reports.append(
            ImageReport(
                file=check.batches.images.filename(index),
                top1=int(after.argmax()),
                top1_float=int(before.argmax()),
                error=float(np.abs(after - before).max() / max(np.abs(before).max(), 1e-12)),
                overlap=shares[index],
            )
        )
    return tuple(sorted(reports, key=lambda image: (not image.changed, -image.error)))


def _layers(
    prepared: Prepared, check: Check, restored: Sequence[str], noises: Mapping[str, float], count: Count
) -> tuple[LayerReport, ...]:
    model = ir.from_proto(load(prepared.graph, check=False))
    parts = prepared.recipe.quantized_parts
    products = [product for product in policy.products(model) if product.part in parts]
    chosen = [product for product in products if product.name in prepared.names and product.name not in restored]
    activations = _activation_reports(prepared, chosen, check.batches, count)
    reports = []
    for product in products:
        tensors = []
        if product in chosen:
            tensors = [activations[value.name or ""] for value in product.activations]
            tensors += [_weight_report(product, prepared)] if product.weight is not None else []
        reports.append(
            LayerReport(
                name=product.name,
                part=product.part,
                quantized=bool(tensors),
                tensors=tuple(tensors),
                sqnr_db=together([tensor.sqnr_db for tensor in tensors]) if tensors else None,
                noise=noises.get(product.name),
            )
        )
    return tuple(sorted(reports, key=lambda layer: (layer.sqnr_db is None, layer.sqnr_db)))


def _activation_reports(
    prepared: Prepared, chosen: Sequence[Product], batches: ImageBatches, count: Count
) -> dict[str, TensorRecord]:
    grid = qdq.GRIDS[prepared.recipe.precision]
    names = list(dict.fromkeys(value.name or "" for product in chosen for value in product.activations))
    sums = {name: Noise() for name in names}
    for tensors, counted in watch(prepared.graph, names, batches):
        for name, total in sums.items():
            total.add(tensors[name], prepared.scales[name], grid)
        count(counted)
    return {name: total.report(name, "activation", prepared.scales[name]) for name, total in sums.items()}


def _weight_report(product: Product, prepared: Prepared) -> TensorRecord:
    grid = qdq.GRIDS[prepared.recipe.precision]
    weight = product.weight
    assert weight is not None and weight.const_value is not None
    numbers = weight.const_value.numpy()
    scale = qdq.weight_scale(product, grid, per_channel=prepared.recipe.per_channel)
    total = Noise()
    total.add(numbers, qdq.along(scale, product.channel_axis, numbers.ndim), grid)
    return total.report(weight.name or product.name, "weight", np.atleast_1d(scale))
