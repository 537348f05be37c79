"""Work in multiply-accumulates (MACs): what a backbone costs by place, and how many tokens a method lets through there.

Counted: patch embedding, qkv, QKᵀ, AV, proj, MLP, head, and what a method spends on choosing tokens. Normalisation,
softmax and activations are not MACs and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class Work:
    """What a method computes under a schedule: patch tokens in each place of each layer, and its own scoring.

    Tokens that are no single patch any more (fused, merged) count as patch tokens; prefix tokens do not. Attention and
    MLP of one layer differ where a method drops between the two.
    """

    attention: tuple[int, ...]  # patch tokens in the attention of layer t
    mlp: tuple[int, ...]  # patch tokens in its MLP
    scoring: int = 0  # MACs of one image that the method spends on choosing, fusing and merging tokens

    @classmethod
    def of(cls, schedule: Schedule, scoring: int = 0) -> Work:
        """The work of a method that drops between layers: all of a layer's tokens take part in all of it."""
        return cls(schedule.tokens, schedule.tokens, scoring)

    @classmethod
    def inside(cls, schedule: Schedule, scoring: int = 0) -> Work:
        """The work of a method that drops between attention and MLP: the MLP of a drop layer has fewer tokens."""
        return cls(schedule.tokens, tuple(map(schedule.after, range(1, schedule.depth + 1))), scoring)

    @classmethod
    def dense(cls, schedule: Schedule) -> Work:
        """The work of a method that drops nothing, whatever the schedule says."""
        return cls.of(Schedule.dense(schedule.patches, schedule.depth))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """MACs of a backbone, per place; together with a :class:`Work` they give exact totals of one image."""

    embed: int  # the whole image
    projections: tuple[int, ...]  # per token in the attention of layer t: qkv and proj
    pairs: tuple[int, ...]  # per pair of tokens there: QKᵀ and AV
    mlp: tuple[int, ...]  # per token in the MLP of layer t
    head: int
    prefix: int  # tokens that are never dropped
    width: int  # channels C of a token
    heads: int  # of its attention, C / heads channels each

    def per_layer(self, work: Work) -> tuple[int, ...]:
        """MACs of every layer."""
        places = zip(self.projections, self.pairs, self.mlp, work.attention, work.mlp, strict=True)
        return tuple(
            projection * (self.prefix + in_attention)
            + pair * (self.prefix + in_attention) ** 2
            + mlp * (self.prefix + in_mlp)
            for projection, pair, mlp, in_attention, in_mlp in places
        )

    def total(self, work: Work) -> int:
        """MACs of one image."""
        return self.embed + sum(self.per_layer(work)) + work.scoring + self.head
