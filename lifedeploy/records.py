"""What a manifest records, section by section: JSON objects, each key with its type and range.

They stay dictionaries, since most readers look for one fact: a fact that an older version did not write is missing, and
one that a newer version adds is kept. What is there is of the type that stands here; :mod:`lifedeploy.manifest` sees to
it, and :meth:`Manifest.require_complete` that nothing is missing where a reader needs all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Required, TypedDict

from msgspec import Meta

from lifedeploy.typed import (
    Attention,
    Batch,
    Count,
    Digest,
    FileName,
    Graph,
    Layer,
    Name,
    Number,
    Positive,
    Precision,
    Share,
    Size,
    Text,
)

Shape = Annotated[Sequence[Size], Meta(max_length=8)]


class GraphRecord(TypedDict, total=False):
    """How the export was made, and the operators in it."""

    form: Graph
    batch_size: Batch | None  # None: dynamic
    with_life: bool
    with_preprocess: bool  # it takes uint8 pixels and normalises them itself
    opset: Count
    operators: dict[Name, Count]
    kept: Annotated[Sequence[Layer], Meta(max_length=1000)]  # layers after which it names its kept tokens: kept_LAYER
    scores: bool  # whether it names the scores of all patches, which lives are made of: life_scores


class MacsRecord(TypedDict, total=False):
    """Multiply-accumulates of one image, by place; ``speedup_bound`` is dense ÷ total."""

    total: Count
    dense: Count
    per_layer: Annotated[Sequence[Count], Meta(max_length=1000)]
    attention_tokens: Annotated[Sequence[Count], Meta(max_length=1000)]  # patch tokens in the attention of each layer
    mlp_tokens: Annotated[Sequence[Count], Meta(max_length=1000)]  # and in its MLP
    embed: Count
    predictor: Count  # of the method's own: scoring, fusing, merging
    head: Count
    speedup_bound: Positive


class CaseRecord(TypedDict, total=False):
    """One batch of the parity gate."""

    kind: Name
    batch: Batch
    max_abs: Number
    max_rel: Number
    max_rel_same: Number
    top1: Share
    overlap: Share | None
    decided_flips: Count


class ParityRecord(TypedDict, total=False):
    """The evidence that an artifact computes what PyTorch computes; the numbers are the worst of all cases."""

    passed: bool
    precision: Precision
    cases: Sequence[CaseRecord]
    failures: Sequence[Text]
    max_abs: Number
    max_rel: Number
    top1: Share
    overlap: Share | None


class FormRecord(TypedDict):
    """The form of a graph that was given to a runtime."""

    precision: Precision
    attention: Attention
    with_order: bool  # kept tokens as further outputs


class ReachRecord(TypedDict):
    """The tensor of a half-precision graph that comes nearest to the end of its type."""

    tensor: Text
    largest: Number
    limit: Number
    sample: Text


class FormedRecord(TypedDict, total=False):
    """What was done to the export's graph before it was compiled, and what that cost."""

    form: FormRecord
    opset: Count
    attentions: Count
    casts: Count
    islands: dict[Name, Sequence[Name]]
    subnormal: Count
    parity: ParityRecord
    reach: ReachRecord


class OptionsRecord(TypedDict, total=False):
    """Build options that were given."""

    attention: Text
    remainder: Text
    batch: Annotated[Sequence[Batch], Meta(min_length=3, max_length=3)]
    workspace_gib: Positive
    level: Count
    target: Sequence[Name]
    timing_cache: Text
    hardware_compatible: bool
    version_compatible: bool
    strip_weights: bool
    refittable: bool
    allow_unfused: bool


class FusionRecord(TypedDict, total=False):
    """Kernels of an engine: fused attentions (None: not known), sorts, and how often each is launched."""

    source: Name
    attention: Required[Count | None]
    topk: Required[Count]
    of: Count
    precision: Text
    tensors: dict[Text, Count]
    launches: dict[Text, Count]
    kernels: dict[Text, Count]
    eight_bits: dict[Text, Count]
    note: Text


class EightBitsRecord(TypedDict):
    """Products that run in 8 bits, of those that the graph has quantised."""

    products: Count
    of: Count


class DetailsRecord(TypedDict, total=False):
    """What a runtime tells of what it built."""

    fusion: FusionRecord
    profile: Mapping[Name, Sequence[Shape]]  # input → its smallest, usual and largest shape
    warnings: Sequence[Text]
    eight_bits: EightBitsRecord
    integer_products: dict[Name, Count]


class TensorRecord(TypedDict, total=False):
    """One quantised tensor."""

    name: Name
    kind: Name
    scale: Number | None
    scale_smallest: Number | None
    sqnr_db: Number | None
    saturated: Number | None


class LayerRecord(TypedDict, total=False):
    """One product of a quantised graph; ``sqnr_db`` is None where it stays in floating point."""

    name: Required[Name]
    sqnr_db: Required[Number | None]
    tensors: Sequence[TensorRecord]


class DataRecord(TypedDict, total=False):
    """The images that a graph was calibrated and checked on."""

    source: Required[Text]
    split: Text
    images: Required[Count]
    of: Count
    seed: Required[Count]
    sha256: Required[Digest]
    check_images: Count
    check_apart: bool
    check_sha256: Digest
    check_classes_sha256: Digest


class QuantizationRecord(TypedDict, total=False):
    """How a graph was calibrated, and what that cost; engines built of it keep all but ``layers``."""

    precision: Precision
    method: Name
    parts: Sequence[Name]
    per_channel: bool
    smoothing: Share
    smooth_gelu: bool
    keep: Sequence[Name]
    max_drop: Number | None
    data: DataRecord
    source_sha256: Digest  # of the float graph
    images: Count
    same_top1: Share
    overlap: Share | None
    logits_sqnr_db: Number | None
    accuracy: Share | None
    accuracy_float: Share | None
    drop: Number
    size_mib: Number
    size_float_mib: Number
    restored: Sequence[Name]
    report: FileName
    layers: Sequence[LayerRecord]


# What is shown and computed with wherever the section is there at all.
COMPLETE: Mapping[str, tuple[str, ...]] = {
    "macs": ("total", "dense", "per_layer", "embed", "predictor", "head", "speedup_bound"),
    "parity": ("passed", "max_abs", "max_rel", "top1", "overlap"),
    "quantization": (
        "precision", "method", "parts", "per_channel", "smoothing", "data", "source_sha256", "images", "same_top1",
        "overlap", "restored",
    ),
}  # fmt: skip
