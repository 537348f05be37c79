"""What 8 bits cost: per tensor, per layer, per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lifedeploy.calibration.qdq import Grid
from lifedeploy.records import TensorRecord


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One product: its tensors, and what is left of its result if the errors of both factors add up."""

    name: str
    part: str
    quantized: bool
    tensors: tuple[TensorRecord, ...]
    sqnr_db: float | None  # None: in floating point
    noise: float | None = None  # of the logits with this layer alone quantised, relative; None: not measured


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """One image: quantised graph against float graph."""

    file: str
    top1: int
    top1_float: int
    error: float  # largest difference of two logits over the largest logit of the float graph
    overlap: float | None  # share of kept tokens that are the same; None where no score decides

    @property
    def changed(self) -> bool:
        """Whether the answer is another one."""
        return self.top1 != self.top1_float


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """One graph. Layers and images worst first."""

    method: str
    layers: tuple[LayerReport, ...]
    per_image: Annotated[tuple[ImageReport, ...], Meta(min_length=1)]
    logits_sqnr_db: float
    size_mib: float
    size_float_mib: float
    accuracy: float | None  # of the quantised graph on the check images, where they have labels
    accuracy_float: float | None
    restored: tuple[str, ...]  # layers that a sensitivity scan left in floating point

    @property
    def same_top1(self) -> float:
        """Share of images with the same answer."""
        return float(np.mean([not image.changed for image in self.per_image]))

    @property
    def overlap(self) -> float | None:
        """Mean share of kept tokens that are the same."""
        shares = [image.overlap for image in self.per_image if image.overlap is not None]
        return float(np.mean(shares)) if shares else None

    @property
    def drop(self) -> float:
        """Points of top-1 lost: of accuracy where there are labels, else of agreement with the float graph."""
        if self.accuracy is not None and self.accuracy_float is not None:
            return (self.accuracy_float - self.accuracy) * 100
        return (1 - self.same_top1) * 100

    def summary(self) -> dict[str, Any]:
        """Figures of the whole graph as plain JSON types, without layers and images."""
        return {
            "images": len(self.per_image),
            "same_top1": self.same_top1,
            "overlap": self.overlap,
            "logits_sqnr_db": self.logits_sqnr_db,
            "accuracy": self.accuracy,
            "accuracy_float": self.accuracy_float,
            "drop": self.drop,
            "size_mib": self.size_mib,
            "size_float_mib": self.size_float_mib,
            "restored": list(self.restored),
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, worst first."""
        return {
            "method": self.method,
            **self.summary(),
            "layers": [asdict(layer) for layer in self.layers],
            "per_image": [asdict(image) | {"changed": image.changed} for image in self.per_image],
        }


@dataclass
class Noise:
    """Adds up the error of a tensor over batches."""

    signal: float = 0.0
    error: float = 0.0
    beyond: int = 0
    values: int = 0

    def add(self, values: NDArray[Any], scale: NDArray[np.float32], grid: Grid) -> None:
        """Add the error of one batch, ``values`` of any shape, on ``grid`` times ``scale``."""
        given = np.asarray(values, dtype=np.float32)
        error = given - grid.rounded(given, scale)
        # numpy adds pairwise along the last axis, so FP32 is enough there.
        self.signal += float(np.einsum("...i,...i->...", given, given).sum(dtype=np.float64))
        self.error += float(np.einsum("...i,...i->...", error, error).sum(dtype=np.float64))
        self.beyond += int(np.count_nonzero(np.abs(given) > scale * (grid.largest + grid.half_step)))
        self.values += given.size

    def report(self, name: str, kind: str, scale: NDArray[np.float32]) -> TensorRecord:
        """The tensor's report over all batches that were added."""
        return TensorRecord(
            name=name,
            kind=kind,
            scale=float(scale.max()),
            scale_smallest=float(scale.min()),
            sqnr_db=decibels(self.signal, self.error),
            saturated=self.beyond / max(self.values, 1),
        )


def decibels(signal: float, error: float) -> float:
    """10 log₁₀ of a ratio of energies, at most 200 (nothing lost), at least −200 (no signal)."""
    if not (math.isfinite(signal) and math.isfinite(error)):
        return -200.0
    if error <= 0:
        return 200.0
    return float(np.clip(10 * math.log10(max(signal, 1e-30) / error), -200, 200))


def together(ratios_db: Sequence[float]) -> float:
    """The ratio of a product whose factors have these: relative errors add up."""
    return -10 * math.log10(sum(10 ** (-ratio / 10) for ratio in ratios_db))
