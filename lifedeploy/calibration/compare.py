"""The quantised graph held against the float graph on images: what the report says, and what a scan decides by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration import policy, qdq
from lifedeploy.calibration.collect import Count, watch
from lifedeploy.calibration.feed import Feed
from lifedeploy.calibration.policy import Product
from lifedeploy.calibration.quantize import Prepared
from lifedeploy.calibration.report import (
    ImageReport,
    LayerReport,
    MemberReport,
    Noise,
    TensorReport,
    decibels,
    together,
)
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.evaluation.asking import shared_tokens
from lifedeploy.evaluation.parity import asker
from lifedeploy.exporters.inspect import load
from lifedeploy.kept import KeptTokens

_MIB = 1024**2


@dataclass(frozen=True)
class Answers:
    """What a graph says to all images of a feed."""

    logits: Array  # (images, classes)
    kept: Array | None  # (images, n_T), original numbers of the patches that reach the last layer


@dataclass(frozen=True)
class Check:
    """What a quantised graph is held against."""

    float_graph: Path  # as exported
    feed: Feed
    method: str
    kept: KeptTokens  # where the graph says what it kept
    answers: Answers  # of the float graph
    labels: NDArray[np.int64] | None = None  # class of every image among the model's; None: not known


def ask(graph: Path, feed: Feed, kept_tokens: KeptTokens, count: Count = lambda images: None) -> Answers:
    """Run ``graph`` on ``feed``, Q and DQ computed as they stand: what every engine has to agree with."""
    logits, kept = [], []
    with OnnxRuntime(graph, EngineOptions(taps=kept_tokens.last_tap, literal=True)) as engine:
        run = asker(engine, engine, kept_tokens)
        for images, counted in feed:
            answer = run(images)
            logits.append(answer.logits[:counted].reshape(counted, -1))
            if answer.kept is not None:
                kept.append(answer.kept[:counted])
            count(counted)
    return Answers(np.concatenate(logits), np.concatenate(kept) if kept else None)


def noise(ours: Answers, theirs: Answers) -> float:
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
) -> MemberReport:
    """Per tensor, layer and image, worst first."""
    theirs = ask(graph, check.feed, check.kept, count)
    images = _images(check, theirs)
    layers = _layers(prepared, check, restored, noises or {}, count)
    accuracy = accuracy_float = None
    if check.labels is not None:
        accuracy_float, accuracy = (
            float((found.logits.argmax(axis=1) == check.labels).mean()) for found in (check.answers, theirs)
        )
    ratio = noise(check.answers, theirs)
    return MemberReport(
        method=check.method,
        layers=layers,
        images=images,
        logits_sqnr_db=decibels(1.0, ratio),
        size_mib=graph.stat().st_size / _MIB,
        size_float_mib=check.float_graph.stat().st_size / _MIB,
        accuracy=accuracy,
        accuracy_float=accuracy_float,
        restored=tuple(restored),
    )


def _images(check: Check, theirs: Answers) -> tuple[ImageReport, ...]:
    ours = check.answers
    shares: Sequence[float | None] = [None] * len(ours.logits)
    if ours.kept is not None and theirs.kept is not None:
        shares = shared_tokens(ours.kept, theirs.kept)
    made = []
    for index, (before, after) in enumerate(zip(ours.logits, theirs.logits, strict=True)):
        error = float(np.abs(after - before).max() / max(np.abs(before).max(), 1e-12))
        made.append(
            ImageReport(
                check.feed.images.filename(index), int(after.argmax()), int(before.argmax()), error, shares[index]
            )
        )
    return tuple(sorted(made, key=lambda image: (not image.changed, -image.error)))


def _layers(
    prepared: Prepared, check: Check, restored: Sequence[str], noises: Mapping[str, float], count: Count
) -> tuple[LayerReport, ...]:
    model = ir.from_proto(load(prepared.graph, check=False))
    parts = prepared.recipe.quantized_parts
    found = [product for product in policy.products(model) if product.part in parts]
    chosen = [product for product in found if product.name in prepared.names and product.name not in restored]
    activations = _activation_reports(prepared, chosen, check.feed, count)
    made = []
    for product in found:
        tensors = []
        if product in chosen:
            tensors = [activations[value.name or ""] for value in product.activations]
            tensors += [_weight_report(product, prepared)] if product.weight is not None else []
        ratio = together([tensor.sqnr_db for tensor in tensors]) if tensors else None
        made.append(
            LayerReport(product.name, product.part, bool(tensors), tuple(tensors), ratio, noises.get(product.name))
        )
    return tuple(sorted(made, key=lambda layer: (layer.sqnr_db is None, layer.sqnr_db)))


def _activation_reports(
    prepared: Prepared, chosen: Sequence[Product], feed: Feed, count: Count
) -> dict[str, TensorReport]:
    grid = qdq.GRIDS[prepared.recipe.precision]
    names = list(dict.fromkeys(value.name or "" for product in chosen for value in product.activations))
    sums = {name: Noise() for name in names}
    for tensors, counted in watch(prepared.graph, names, feed):
        for name, total in sums.items():
            total.add(tensors[name], prepared.scales[name], grid)
        count(counted)
    return {name: total.report(name, "activation", prepared.scales[name]) for name, total in sums.items()}


def _weight_report(product: Product, prepared: Prepared) -> TensorReport:
    grid = qdq.GRIDS[prepared.recipe.precision]
    weight = product.weight
    assert weight is not None and weight.const_value is not None
    numbers = weight.const_value.numpy()
    scale = qdq.weight_scale(product, grid, per_channel=prepared.recipe.per_channel)
    total = Noise()
    total.add(numbers, qdq.along(scale, product.channel_axis, numbers.ndim), grid)
    return total.report(weight.name or product.name, "weight", np.atleast_1d(scale))
