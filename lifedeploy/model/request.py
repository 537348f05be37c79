"""A model as it is asked for, and as it comes out."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from lifedeploy.errors import UsageError
from lifedeploy.model import backbones
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance

DEFAULT_KEEP_RATE = 0.7
DEFAULT_TEMPERATURE = 1.5


@dataclass(frozen=True)
class ModelRequest:
    """What model is wanted. With neither ``keep_rate`` nor ``counts``, the schedule of the weights' own, else ρ 0.7."""

    backbone: str
    keep_rate: float | None = None
    counts: tuple[int, ...] | None = None
    drop_layers: tuple[int, ...] | None = None
    method: str = "life"
    weights: str = "auto"
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    temperature: float | None = None  # U of eq. 7; None: the weights' own, else 1.5
    new_head: bool = False  # for training: weights of another number of classes get a new head, else are refused
    # (height, width) that a file's position embeddings are of, where the file does not say
    weights_image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 0:
            raise UsageError(
                f"{self.num_classes} classes are not allowed: expected at least 1, or 0 for a model without a head"
            )

    def schedule(self, patches: int, depth: int) -> Schedule:
        """The schedule asked for, on a backbone of this size."""
        if self.counts is not None:
            return Schedule.from_counts(patches, depth, self.counts, self.drop_layers)
        keep_rate = DEFAULT_KEEP_RATE if self.keep_rate is None else self.keep_rate
        return Schedule.from_keep_rate(patches, depth, keep_rate, self.drop_layers)


@dataclass(frozen=True)
class LoadedModel:
    """A model with weights in it. ``warning`` is set where the weights are not what one would hope for."""

    model: SlimViT
    spec: ModelSpec
    warning: str = ""
    notes: tuple[str, ...] = ()  # what was recognised in a file, and what was taken for granted


def describe(
    request: ModelRequest, vit: VisionTransformer, provenance: Provenance, classes: tuple[str, ...]
) -> ModelSpec:
    """The spec of the model that ``request`` makes of ``vit``."""
    return ModelSpec(
        backbone=request.backbone,
        timm_name=backbones.timm_name(request.backbone),
        method=request.method,
        schedule=request.schedule(vit.patch_embed.num_patches, len(vit.blocks)),
        preprocess=backbones.preprocess_of(vit, request.image_size),
        num_classes=vit.num_classes,
        prefix_tokens=vit.num_prefix_tokens,
        provenance=provenance,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        classes=classes,
    )


def imagenet_names(num_classes: int) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, where that is plainly what the head has."""
    if num_classes != 1000:
        return ()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(1000))
