"""A model as it is asked for, and as it comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from lifedeploy import methods
from lifedeploy.budget import Sized, at_keep_rate
from lifedeploy.errors import ScheduleError, UsageError
from lifedeploy.method import Method
from lifedeploy.model import backbones
from lifedeploy.model.blocks import adapted
from lifedeploy.model.reducers import Plan, build_reducer
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import DEFAULT_KEEP_RATE, Schedule
from lifedeploy.spec import ModelSpec, Provenance
from lifedeploy.tuned import Tuned


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What model is wanted. What is not said of its schedule is the weights' own, else that of keep rate 0.7."""

    backbone: str
    keep_rate: float | None = None
    counts: tuple[int, ...] | None = None
    drop_layers: tuple[int, ...] | None = None
    tuned: Tuned | None = None  # that counts and drop layers are from
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

    def all_options(self, weights_spec: ModelSpec | None = None) -> dict[str, methods.Option]:
        """All options of the method: those asked for, else those in ``weights_spec``, else the usual ones."""
        method, known = methods.get(self.method), {}
        if weights_spec is not None and weights_spec.method == self.method:
            known = dict(weights_spec.options)
        elif weights_spec is not None and method.reads_files_of(weights_spec.method):
            known = {name: value for name, value in weights_spec.options.items() if name in method.usual_options}
        if self.keep_rate is not None:  # it is asked for, and says how many tokens go on
            known = method.without_budget(known)
        return method.plain_options({**known, **self.options})

    def schedule(
        self, patches: int, depth: int, trained: Schedule | None = None, options: Mapping[str, Any] | None = None
    ) -> Schedule:
        """The schedule asked for, on a backbone of this size; what is not asked for is as the weights were ``trained``.

        ``options`` are all of the method's (:meth:`all_options`); those asked for where none are given.

        Raises:
            ScheduleError: it cannot be, or the weights' own counts are of another number of patches.
        """
        method = methods.get(self.method)
        make = partial(method.make_schedule, patches, depth, options=self.options if options is None else options)
        layers = self.drop_layers
        if trained is None or not trained.drop_layers:
            trained = None
        elif layers is None and (self.counts is None or len(self.counts) == len(trained.drop_layers)):
            layers = trained.drop_layers  # lives are predicted after the first of them, and were trained there
        if self.counts is not None:
            return make(counts=self.counts, drop_layers=layers)
        if self.keep_rate is None and trained is not None and trained.keep_rate is None and method.takes_counts:
            if trained.patches != patches:
                raise ScheduleError(
                    f"the weights' own counts, {', '.join(map(str, trained.counts))}, are of {trained.patches} "
                    f"patches, and {patches} are asked for",
                    hint="--rho or --counts says what is to be kept",
                )
            return make(counts=trained.counts, drop_layers=layers)
        usual = None if method.own_budget else DEFAULT_KEEP_RATE
        if trained is not None and trained.keep_rate is not None and not method.gives_budget(self.options):
            usual = trained.keep_rate
        return make(keep_rate=usual if self.keep_rate is None else self.keep_rate, drop_layers=layers)


@dataclass(frozen=True, kw_only=True)
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
    weights_spec: ModelSpec | None = None,
) -> ModelSpec:
    """The spec of the model that ``request`` makes of ``vit``, whose weights may come with a spec.

    Raises:
        UsageError: the method takes no such schedule or options, or not this backbone; or the schedule is of another.
    """
    method, view = methods.get(request.method), adapted(vit)
    method.require_prefix(view.prefix, request.backbone)
    if method.role == methods.SLIMMED and not method.has_parameters:
        provenance = replace(provenance, predictor="none")
    options = request.all_options(weights_spec)
    other = methods.built_in(weights_spec.method) if weights_spec else None
    trained = weights_spec.schedule if weights_spec and method.keeps_schedule_of(other) else None
    spec = ModelSpec(
        backbone=request.backbone,
        timm_name=backbones.timm_name(request.backbone),
        method=method.name,
        schedule=request.schedule(view.patches, view.depth, trained, options),
        preprocess=backbones.preprocess_of(vit, request.image_size),
        num_classes=view.classes,
        prefix_tokens=view.prefix,
        provenance=provenance,
        classes=classes,
        options=options,
    )
    if request.tuned is not None:
        request.tuned.require_of(spec.timm_name, spec.image_size, spec.method)
    return spec


def imagenet_names(num_classes: int) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, where that is plainly what the head has."""
    if num_classes != 1000:
        return ()
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_descriptions())


def require_possible(method: Method, rate: float, backbone: Sized, name: str) -> None:
    """Make sure that a method can be applied to a backbone at a keep rate.

    Raises:
        UsageError, ScheduleError, UnsupportedModelError: it cannot; the method is named.
    """
    try:
        method.require_prefix(backbone.cost.prefix, name)
        budget, options = at_keep_rate(method, rate, backbone), method.plain_options({})
        schedule = backbone.schedule(method, budget.keep_rate, options)
        plan = Plan(
            schedule=schedule,
            width=backbone.cost.width,
            heads=backbone.cost.heads,
            prefix=backbone.cost.prefix,
            ordering=method.orderings[0],
            options=method.settle({}),
        )
        build_reducer(method, plan)
    except UsageError as error:
        if method.name in error.message:
            raise
        raise type(error)(f"{method.name}: {error.message}", hint=error.hint) from error
