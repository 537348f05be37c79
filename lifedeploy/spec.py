"""What a model is, apart from its weights: the facts that a checkpoint, an ONNX file and an engine all carry.

Everything here turns into JSON and back, and nothing here needs a framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

from msgspec import Meta

from lifedeploy import methods
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.reading import decode_json
from lifedeploy.schedule import Schedule
from lifedeploy.typed import (
    ATTENTIONS,
    HALVES,
    ORDERINGS,
    PRECISIONS,
    QUANTIZED,
    Attention,
    Classes,
    CropMode,
    Extent,
    Integer,
    Interpolation,
    Label,
    MaybeDigest,
    MethodName,
    Name,
    Number,
    Precision,
    Predictor,
    Text,
    Weights,
    described,
    only,
)

__all__ = [
    "ATTENTIONS",
    "BIAS_INPUT",
    "GROUPS_NAME",
    "HALVES",
    "LIVES_NAME",
    "ORDERINGS",
    "PRECISIONS",
    "QUANTIZED",
    "SCORES_NAME",
    "STANDARD_ATTENTIONS",
    "GraphForm",
    "ModelSpec",
    "PreprocessSpec",
    "Provenance",
    "model_name",
]

STANDARD_ATTENTIONS = ("products", "operator")
# Attention as one operator → which of its inputs is added to the logits.
BIAS_INPUT = {"Attention": 3, "MultiHeadAttention": 5}

# Lives: (B, N), in layers, an output of graphs that were exported with it.
LIVES_NAME = "life"
# Inner tensors of every patch, (B, N), in original order, where the method tells them; beside those of :mod:`.kept`.
SCORES_NAME = "life_scores"  # lives are its standardised form, or it is lives already: in how many layers it took part
GROUPS_NAME = "groups"  # of a method that merges tokens: the patch whose token stands for it at the end


@dataclass(frozen=True, kw_only=True)
class GraphForm:
    """The form of the ONNX graph that a runtime is given: as exported, unless it asks for another one."""

    precision: Precision = "fp32"  # of the tensors in it; inputs and outputs are FP32 in any case
    attention: Attention = "products"
    with_order: bool = False  # which tokens it kept as further outputs
    integer: Integer = "none"  # quantised products as ONNX Runtime's operator, attention of others in its own
    least_queries: int = 1  # attention of fewer stays products

    @property
    def as_exported(self) -> bool:
        """Whether there is nothing to change."""
        return self == GraphForm()


_Mean = Annotated[float, Meta(ge=-1000, le=1000)]
_Std = Annotated[float, Meta(ge=1e-6, le=1000)]


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How an image file becomes the model's input. Names and meaning are timm's data config."""

    image_size: tuple[Extent, Extent]  # (height, width) in pixels
    crop_pct: Annotated[float, Meta(ge=0.05, le=1)] = 0.9
    crop_mode: CropMode = "center"  # or "squash"
    interpolation: Interpolation = "bicubic"
    mean: tuple[_Mean, _Mean, _Mean] = (0.485, 0.456, 0.406)
    std: tuple[_Std, _Std, _Std] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights came from.

    ``weights`` is ``random``, ``pretrained`` (timm's), ``trained`` (by lifedeploy) or ``file``; ``predictor``, the
    method's own parameters, is ``identity`` (its starting point, never trained), ``trained``, or ``none`` of a method
    that slims without.
    """

    weights: Weights
    source: Text = ""
    sha256: MaybeDigest = ""
    predictor: Predictor = "identity"
    elastic: bool = False  # trained at many keep rates: good at any


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: backbone, method, schedule, input and classes."""

    backbone: Name  # as given: a short name or a timm name
    timm_name: Name
    method: MethodName
    schedule: Schedule
    preprocess: PreprocessSpec
    num_classes: Classes
    prefix_tokens: Annotated[int, Meta(ge=0, le=1024)]
    provenance: Provenance
    classes: tuple[Label, ...] = field(default=(), repr=False)
    options: dict[Name, bool | int | Number | Text] = field(default_factory=dict)  # of the method, all of them

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocess.image_size

    @property
    def drops(self) -> bool:
        """Whether its method drops tokens where its schedule says; a baseline's schedule is that of others."""
        return methods.role_of(self.method) != methods.BASELINE

    @property
    def stages(self) -> tuple[int, ...]:
        """Patch tokens from drop to drop: 196, 137, 96, 67; of a baseline all of them."""
        return (self.schedule.patches, *(self.schedule.counts if self.drops else ()))

    @property
    def own_budget(self) -> str:
        """What its method does of its own accord, in words; '' where its schedule is another one."""
        method = methods.known(self.method)
        if method is None or not method.own_budget or self.schedule.keep_rate is not None:
            return ""
        try:
            usual = method.make_schedule(self.schedule.patches, self.schedule.depth)
        except UsageError:  # as of too few patches: so other numbers were asked for
            return ""
        return method.own_budget if usual == self.schedule else ""

    def under(self, method: str) -> ModelSpec:
        """The same weights under another method, whose options are those that it has beside this one.

        Raises:
            UsageError: there is no such method, or it does not protect all prefix tokens.
        """
        if method == self.method:
            return self
        other = methods.get(method)
        other.require_prefix(self.prefix_tokens, self.backbone)
        row = methods.built_in(self.method) if other.role == methods.BASELINE else methods.get(self.method)
        beside = row.options_beside(other) if row is not None else {}  # what a baseline is needs no plug-in
        return replace(self, method=method, options=other.plain_options(beside))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`.

        Keys that are not known are passed over, but for those of preprocessing and provenance: what they would change
        in the answers, or say of the weights, must not be lost.

        Raises:
            ArtifactError: a fact is missing, or of another kind or size; with its place.
        """
        what = "the model's description"
        if isinstance(data, Mapping):
            for name, kind in (("preprocess", PreprocessSpec), ("provenance", Provenance)):
                only(data.get(name), [item.name for item in fields(kind)], f"{what} ({name})")
            data = _brought_up(data)
        spec = described(data, cls, what)
        spec.require_consistent(what)
        return spec

    @classmethod
    def from_json(cls, text: str | bytes, what: str) -> ModelSpec:
        """The same of JSON text; ``what`` is what errors call the place that it is from.

        Raises:
            ArtifactError: it is no JSON, or as :meth:`from_dict`.
        """
        data = decode_json(text, dict[str, Any], what)
        try:
            return cls.from_dict(data)
        except ArtifactError as error:
            raise ArtifactError(f"{what}: {error.message}") from error

    def require_consistent(self, what: str) -> None:
        """Make sure that its facts can be those of one model.

        Raises:
            ArtifactError: they cannot.
        """
        height, width = self.image_size
        if self.classes and len(self.classes) != self.num_classes:
            raise ArtifactError(f"{what} is wrong: {len(self.classes)} names for {self.num_classes} classes")
        if self.schedule.patches > height * width:
            raise ArtifactError(f"{what} is wrong: {self.schedule.patches} patches of an image of {height}x{width} px")
        method = methods.built_in(self.method)  # another package's has to be imported before it can tell
        if method is not None:
            try:
                method.settle(self.options)
            except UsageError as error:
                raise ArtifactError(f"{what} is wrong at $.options: {error.message}") from error


def _brought_up(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was written before methods had options, as it is written now: U of eq. 7 stood by itself."""
    if "temperature" not in data or "options" in data:
        return data
    slims = methods.role_of(str(data.get("method"))) == methods.SLIMMED
    return {**data, "options": {"temperature": data["temperature"]} if slims else {}}


def model_name(
    backbone: str,
    method: methods.Method,
    schedule: Schedule,
    *,
    options: Mapping[str, Any] | None = None,
    ordering: str = "",
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> str:
    """The folder that an export of this model goes to, e.g. ``deit_s-life-r0.7`` or ``deit_s-life-127.95.63``.

    ``image_size`` is given where it is not the backbone's own, ``ordering`` of the graph where there is a graph.
    """
    parts = [backbone.replace("/", "_"), method.name]
    if schedule.drop_layers:
        rate = schedule.keep_rate
        if rate is not None:
            parts.append(f"r{rate:g}")
        elif method.takes_counts:  # else its options say them
            parts.append(".".join(map(str, schedule.counts)))
        if schedule.drop_layers != method.default_drop_layers(schedule.depth):
            parts.append("after" + ".".join(map(str, schedule.drop_layers)))
    if changed := method.label(options or {}):
        parts.append(changed)
    if ordering not in ("", method.orderings[0]):
        parts.append(ordering)
    if image_size is not None:
        parts.append("x".join(map(str, image_size)) + "px")
    if batch_size is not None:
        parts.append(f"b{batch_size}")
    return "-".join(parts)
