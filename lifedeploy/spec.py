"""What a model is, apart from its weights: the facts that a checkpoint, an ONNX file and an engine all carry.

Everything here turns into JSON and back, and nothing here needs a framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lifedeploy.errors import ArtifactError, ScheduleError
from lifedeploy.schedule import Schedule

METHODS = ("life", "dense", "first-k")
GRAPHS = ("order-once", "per-stage")
QUANTIZED = ("int8", "fp8")  # precisions that need calibration

# How a graph shows attention: MatMul → Softmax → MatMul, one Attention operator (ONNX, opset 23), or ONNX Runtime's own
# operator for it (com.microsoft.MultiHeadAttention, a "contrib" operator, which no other runtime reads).
ATTENTIONS = ("products", "operator", "contrib")
STANDARD_ATTENTIONS = ("products", "operator")

# Inner tensors that every form of a life model can be asked for, under these names.
ORDER_NAME = "life_order"  # (B, n_{t_base+1}), original patch numbers, longest life first
SCORES_NAME = "life_scores"  # (B, N), the score of every patch in original order; lives are its standardised form


@dataclass(frozen=True)
class GraphForm:
    """The form of the ONNX graph that a runtime is given: as exported, unless it asks for another one."""

    precision: str = "fp32"  # of the tensors in it; inputs and outputs are FP32 in any case
    attention: str = "products"
    with_order: bool = False  # the ranking of the tokens as a further output

    @property
    def as_exported(self) -> bool:
        """Whether there is nothing to change."""
        return self == GraphForm()


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image file becomes the model's input. Names and meaning are timm's data config."""

    image_size: tuple[int, int]  # (height, width) in pixels
    crop_pct: float = 0.9
    crop_mode: str = "center"  # or "squash"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Provenance:
    """Where weights came from.

    ``weights`` is ``random``, ``pretrained`` (timm's), ``trained`` (by lifedeploy) or ``file``; ``predictor`` is
    ``identity`` (its starting point, never trained) or ``trained``.
    """

    weights: str
    source: str = ""
    sha256: str = ""
    predictor: str = "identity"
    elastic: bool = False  # trained at many keep rates: good at any


@dataclass(frozen=True)
class ModelSpec:
    """One model: backbone, method, schedule, input and classes."""

    backbone: str  # as given: a short name or a timm name
    timm_name: str
    method: str
    schedule: Schedule
    preprocess: PreprocessSpec
    num_classes: int
    prefix_tokens: int
    provenance: Provenance
    temperature: float = 1.5  # U of eq. 7, used in training only
    classes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.preprocess.image_size

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            ArtifactError: a fact is missing or of another kind.
        """
        try:
            schedule = data["schedule"]
            preprocess = dict(data["preprocess"])
            for name in ("image_size", "mean", "std"):
                preprocess[name] = tuple(preprocess[name])
            return cls(
                backbone=data["backbone"],
                timm_name=data["timm_name"],
                method=data["method"],
                schedule=Schedule(tuple(schedule["tokens"]), tuple(schedule["drop_layers"]), schedule.get("keep_rate")),
                preprocess=PreprocessSpec(**preprocess),
                num_classes=data["num_classes"],
                prefix_tokens=data["prefix_tokens"],
                provenance=Provenance(**data["provenance"]),
                temperature=data.get("temperature", 1.5),
                classes=tuple(data.get("classes", ())),
            )
        except (KeyError, TypeError, ValueError, ScheduleError) as error:
            raise ArtifactError(f"the model's description is incomplete: {error}") from error


def model_name(
    backbone: str,
    method: str,
    schedule: Schedule,
    *,
    graph: str = "order-once",
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> str:
    """The folder that an export of this model goes to, e.g. ``deit_s-life-r0.7`` or ``deit_s-life-127.95.63``.

    ``image_size`` is given where it is not the backbone's own.
    """
    parts = [backbone.replace("/", "_"), method]
    if schedule.drop_layers:
        rate = schedule.keep_rate
        parts.append(f"r{rate:g}" if rate is not None else ".".join(map(str, schedule.counts)))
        default_layers = Schedule.from_keep_rate(schedule.patches, schedule.depth, 1.0).drop_layers
        if schedule.drop_layers != default_layers:
            parts.append("after" + ".".join(map(str, schedule.drop_layers)))
    if graph != "order-once":
        parts.append(graph)
    if image_size is not None:
        parts.append("x".join(map(str, image_size)) + "px")
    if batch_size is not None:
        parts.append(f"b{batch_size}")
    return "-".join(parts)
