"""What a manifest records, section by section: each fact with its type and range.

What is read is of the types that stand here: :mod:`lifedeploy.manifest` sees to it.
"""

# ruff: noqa: RUF009  # absent() and needed() make fields, not defaults

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from lifedeploy.errors import ParityError
from lifedeploy.section import Section, absent, needed
from lifedeploy.typed import (
    Attention,
    BatchSize,
    Count,
    Digest,
    FileName,
    Graph,
    Integer,
    LastBlock,
    Layer,
    Maybe,
    Name,
    Number,
    Positive,
    Precision,
    Share,
    Size,
    Text,
)

Shape = Annotated[tuple[Size, ...], Meta(max_length=8)]
PerLayer = Annotated[tuple[Count, ...], Meta(max_length=1000)]


@dataclass(frozen=True, kw_only=True)
class GraphRecord(Section):
    """How the export was made, and the operators in it."""

    form: Maybe[Graph] = absent()
    batch_size: BatchSize | None = None  # None: dynamic
    with_life: bool = False
    with_preprocess: bool = False  # it takes uint8 pixels and normalises them itself
    opset: Maybe[Count] = absent()
    operators: dict[Name, Count] = field(default_factory=dict)
    kept: Maybe[Annotated[tuple[Layer, ...], Meta(max_length=1000)]] = absent()  # it names its kept tokens after these
    scores: Maybe[bool] = absent()  # whether it names the scores of all patches, which lives are made of: life_scores
    groups: bool = False  # whether it names the groups that tokens were merged to: groups
    parks: bool = False  # whether tokens that do not go on come back, so that every drop chooses from all
    last_block: Maybe[LastBlock] = absent()  # what that computes; graphs without it compute all tokens: "full"


@dataclass(frozen=True, kw_only=True)
class MacsRecord(Section):
    """Multiply-accumulates of one image, by place; ``speedup_bound`` is dense ÷ total.

    ``dense`` is the baseline of the same export, whose last block may compute prefix tokens alone.
    """

    total: Count = needed()
    dense: Count = needed()
    per_layer: PerLayer = needed()
    plain: Maybe[Count] = absent()  # of timm's own model: every token in every layer
    attention_tokens: Maybe[PerLayer] = absent()  # patch tokens that each layer attends to: keys and values
    query_tokens: Maybe[PerLayer] = absent()  # that attend there
    mlp_tokens: Maybe[PerLayer] = absent()  # in its MLP
    embed: Count = needed()
    predictor: Count = needed()  # of the method's own: scoring, fusing, merging
    head: Count = needed()
    speedup_bound: Positive = needed()

    @property
    def over_plain(self) -> float | None:
        """MACs of timm's own model over these; None where an older version did not write them."""
        return self.plain / self.total if self.plain is not None else None


@dataclass(frozen=True, kw_only=True)
class CaseRecord(Section):
    """One batch of the parity gate."""

    kind: Name = needed()
    batch: BatchSize = needed()
    max_abs: Number = needed()  # largest difference of two logits
    max_rel: Number = needed()  # the same over the largest logit of the batch
    max_rel_same: Number = needed()  # the same of images that kept the same tokens: without what another token changes
    top1: Share = needed()  # share of images with the same top-1
    overlap: Share | None = needed()  # share of kept tokens that are the same; None where nothing is dropped by score
    decided_flips: Count = needed()  # images whose top-1 changed though the reference was decided


@dataclass(frozen=True, kw_only=True)
class ParityRecord(Section):
    """The evidence that an artifact computes what PyTorch computes; the numbers are the worst of all cases."""

    passed: bool = needed()  # every case is within tolerance
    precision: Maybe[Precision] = absent()
    cases: tuple[CaseRecord, ...] = ()
    failures: tuple[Text, ...] = ()
    max_abs: Number = needed()
    max_rel: Number = needed()
    top1: Share = needed()
    overlap: Share | None = needed()

    def summary(self) -> dict[str, float | None]:
        """The worst of all cases, by name."""
        return {"max_abs": self.max_abs, "max_rel": self.max_rel, "top1": self.top1, "overlap": self.overlap}

    def require(self, what: str, reference: str = "PyTorch") -> None:
        """Make sure that ``what`` computes what ``reference`` does.

        Raises:
            ParityError: it did not; with the first failure.
        """
        if self.failures:
            raise ParityError(f"{what} does not compute what {reference} does: {self.failures[0]}")


@dataclass(frozen=True, kw_only=True)
class FormRecord(Section):
    """The form of a graph that was given to a runtime."""

    precision: Precision
    attention: Attention
    with_order: bool  # kept tokens as further outputs
    integer: Maybe[Integer] = absent()  # quantised products as ONNX Runtime's operator, attention of others in its own
    least_queries: Maybe[Count] = absent()  # attention of fewer stays products


@dataclass(frozen=True, kw_only=True)
class ReachRecord(Section):
    """The tensor of a half-precision graph that comes nearest to the end of its type, or first goes beyond."""

    tensor: Text
    largest: Number  # magnitude, over all samples
    limit: Number  # the largest number that the type has
    sample: Text  # where

    @property
    def overflows(self) -> bool:
        """Whether it is beyond."""
        return not self.largest <= self.limit


@dataclass(frozen=True, kw_only=True)
class FormedRecord(Section):
    """What was done to the export's graph before it was compiled, and what that cost."""

    form: Maybe[FormRecord] = absent()
    opset: Maybe[Count] = absent()
    attentions: Maybe[Count] = absent()  # those that are one operator
    casts: Maybe[Count] = absent()
    islands: dict[Name, tuple[Name, ...]] = field(default_factory=dict)  # what stayed FP32 → its operators
    subnormal: Maybe[Count] = absent()  # weights other than 0 that became 0
    parity: Maybe[ParityRecord] = absent()
    reach: Maybe[ReachRecord] = absent()


@dataclass(frozen=True, kw_only=True)
class OptionsRecord(Section):
    """Build options that were given."""

    attention: Maybe[Text] = absent()
    remainder: Maybe[Text] = absent()
    batch: Maybe[Annotated[tuple[BatchSize, ...], Meta(min_length=3, max_length=3)]] = absent()
    workspace_gib: Maybe[Positive] = absent()
    level: Maybe[Count] = absent()
    target: tuple[Name, ...] = ()
    timing_cache: Maybe[Text] = absent()
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False
    allow_unfused: bool = False


@dataclass(frozen=True, kw_only=True)
class FusionRecord(Section):
    """Kernels of an engine: fused attentions (None: not known), sorts, and how often each is launched."""

    source: Maybe[Name] = absent()
    attention: Count | None
    topk: Count
    of: Maybe[Count] = absent()
    precision: Maybe[Text] = absent()
    tensors: dict[Text, Count] = field(default_factory=dict)
    launches: dict[Text, Count] = field(default_factory=dict)
    kernels: dict[Text, Count] = field(default_factory=dict)
    eight_bits: dict[Text, Count] = field(default_factory=dict)
    unfused: dict[Text, Text] = field(default_factory=dict)  # attention of a layer → why it is not fused
    note: Text = ""


@dataclass(frozen=True, kw_only=True)
class EightBitsRecord(Section):
    """Products that run in 8 bits, of those that the graph has quantised."""

    products: Count
    of: Count


@dataclass(frozen=True, kw_only=True)
class DetailsRecord(Section):
    """What a runtime tells of what it built."""

    fusion: Maybe[FusionRecord] = absent()
    profile: dict[Name, tuple[Shape, ...]] = field(default_factory=dict)  # input → its smallest, usual, largest shape
    warnings: tuple[Text, ...] = ()
    eight_bits: Maybe[EightBitsRecord] = absent()
    integer_products: dict[Name, Count] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TensorRecord(Section):
    """One quantised tensor.

    ``sqnr_db`` is the signal-to-quantisation-noise ratio, 10 log₁₀ Σx² / Σ(x − Q(x))², in dB; ``saturated`` the share
    of values beyond the largest number of the grid.
    """

    name: Name
    kind: Name  # "activation" or "weight"
    scale: Number  # the largest, of a weight per channel
    scale_smallest: Number
    sqnr_db: Number
    saturated: Number


@dataclass(frozen=True, kw_only=True)
class LayerRecord(Section):
    """One product of a quantised graph; ``sqnr_db`` is None where it stays in floating point."""

    name: Name
    sqnr_db: Number | None
    tensors: tuple[TensorRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRecord(Section):
    """The images that a graph was calibrated and checked on."""

    source: Text
    split: Maybe[Text] = absent()
    images: Count
    of: Maybe[Count] = absent()
    seed: Count
    sha256: Digest
    check_images: Maybe[Count] = absent()
    check_apart: Maybe[bool] = absent()
    check_sha256: Maybe[Digest] = absent()
    check_classes_sha256: Maybe[Digest] = absent()


@dataclass(frozen=True, kw_only=True)
class QuantizationRecord(Section):
    """How a graph was calibrated, and what that cost; engines built of it keep all but ``layers``."""

    precision: Precision = needed()
    method: Name = needed()
    parts: tuple[Name, ...] = needed()
    per_channel: bool = needed()
    smoothing: Share = needed()
    smooth_gelu: Maybe[bool] = absent()
    keep: tuple[Name, ...] = ()
    max_drop: Number | None = None
    data: DataRecord = needed()
    source_sha256: Digest = needed()  # of the float graph
    images: Count = needed()
    same_top1: Share = needed()
    overlap: Share | None = needed()
    logits_sqnr_db: Number | None = None
    accuracy: Share | None = None
    accuracy_float: Share | None = None
    drop: Maybe[Number] = absent()
    size_mib: Maybe[Number] = absent()
    size_float_mib: Maybe[Number] = absent()
    restored: tuple[Name, ...] = needed()
    report: Maybe[FileName] = absent()
    layers: Maybe[tuple[LayerRecord, ...]] = absent()
