"""A model as it is asked for, and as it comes out."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.model import backbones
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance

DEFAULT_KEEP_RATE = 0.7
DEFAULT_TEMPERATURE = 1.5


@dataclass(frozen=True)
class ModelRequest:
    """What model is wanted. What is not said of its schedule is the weights' own, else that of keep rate 0.7."""

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
        for size in (self.image_size, self.weights_image_size):
            backbones.require_sizes(size, self.num_classes)
        if self.temperature is not None and not 0.001 <= self.temperature <= 1000:
            raise UsageError(f"temperature is {self.temperature:g}; expected 0.001 to 1000")

    def schedule(self, patches: int, depth: int, own: Schedule | None = None) -> Schedule:
        """The schedule asked for, on a backbone of this size; what is not asked for is that of the weights' ``own``.

        Raises:
            ScheduleError: it cannot be, or the weights' own counts are of another number of patches.
        """
        layers = self.drop_layers
        if own is None or not own.drop_layers:
            own = None
        elif layers is None and (self.counts is None or len(self.counts) == len(own.drop_layers)):
            layers = own.drop_layers  # lives are predicted after the first of them, and were trained there
        if self.counts is not None:
            return Schedule.from_counts(patches, depth, self.counts, layers)
        if self.keep_rate is None and own is not None and own.keep_rate is None:
            if own.patches != patches:
                raise ScheduleError(
                    f"the weights' own counts, {', '.join(map(str, own.counts))}, are of {own.patches} patches, and "
                    f"{patches} are asked for",
                    hint="--rho or --counts says what is to be kept",
                )
            return Schedule.from_counts(patches, depth, own.counts, layers)
        usual = DEFAULT_KEEP_RATE if own is None or own.keep_rate is None else own.keep_rate
        return Schedule.from_keep_rate(patches, depth, usual if self.keep_rate is None else self.keep_rate, layers)


@dataclass(frozen=True)
class LoadedModel:
    """A model with weights in it. ``warning`` is set where the weights are not what one would hope for."""

    model: SlimViT
    spec: ModelSpec
    warning: str = ""
    notes: tuple[str, ...] = ()  # what was recognised in a file, and what was taken for granted
    new_head: bool = False  # drawn, as the weights have none of this number of classes


def describe(
    request: ModelRequest,
    vit: VisionTransformer,
    provenance: Provenance,
    classes: tuple[str, ...],
    own: Schedule | None = None,
) -> ModelSpec:
    """The spec of the model that ``request`` makes of ``vit``, whose weights may have a schedule of their ``own``."""
    return ModelSpec(
        backbone=request.backbone,
        timm_name=backbones.timm_name(request.backbone),
        method=request.method,
        schedule=request.schedule(vit.patch_embed.num_patches, len(vit.blocks), own),
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
