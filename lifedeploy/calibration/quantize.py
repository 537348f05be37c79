"""One float graph and images in; one quantised graph out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lifedeploy.calibration import policy, qdq, ranges
from lifedeploy.calibration.batches import ImageBatches
from lifedeploy.calibration.collect import Count, cached, collect
from lifedeploy.calibration.policy import Product
from lifedeploy.calibration.ranges import TensorStatistics
from lifedeploy.calibration.smooth import ALPHA, migrations_of, smooth
from lifedeploy.errors import ExportError, UsageError
from lifedeploy.exporters import passes, row_levels
from lifedeploy.exporters.inspect import load
from lifedeploy.spec import QUANTIZED
from lifedeploy.writing import saving

SMOOTHING_IMAGES = 128  # enough to find the channels that reach far
# P·V in FP8: probabilities end at 1, so that the scale is known. The very number that NVIDIA's ModelOpt and TensorRT
# use, though FP16 rounds it.
_SOFTMAX_FP8 = np.asarray(np.float32(1 / 448))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a graph is quantised. The default is what measured best (benchmarks/quantization)."""

    precision: str = "int8"
    ranges: str = "minmax"  # how far activations reach; or percentile, entropy
    parts: tuple[str, ...] = ()  # (): the policy's own
    per_channel: bool = True  # scales of weights
    smoothing: float = ALPHA  # 0: none
    smooth_gelu: bool = True  # behind GELU too, where it costs a multiplication
    keep: tuple[str, ...] = ()  # products left in floating point, by name; * stands for anything

    def __post_init__(self) -> None:
        if self.precision not in QUANTIZED:
            raise UsageError(f"precision {self.precision!r} needs no calibration; there are: {', '.join(QUANTIZED)}")
        if self.ranges not in ranges.THRESHOLDS:
            raise UsageError(f"method {self.ranges!r} is unknown; there are: {', '.join(ranges.THRESHOLDS)}")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing {self.smoothing:g} is not allowed: it must be in [0, 1); 0 is none")
        if self.parts:
            policy.check_parts(self.parts)

    @property
    def quantized_parts(self) -> tuple[str, ...]:
        """The parts that are quantised."""
        return self.parts or policy.default_parts(self.precision)


@dataclass(frozen=True)
class Source:
    """A float graph, and the digests that its statistics are remembered by."""

    graph: Path
    sha256: str
    data_sha256: str
    cache: Path | None = None  # folder; None: the user's


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A graph with everything known that quantising it takes."""

    graph: Path  # float, scales moved
    recipe: Recipe
    names: tuple[str, ...]  # products to quantise
    scales: dict[str, NDArray[np.float32]]  # activation → scale
    smoothed: int
    cached: bool


def prepare(
    source: Source, recipe: Recipe, batches: ImageBatches, work: Path, count: Count = lambda images: None
) -> Prepared:
    """Move scales and find ranges; the float graph that this leaves is written to ``work``.

    Raises:
        ExportError: the graph holds nothing that the policy quantises.
        UsageError: a pattern of ``keep`` fits no product, or all patterns together fit every one.
        ImageError, EngineError: an image cannot be read; an activation is not finite.
    """
    model = ir.from_proto(load(source.graph))
    chosen = _chosen(policy.products(model), recipe, source.graph)
    migrations = migrations_of(chosen) if recipe.smoothing else ()
    movable = [migration for migration in migrations if migration.free or recipe.smooth_gelu]
    key = {"model": source.sha256, "data": source.data_sha256, "images": len(batches)}
    known = True
    if movable:
        activations = [migration.activation for migration in movable]
        first = batches.first(SMOOTHING_IMAGES)
        channels, known = cached(
            key | {"what": "channels", "images": len(first), "tensors": activations},
            lambda: collect(source.graph, activations, first, per_channel=activations, count=count),
            source.cache,
        )
        reach = {name: counted.channels for name, counted in channels.items() if counted.channels is not None}
        smooth(model, movable, reach, recipe.smoothing)
    levelled = _level_rows(model, chosen) if recipe.precision == "int8" else []
    graph = work / f"{source.graph.stem}.float.onnx"
    with saving(graph):
        ir.save(model, graph)
    names = _activations(chosen, recipe)
    moved = {"smoothing": recipe.smoothing, "moved": [migration.activation for migration in movable]}
    moved |= {"levelled": levelled} if levelled else {}
    statistics, also_known = cached(
        key | {"what": "ranges", **moved, "tensors": names},
        lambda: collect(graph, names, batches, count=count),
        source.cache,
    )
    return Prepared(
        graph=graph,
        recipe=recipe,
        names=tuple(product.name for product in chosen),
        scales=_scales(chosen, statistics, recipe),
        smoothed=len(movable),
        cached=known and also_known,
    )


def write(prepared: Prepared, destination: Path, leave: Collection[str] = ()) -> None:
    """Write the quantised graph, but for the products in ``leave``."""
    model = ir.from_proto(load(prepared.graph, check=False))
    wanted = set(prepared.names) - set(leave)
    chosen = []
    for product in policy.products(model):
        if product.name in wanted:
            chosen.append(product)
        else:
            row_levels.unlevel(product.node)
    recipe = prepared.recipe
    qdq.insert(model, chosen, prepared.scales, recipe.precision, per_channel=recipe.per_channel)
    passes.clean(model)
    model.metadata_props["lifedeploy.quantization"] = recipe.precision
    with saving(destination):
        ir.save(model, destination)
    load(destination)  # checks it


def _chosen(products: Sequence[Product], recipe: Recipe, graph: Path) -> list[Product]:
    parts = recipe.quantized_parts
    offered = [product for product in products if product.part in parts]
    if not offered:
        raise ExportError(f"{graph} holds no product to quantise in the parts {', '.join(parts)}")
    for pattern in recipe.keep:
        if not any(fnmatch(product.name, pattern) for product in offered):
            raise UsageError(
                f"--keep {pattern!r} fits no product of {graph} that would be quantised",
                hint=f"for example {offered[0].name}",
            )
    chosen = [item for item in offered if not any(fnmatch(item.name, pattern) for pattern in recipe.keep)]
    if not chosen:
        raise UsageError(f"--keep {' --keep '.join(recipe.keep)} leaves nothing of {graph} to quantise")
    return chosen


def _level_rows(model: ir.Model, chosen: Sequence[Product]) -> list[str]:
    """Divide probabilities that INT8 products are of by the largest of their row, in place: 127 levels for all rows
    together would leave next to nothing of most. The products it was done for."""
    levelled = [product.name for product in chosen if row_levels.level(model, product.node)]
    if levelled:
        passes.clean(model)  # infers the shapes of what is new
    return levelled


def _activations(chosen: Sequence[Product], recipe: Recipe) -> list[str]:
    """Tensors whose range has to be found."""
    return list(
        dict.fromkeys(
            value.name or ""
            for product in chosen
            for value in product.activations
            if _known_scale(value, recipe) is None
        )
    )


def _known_scale(value: ir.Value, recipe: Recipe) -> NDArray[np.float32] | None:
    """The scale of what ends at 1 whatever the images; None of other tensors."""
    if recipe.precision == "int8":
        return qdq.GRIDS["int8"].scale(np.asarray(row_levels.LARGEST)) if row_levels.is_levelled(value) else None
    producer = value.producer()
    return _SOFTMAX_FP8 if producer is not None and producer.op_type == "Softmax" else None


def _scales(
    chosen: Sequence[Product], statistics: Mapping[str, TensorStatistics], recipe: Recipe
) -> dict[str, NDArray[np.float32]]:
    threshold, grid = ranges.THRESHOLDS[recipe.ranges], qdq.GRIDS[recipe.precision]
    scales = {name: grid.scale(np.asarray(threshold(tensor))) for name, tensor in statistics.items()}
    for product in chosen:
        for value in product.activations:
            known = _known_scale(value, recipe)
            if known is not None:
                scales[value.name or ""] = known
    return scales
