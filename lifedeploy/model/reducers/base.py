"""The seam between a ViT and a method that reduces its tokens.

The model walks its blocks and offers every block's seams to the reducer, in this order::

    begin → [before_block(t) → attention → inside_block(t) → MLP → after_block(t)] for t = 1…T → logits

A method overrides the seams it needs and leaves the rest. ``inside_block`` is offered only for the layers in
``inside_layers``: only there is a block taken apart, everywhere else it runs whole. What each kind of method needs:

====================================================  ==========================================================
scores before a block with parameters of its own      ``before_block``
scores from the CLS row of a block's attention        ``inside_layers``, :meth:`BlockAttention.cls_row`
drops or merges between attention and MLP             ``inside_block``
weights the keys of later attention                   ``Tokens.key_bias``
carries something of each token, as its size          ``Tokens.beside``
lets tokens wait, and brings them back                :meth:`Tokens.park`, :meth:`Tokens.unpark`
carries running scores                                ``Tokens.carry``
says which tokens became one                          ``Tokens.groups``
reads the classes from something else than CLS        ``logits``
predicts lives                                        ``lives``
trains in another form than it is deployed in         ``relaxed``, :meth:`Reducer.during`, ``alive``
needs modules in training that it is deployed without ``equip``
trains by more than the loss of its logits            ``loss_inputs``, ``labelled``, ``penalty``
====================================================  ==========================================================

Token selection is a function of tensors and integers; every count is known before tracing: what goes on to layer
t + 1 is ``schedule.after(t)`` patch tokens, fused ones among them, and is there when ``before_block(t + 1)`` is done,
or, of the last layer, ``after_block(T)``; parked ones may have come back by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.blocks import Backbone
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.options import NoOptions
from lifedeploy.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a reducer is built for."""

    schedule: Schedule
    width: int  # channels C of a token
    heads: int  # of its attention
    prefix: int  # tokens in front that are never dropped, P
    ordering: str = "order-once"  # of the graph, or "per-stage"
    options: Any = field(default_factory=NoOptions)  # of the method's own class


class Reducer(nn.Module):
    """A token-reduction method. The base class reduces nothing.

    ``sorts`` says how often tokens are sorted in one inference: as many TopK nodes, and Gathers fed by them, does
    its graph have. None: not said, and not checked.
    """

    sorts: int | None = None
    knows_schedule = True  # whether its relaxed form depends on the schedule
    turns = 1  # parts of what it trains that do so one after the other, each for as much of a stage

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.train_only = nn.ModuleDict()  # what training alone has: trained with the backbone, and in no checkpoint

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The method's reducer for a plan.

        Raises:
            UsageError: the method cannot do what the plan says.
        """
        return cls(plan.schedule)

    @property
    def inside_layers(self) -> frozenset[int]:
        """Layers whose block is taken apart for :meth:`inside_block`."""
        return frozenset()

    def forward(self, seam: str, *arguments: Any) -> Any:
        """Offer a seam: the method of that name.

        The model calls its reducer as a module, so that whatever a method computes is traced in its scope. That is how
        a graph tells what belongs to choosing tokens: it stays in FP32 and is never quantised (exporters/ranking.py).
        """
        return getattr(self, seam)(*arguments)

    def begin(self, tokens: Tokens) -> Tokens:
        """Before the first block."""
        return tokens

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Before block ``layer``."""
        return tokens

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Between attention (its residual added) and MLP of block ``layer``."""
        raise NotImplementedError(f"{type(self).__name__} lists layer {layer} in inside_layers: it has to say why")

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """After block ``layer``."""
        return tokens

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        """Final norm and head: (B, classes)."""
        return backbone.classify(tokens)

    def lives(self, tokens: Tokens) -> Tensor | None:
        """Life of every patch in original order, in layers, at the end: (B, N); None: the method predicts none."""
        return None

    def at(self, schedule: Schedule) -> Reducer:
        """The same method with the same parameters under another schedule.

        Raises:
            UnsupportedModelError: the method cannot change its schedule.
        """
        if schedule == self.schedule:
            return self
        raise UnsupportedModelError(
            f"{type(self).__name__} is built for one schedule and cannot change it",
            hint="train it without --elastic or --keep-ramp",
        )

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The differentiable reducer used in training, under ``schedule``; for a method that has none, :meth:`at`."""
        return self.at(schedule)

    def during(self, progress: float) -> Reducer:
        """A relaxed reducer as it is when ``progress`` of a stage of training is done, from 0 to below 1."""
        return self

    def equip(self, backbone: Backbone) -> None:
        """Fill ``train_only``, once, before training."""

    def unused(self, backbone: Backbone) -> tuple[str, ...]:
        """Parameters of the backbone that the method has no use for, and that therefore do not train."""
        return ()

    def alive(self, tokens: Tokens) -> Tensor | None:
        """Of a form that keeps every token, at the end: which patches would have reached the last layer, 1 or 0 each,
        (B, N); None: all, or those that are there.
        """
        return None

    def loss_inputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """At the end: what :meth:`labelled` and :meth:`penalty` need beside logits."""
        return {}

    def labelled(
        self, logits: Tensor, loss_inputs: Mapping[str, Tensor], criterion: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The loss against labels, where ``criterion`` is that of logits (B, classes)."""
        return criterion(logits)

    def penalty(self, loss_inputs: Mapping[str, Tensor], right: Tensor) -> Tensor | None:
        """What a relaxed form adds to the loss, whether labels or a teacher have the rest of it; None: nothing.

        ``right`` (B,) says of which images the most probable class is the label.
        """
        return None


class KeepPrefix(nn.Module):
    """Keep the first ``kept`` patch tokens. A module, so that its Slice carries its name in an exported graph."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.first(self.kept)


class TakeOrdered(nn.Module):
    """Prefix tokens, then the ``kept`` best-scored patch tokens in descending score: one TopK, one Gather."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, tokens: Tokens, scores: Tensor) -> tuple[Tokens, Tensor]:
        """Tokens, and their scores (B, n) → those that are kept, and theirs (B, kept)."""
        best = scores.topk(self.kept, dim=1, sorted=True)
        return tokens.take(best.indices), best.values
