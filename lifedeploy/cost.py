"""Work in multiply-accumulates (MACs): what a backbone costs by place, and how many tokens a method lets through there.

Counted: patch embedding, qkv, QKᵀ, AV, proj, MLP, head, and what a method spends on choosing tokens. Normalisation,
softmax and activations are not MACs and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lifedeploy.schedule import Schedule


@dataclass(frozen=True)
class Work:
    """What a method computes under a schedule: patch tokens in each place of each layer, and its own scoring.

    Tokens that are no single patch any more (fused, merged) count as patch tokens; prefix tokens do not. Attention and
    MLP of one layer differ where a method drops between the two.
    """

    attention: tuple[int, ...]  # patch tokens that layer t attends to: their keys and values
    mlp: tuple[int, ...]  # patch tokens in its MLP
    scoring: int = 0  # MACs of one image that the method spends on choosing, fusing and merging tokens
    queries: tuple[int, ...] = ()  # patch tokens that attend there; (): all that are attended to

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

    @property
    def attending(self) -> tuple[int, ...]:
        """Patch tokens that attend in layer t: their queries."""
        return self.queries or self.attention

    def with_prefix_block(self) -> Work:
        """The same where the last block computes prefix tokens alone: its patch tokens are keys and values."""
        return replace(self, queries=(*self.attending[:-1], 0), mlp=(*self.mlp[:-1], 0))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """MACs of a backbone, per place; together with a :class:`Work` they give exact totals of one image."""

    embed: int  # the whole image
    keys: tuple[int, ...]  # per token that layer t attends to: K and V
    queries: tuple[int, ...]  # per token that attends there: Q and proj
    pairs: tuple[int, ...]  # per pair of the two: QKᵀ and AV
    mlp: tuple[int, ...]  # per token in the MLP of layer t
    head: int
    prefix: int  # tokens that are never dropped
    width: int  # channels C of a token
    heads: int  # of its attention, C / heads channels each

    def per_layer(self, work: Work) -> tuple[int, ...]:
        """MACs of every layer."""
        layers = zip(
            *(self.keys, self.queries, self.pairs, self.mlp, work.attention, work.attending, work.mlp), strict=True
        )
        prefix = self.prefix
        return tuple(
            key * (prefix + attended)
            + query * (prefix + attending)
            + pair * (prefix + attended) * (prefix + attending)
            + mlp * (prefix + in_mlp)
            for key, query, pair, mlp, attended, attending, in_mlp in layers
        )

    def total(self, work: Work) -> int:
        """MACs of one image."""
        return self.embed + sum(self.per_layer(work)) + work.scoring + self.head
