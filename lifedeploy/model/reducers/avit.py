"""``avit``: tokens say themselves, layer by layer, when they have seen enough; and its scores under a fixed budget.

Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer" (CVPR 2022), section 3. After every layer a token
halts with the probability h = sigmoid(γ x - β), x its first channel, so nothing is added to the backbone; at the last
layer h is 1. Once its probabilities add up to 1 - ε it takes no further part. What classes are read from is the mean of
a token's outputs over its layers, each weighted by h, the last one by what is left of 1 (adaptive computation time).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.blocks import Backbone
from lifedeploy.model.reducers.base import Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule

EPSILON = 0.01
_MASKED = -30000.0  # added to a logit, nothing is left of its weight; half precision has this number
_SUMS = "halting"  # of each token: its probabilities so far
_LOG_SUMS = "log halting"
_PREFIX_SUMS = "halting of prefix tokens"
_OUTPUT = "output of prefix tokens"
_LAYERS = "layers"  # of each token: in how many it took part
_PUBLISHED_CENTER = {192: 30.0}  # channels → β; of wider models 75


class _Adaptive(Reducer):
    """What both share: halting probabilities, and the weighted mean of outputs."""

    def __init__(self, schedule: Schedule, scale: float, center: float) -> None:
        super().__init__(schedule)
        self.scale = scale
        self.center = center

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        published = _PUBLISHED_CENTER.get(plan.width, 75.0)
        return cls(plan.schedule, plan.options.scale, plan.options.center or published)

    def logit(self, x: Tensor) -> Tensor:
        """γ x - β of tokens: (B, L, C) → (B, L)."""
        return x[..., 0] * self.scale - self.center

    def halting(self, layer: int, x: Tensor) -> Tensor:
        """h of tokens after a layer: (B, L, C) → (B, L)."""
        return torch.ones_like(x[..., 0]) if layer == self.schedule.depth else self.logit(x).sigmoid()

    def with_output(self, tokens: Tokens, before: Tensor, halting: Tensor) -> Tokens:
        """Add to the output of prefix tokens what a layer gave, by the probabilities ``before`` it and its own: (B, P).

        Of patches nothing is read, so nothing is added up.
        """
        x = tokens.x[:, : tokens.prefix]
        weight = act_weight(before, halting)[..., None] * x
        known = tokens.carry.get(_OUTPUT)
        return tokens.but(carry={**tokens.carry, _OUTPUT: weight if known is None else known + weight})

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        """Of the mean of outputs.

        Raises:
            UnsupportedModelError: the backbone pools patches.
        """
        if not backbone.reads_prefix_alone:
            raise UnsupportedModelError("A-ViT reads classes from CLS, and this backbone pools patches")
        return backbone.classify(tokens.but(x=tokens.carry[_OUTPUT]))

    def at(self, schedule: Schedule) -> Self:
        return type(self)(schedule, self.scale, self.center)


def act_weight(before: Tensor, halting: Tensor) -> Tensor:
    """How much a layer's output counts: h, or what is left of 1 where that halts a token; of a halted one nothing."""
    after = before + halting
    weight = torch.where(after < 1 - EPSILON, halting, 1 - before)
    return torch.where(before < 1 - EPSILON, weight, 0)


class AvitReducer(_Adaptive):
    """As published: tokens that halted are masked. Nothing gets faster by it."""

    sorts = 0

    def begin(self, tokens: Tokens) -> Tokens:
        none = torch.zeros_like(tokens.x[..., 0])
        return tokens.but(beside={_SUMS: none, _LAYERS: none})

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Add up, and mask for the next layer what has halted."""
        before, layers = tokens.beside[_SUMS], tokens.beside[_LAYERS]
        halting = self.halting(layer, tokens.x)
        tokens = self.with_output(tokens, before[:, : tokens.prefix], halting[:, : tokens.prefix])
        layers = layers + (before < 1 - EPSILON).to(layers.dtype)
        after = before + halting
        bias = torch.where(after < 1 - EPSILON, 0.0, _MASKED).to(tokens.x.dtype)
        return tokens.but(
            key_bias=bias[:, None, None, :],
            beside={_SUMS: after, _LAYERS: layers},
            scores=layers[:, tokens.prefix :],
        )

    def lives(self, tokens: Tokens) -> Tensor | None:
        """In how many layers each patch took part."""
        return None if tokens.scores is None else tokens.scores.float()


class AvitRankedReducer(_Adaptive):
    """Keeps at every drop the patches that have the least probability of having halted so far."""

    def __init__(self, schedule: Schedule, scale: float, center: float) -> None:
        super().__init__(schedule, scale, center)
        self.take = nn.ModuleDict({str(layer): TakeOrdered(schedule.after(layer)) for layer in schedule.leaving_layers})
        self.sorts = len(self.take)

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Add up, and drop."""
        prefix = tokens.x[:, : tokens.prefix]
        before = tokens.carry.get(_PREFIX_SUMS)
        before = torch.zeros_like(prefix[..., 0]) if before is None else before
        halting = self.halting(layer, prefix)
        tokens = self.with_output(tokens, before, halting)
        tokens = tokens.but(carry={**tokens.carry, _PREFIX_SUMS: before + halting})
        if layer > max(map(int, self.take), default=0):
            return tokens  # who stays is decided
        sums = self._log_sums(tokens)
        if str(layer) not in self.take:
            return tokens.but(beside={_LOG_SUMS: sums})
        kept: Tokens
        kept, _ = self.take[str(layer)](tokens.but(beside={_LOG_SUMS: sums}), -sums[:, tokens.prefix :])
        return kept

    def _log_sums(self, tokens: Tokens) -> Tensor:
        """Of each token the logarithm of its probabilities so far: (B, P + n).

        Far from halting they are smaller than any number that is no zero, and would all be the same.
        """
        logit = self.logit(tokens.x)
        latest = -log_of_sum(torch.zeros_like(logit), -logit)  # log sigmoid
        known = tokens.beside.get(_LOG_SUMS)
        return latest if known is None else log_of_sum(known, latest)


def log_of_sum(first: Tensor, second: Tensor) -> Tensor:
    """log(e^a + e^b), as every engine computes it: sigmoid, which torch exports log sigmoid by, ends early in some."""
    return torch.maximum(first, second) + (1 + (-(first - second).abs()).exp()).log()
