"""A model as it is asked for, and as it comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from lifedeploy import methods
from lifedeploy.errors import ScheduleError
from lifedeploy.model import backbones
from lifedeploy.model.blocks import adapted
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec, Provenance

DEFAULT_KEEP_RATE = 0.7


@dataclass(frozen=True)
class ModelRequest:
    """What model is wanted. What is not said of its schedule is the weights' own, else that of keep rate 0.7."""

    backbone: str
    keep_rate: float | None = None
    counts: tuple[int, ...] | None = None
    drop_layers: tuple[int, ...] | None = None
    method: str = methods.DEFAULT
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method; what is not said is the weights' own
    weights: str = "auto"
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    new_head: bool = False  # for training: weights of another number of classes get a new head, else are refused
    # (height, width) that a file's position embeddings are of, where the file does not say
    weights_image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for size in (self.image_size, self.weights_image_size):
            backbones.require_sizes(size, self.num_classes)
        methods.get(self.method).settle(self.options)

    def all_options(self, own: ModelSpec | None = None) -> dict[str, methods.Option]:
        """All options of the method: those asked for, else those of the weights' ``own`` spec, else the usual ones."""
        known = own.options if own is not None and own.method == self.method else {}
        return methods.get(self.method).plain_options({**known, **self.options})

    def schedule(
        self, patches: int, depth: int, own: Schedule | None = None, options: Mapping[str, Any] | None = None
    ) -> Schedule:
        """The schedule asked for, on a backbone of this size; what is not asked for is that of the weights' ``own``.

        ``options`` are all of the method's (:meth:`all_options`); those asked for where none are given.

        Raises:
            ScheduleError: it cannot be, or the weights' own counts are of another number of patches.
        """
        method = methods.get(self.method)
        make = partial(method.make_schedule, patches, depth, options=self.options if options is None else options)
        if self.keep_rate is not None and not method.takes_keep_rate:
            raise ScheduleError(f"{self.method} has a budget of its own and takes no keep rate")
        layers = self.drop_layers
        if own is None or not own.drop_layers:
            own = None
        elif layers is None and (self.counts is None or len(self.counts) == len(own.drop_layers)):
            layers = own.drop_layers  # lives are predicted after the first of them, and were trained there
        if self.counts is not None:
            return make(counts=self.counts, drop_layers=layers)
        by_counts = own is not None and own.keep_rate is None and method.takes_counts
        if self.keep_rate is None and own is not None and by_counts:
            if own.patches != patches:
                raise ScheduleError(
                    f"the weights' own counts, {', '.join(map(str, own.counts))}, are of {own.patches} patches, and "
                    f"{patches} are asked for",
                    hint="--rho or --counts says what is to be kept",
                )
            return make(counts=own.counts, drop_layers=layers)
        usual = DEFAULT_KEEP_RATE if own is None or own.keep_rate is None else own.keep_rate
        return make(keep_rate=usual if self.keep_rate is None else self.keep_rate, drop_layers=layers)


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
    vit: nn.Module,
    provenance: Provenance,
    classes: tuple[str, ...],
    own: ModelSpec | None = None,
) -> ModelSpec:
    """The spec of the model that ``request`` makes of ``vit``, whose weights may have a spec of their ``own``.

    Raises:
        UsageError: the method takes no such schedule or options, or not this backbone.
    """
    method, view = methods.get(request.method), adapted(vit)
    method.require_prefix(view.prefix, request.backbone)
    if method.role == methods.SLIMMED and not method.trains_reducer:
        provenance = replace(provenance, predictor="none")
    options = request.all_options(own)
    return ModelSpec(
        backbone=request.backbone,
        timm_name=backbones.timm_name(request.backbone),
        method=method.name,
        schedule=request.schedule(view.patches, view.depth, own.schedule if own else None, options),
        preprocess=backbones.preprocess_of(vit, request.image_size),
        num_classes=view.classes,
        prefix_tokens=view.prefix,
        provenance=provenance,
        classes=classes,
        options=options,
    )


def imagenet_names(num_classes: int) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, where that is plainly what the head has."""
    if num_classes != 1000:
        return ()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(1000))
