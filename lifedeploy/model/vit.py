"""The slimmable ViT: a timm ViT whose blocks run with a token reducer at their seams."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from lifedeploy import methods
from lifedeploy.errors import UnsupportedModelError, UsageError
from lifedeploy.model.blocks import Backbone, adapted
from lifedeploy.model.reducers import Plan, Reducer, build_reducer
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec


class SlimOutput(NamedTuple):
    """What one forward pass gives. B images, N patches, n_t patch tokens that go on to layer t."""

    logits: Tensor  # (B, classes)
    # Drop layer t → (B, n_{t+1}): original indices of the tokens that go on, -1 for one that is no single patch; of
    # those drop layers alone that a method chose tokens by.
    kept: dict[int, Tensor]
    lives: Tensor | None  # (B, N), in layers, original order; None where the method predicts none
    scores: Tensor | None  # (B, N), importance in original order, where the method scores once
    groups: Tensor | None  # (B, N), the patch whose token stands for each patch, where the method merges tokens
    # (B, P + n, C), as the last layer leaves them; those that were parked have come back. (B, P, C) of a prefix block.
    tokens: Tensor
    survivors: Tensor | None  # (B, n), original indices of these, -1 for what is no single patch; None: all, in order
    alive: Tensor | None  # (B, N), of a relaxed form: 1 where a patch would have reached the last layer; None: all have
    loss_inputs: dict[str, Tensor]  # what the method's loss needs beside the logits


class SlimViT(nn.Module):
    """A ViT and a reducer: hard forward for inference, soft forward for training.

    Raises:
        UnsupportedModelError: the backbone is of no family that is known, or the method works between attention and
            MLP, and a block of it has no such place.
    """

    def __init__(self, backbone: nn.Module, reducer: Reducer) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.reducer = reducer
        for layer in sorted(reducer.inside_layers):
            if not self.adapted.has_inside(layer):
                block = type(self.adapted.blocks[layer - 1]).__name__
                raise UnsupportedModelError(
                    f"{type(reducer).__name__} works between attention and MLP, and {block} has no such place"
                )

    @property
    def adapted(self) -> Backbone:
        """The backbone as the package sees it."""
        return adapted(self.backbone)

    @property
    def schedule(self) -> Schedule:
        """Tokens per layer."""
        return self.reducer.schedule

    def forward(
        self, images: Tensor, *, soft: bool = False, schedule: Schedule | None = None, progress: float = 0.0
    ) -> SlimOutput:
        """Classify normalised images (B, 3, H, W).

        Hard, tokens leave. ``soft``, for training: in the method's differentiable form, if it has one, as it is when
        ``progress`` of a stage is done. Under the model's own schedule, or another ``schedule``.
        """
        if soft:
            return self._walk(images, self.reducer.relaxed(schedule or self.schedule).during(progress))
        return self._walk(images, self.reducer if schedule is None else self.reducer.at(schedule))

    def with_prefix_block(self) -> SlimViT:
        """The same model for inference, its last block computing prefix tokens alone, over the same weights.

        What leaves in that block no token is read of any more, so nothing is dropped there.

        Raises:
            UnsupportedModelError: the backbone needs all tokens there; or the method has to choose in that block, or
                cannot do without the choice.
        """
        schedule = self.schedule.without_last_drop()
        reducer = self.reducer if schedule == self.schedule else self.reducer.at(schedule)
        return SlimViT(self.adapted.with_prefix_block(), reducer).train(self.training)

    def _walk(self, images: Tensor, reducer: Reducer) -> SlimOutput:
        backbone = self.adapted
        kept: dict[int, Tensor] = {}
        tokens = reducer("begin", backbone.embed(images))
        for layer in range(1, backbone.depth + 1):
            tokens = reducer("before_block", layer, tokens)
            kept |= _kept(reducer, layer - 1, tokens)
            inside = partial(reducer, "inside_block", layer) if layer in reducer.inside_layers else None
            tokens = backbone.run_block(layer, tokens, inside)
            tokens = reducer("after_block", layer, tokens)  # (B, P + n_{t+1}, C)
        kept |= _kept(reducer, backbone.depth, tokens)
        logits = reducer.logits(backbone, tokens)
        return SlimOutput(
            logits=logits,
            kept=kept,
            lives=reducer("lives", tokens),
            scores=tokens.scores,
            groups=tokens.groups,
            tokens=tokens.x,
            survivors=tokens.positions,
            alive=reducer.alive(tokens),
            loss_inputs=reducer.loss_inputs(tokens),
        )


def _kept(reducer: Reducer, layer: int, tokens: Tokens) -> dict[int, Tensor]:
    """The original indices of the tokens that go on after a drop layer, where a method has said any.

    Raises:
        UsageError: the reducer says of other numbers of tokens where they come from than there are.
    """
    if layer not in reducer.schedule.drop_layers or tokens.positions is None:
        return {}
    positions = tokens.original
    if positions.shape[1] != tokens.patches:
        raise UsageError(
            f"after layer {layer} the reducer has {tokens.patches} patch tokens, and positions of {positions.shape[1]}"
        )
    return {layer: positions}


def build_model(backbone: nn.Module, spec: ModelSpec, *, ordering: str = "") -> SlimViT:
    """The slimmable ViT that ``spec`` describes, over ``backbone``; its graph in the method's usual form, or another.

    Raises:
        UsageError: the method is not known here, or cannot do what the spec says.
        UnsupportedModelError: it cannot be applied to this backbone.
    """
    method, view = methods.get(spec.method), adapted(backbone)
    method.require_prefix(view.prefix, spec.backbone)
    options = method.settle(spec.options)
    plan = Plan(
        schedule=spec.schedule,
        width=view.width,
        heads=view.heads,
        prefix=view.prefix,
        ordering=ordering or method.orderings[0],
        options=options,
    )
    return SlimViT(backbone, build_reducer(method, plan)).eval()
