"""What 8 bits cost: per tensor, per layer, per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lifedeploy.calibration.qdq import Grid
from lifedeploy.reading import foreign


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """One tensor that is quantised.

    ``sqnr_db`` is the signal-to-quantisation-noise ratio, 10 log₁₀ Σx² / Σ(x − Q(x))², in dB; ``saturated`` the share
    of values beyond the largest number of the grid.
    """

    name: str
    kind: str  # "activation" or "weight"
    scale: float  # the largest, of a weight per channel
    scale_smallest: float
    sqnr_db: float
    saturated: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One product: its tensors, and what is left of its result if the errors of both factors add up."""

    name: str
    part: str
    quantized: bool
    tensors: tuple[TensorReport, ...]
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
class MemberReport:
    """One graph. Layers and images worst first."""

    method: str
    layers: tuple[LayerReport, ...]
    images: tuple[ImageReport, ...]
    logits_sqnr_db: float
    size_mib: float
    size_float_mib: float
    accuracy: float | None = None  # of the quantised graph on the check images, where they have labels
    accuracy_float: float | None = None
    restored: tuple[str, ...] = ()  # layers that a sensitivity scan left in floating point

    @property
    def same_top1(self) -> float:
        """Share of images with the same answer."""
        return float(np.mean([not image.changed for image in self.images]))

    @property
    def overlap(self) -> float | None:
        """Mean share of kept tokens that are the same."""
        shares = [image.overlap for image in self.images if image.overlap is not None]
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
            "images": len(self.images),
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
            "per_image": [asdict(image) | {"changed": image.changed} for image in self.images],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MemberReport:
        """The inverse of :meth:`to_dict`.

        Raises:
            ArtifactError: a fact is missing, or of another type.
        """
        with foreign("the report of a calibration"):
            written = msgspec.structs.asdict(msgspec.convert(data, _Written))
        return cls(images=written.pop("per_image"), **written)


class _Written(msgspec.Struct):
    """A member as :meth:`MemberReport.to_dict` has it; what follows from these facts is not read."""

    method: str
    layers: tuple[LayerReport, ...]
    per_image: Annotated[tuple[ImageReport, ...], msgspec.Meta(min_length=1)]
    logits_sqnr_db: float
    size_mib: float
    size_float_mib: float
    accuracy: float | None
    accuracy_float: float | None
    restored: tuple[str, ...]


@dataclass
class Noise:
    """Adds up the error of a tensor over batches."""

    signal: float = 0.0
    error: float = 0.0
    beyond: int = 0
    values: int = field(default=0)

    def add(self, values: NDArray[Any], scale: NDArray[np.float32], grid: Grid) -> None:
        """Add the error of one batch, ``values`` of any shape, on ``grid`` times ``scale``."""
        given = np.asarray(values, dtype=np.float32)
        error = given - grid.rounded(given, scale)
        # numpy adds pairwise along the last axis, so FP32 is enough there.
        self.signal += float(np.einsum("...i,...i->...", given, given).sum(dtype=np.float64))
        self.error += float(np.einsum("...i,...i->...", error, error).sum(dtype=np.float64))
        self.beyond += int(np.count_nonzero(np.abs(given) > scale * (grid.largest + grid.half_step)))
        self.values += given.size

    @property
    def sqnr_db(self) -> float:
        """Decibels; 200 where nothing is lost."""
        return decibels(self.signal, self.error)

    def report(self, name: str, kind: str, scale: NDArray[np.float32]) -> TensorReport:
        """The tensor's report over all batches that were added."""
        share = self.beyond / max(self.values, 1)
        return TensorReport(
            name=name,
            kind=kind,
            scale=float(scale.max()),
            scale_smallest=float(scale.min()),
            sqnr_db=self.sqnr_db,
            saturated=share,
        )


def decibels(signal: float, error: float) -> float:
    """10 log₁₀ of a ratio of energies, at most 200 (nothing lost), at least −200 (no signal)."""
    if error <= 0:
        return 200.0
    return float(np.clip(10 * math.log10(max(signal, 1e-30) / error), -200, 200))


def together(ratios_db: Sequence[float]) -> float:
    """The ratio of a product whose factors have these: relative errors add up."""
    return -10 * math.log10(sum(10 ** (-ratio / 10) for ratio in ratios_db))
