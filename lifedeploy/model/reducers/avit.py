"""``avit``: tokens say themselves, layer by layer, when they have seen enough; and its scores under a fixed budget.

Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer" (CVPR 2022), section 3. After every layer a token
halts with the probability h = sigmoid(γ x - β), x its first channel, so nothing is added to the backbone; at the last
layer h is 1. Once its probabilities add up to 1 - ε it takes no further part. What classes are read from is the mean of
a token's outputs over its layers, each weighted by h, the last one by what is left of 1 (adaptive computation time).
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.blocks import Backbone
from lifedeploy.model.reducers.base import Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule

EPSILON = 0.01
_MASKED = -30000.0  # added to a logit, nothing is left of its weight; half precision has this number
_SUMS, _LAYERS = "halting", "layers"  # of each token: its probabilities so far; in how many layers it took part
_LOG_SUMS = "log halting"  # of each token, up to the last drop
_OUTPUT = "output"  # of prefix tokens, after each layer
_FIRST = "first channel"  # of patches, after each layer since the last drop
_PUBLISHED_CENTER = {192: 30.0}  # channels → β; of wider models 75


class _Adaptive(Reducer):
    """What both share: halting probabilities, and the weighted mean of outputs."""

    def __init__(self, schedule: Schedule, scale: float, center: float) -> None:
        super().__init__(schedule)
        self.scale = scale
        self.center = center

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        published, center = _PUBLISHED_CENTER.get(plan.width, 75.0), plan.options.gate_center
        return cls(plan.schedule, plan.options.gate_scale, published if center < 0 else center)

    def logit(self, first: Tensor) -> Tensor:
        """γ x - β of first channels x of any shape."""
        return first * self.scale - self.center

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        """Of the mean of prefix tokens over layers. Of patches nothing is read, so nothing is added up.

        All layers at once, at the end: after each of them it would be a dozen small operations.

        Raises:
            UnsupportedModelError: the backbone pools patches.
        """
        if not backbone.reads_prefix_alone:
            raise UnsupportedModelError("A-ViT reads classes from CLS, and this backbone pools patches")
        outputs = torch.stack(_noted(tokens, _OUTPUT), dim=2)  # (B, P, T, C)
        halting = self.logit(outputs[:, :, :-1, 0]).sigmoid()  # (B, P, T - 1); at the last layer it is 1
        weights = act_weights(F.pad(halting, (0, 1), value=1.0))[:, :, None]  # (B, P, 1, T)
        return backbone.classify(tokens.but(x=self("mean", weights, outputs)))

    def mean(self, weights: Tensor, outputs: Tensor) -> Tensor:
        """Of outputs, called as a seam: what the reducer multiplies is never quantised."""
        return (weights @ outputs).squeeze(2)

    def at(self, schedule: Schedule) -> Self:
        return type(self)(schedule, self.scale, self.center)


def act_weights(halting: Tensor) -> Tensor:
    """How much each layer's output counts, by the probabilities of halting there: (…, T) → (…, T), 1 in all.

    h, or what is left of 1 in the layer in which a token halts, and nothing after that.
    """
    before = F.pad(halting.cumsum(dim=-1)[..., :-1], (1, 0))
    weights = torch.where(before + halting < 1 - EPSILON, halting, 1 - before)
    return torch.where(before < 1 - EPSILON, weights, 0)


def _note(tokens: Tokens, what: str, layer: int, value: Tensor) -> Tokens:
    return tokens.but(carry={**tokens.carry, f"{what} {layer}": value})


def _noted(tokens: Tokens, what: str) -> list[Tensor]:
    """What was noted after each layer, first layer first."""
    return [value for name, value in tokens.carry.items() if name.startswith(what)]


class AvitReducer(_Adaptive):
    """As published: tokens that halted are masked. Nothing gets faster by it."""

    sorts = 0

    def begin(self, tokens: Tokens) -> Tokens:
        none = torch.zeros_like(tokens.x[..., 0])
        return self._counted(1, tokens.but(beside={_SUMS: none, _LAYERS: none}))

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Add up, and mask for the next layer what has halted."""
        tokens = _note(tokens, _OUTPUT, layer, tokens.x[:, : tokens.prefix])
        if layer == self.schedule.depth:
            return tokens
        sums = tokens.beside[_SUMS] + self.logit(tokens.x[..., 0]).sigmoid()
        bias = torch.where(sums < 1 - EPSILON, 0.0, _MASKED).to(tokens.x.dtype)
        masked = tokens.but(key_bias=bias[:, None, None, :], beside={**tokens.beside, _SUMS: sums})
        return self._counted(layer + 1, masked)

    def _counted(self, layer: int, tokens: Tokens) -> Tokens:
        """Count which tokens take part in ``layer``; before the last one all of it is known."""
        layers = tokens.beside[_LAYERS] + (tokens.beside[_SUMS] < 1 - EPSILON).to(tokens.x.dtype)
        scores = layers[:, tokens.prefix :] if layer == self.schedule.depth else None
        return tokens.but(beside={**tokens.beside, _LAYERS: layers}, scores=scores)

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
        """Note what halting is made of, and drop."""
        tokens = _note(tokens, _OUTPUT, layer, tokens.x[:, : tokens.prefix])
        if layer > max(map(int, self.take), default=0):
            return tokens  # who stays is decided
        tokens = _note(tokens, _FIRST, layer, tokens.x[..., 0])
        if str(layer) not in self.take:
            return tokens
        sums = self._log_sums(tokens)
        left = {name: value for name, value in tokens.carry.items() if not name.startswith(_FIRST)}
        kept: Tokens
        kept, _ = self.take[str(layer)](tokens.but(beside={_LOG_SUMS: sums}, carry=left), -sums[:, tokens.prefix :])
        return kept

    def _log_sums(self, tokens: Tokens) -> Tensor:
        """Of each token the logarithm of its probabilities so far: (B, P + n).

        Far from halting they are smaller than any number that is no zero, and would all be the same. log sigmoid(z) is
        min(z, 0) - log(1 + e^-|z|): as torch exports it, it ends where an engine's sigmoid does.
        """
        logits = self.logit(torch.stack(_noted(tokens, _FIRST), dim=1))  # (B, layers, P + n)
        each = logits.clamp(max=0) - (1 + (-logits.abs()).exp()).log()
        if _LOG_SUMS in tokens.beside:
            each = torch.cat((each, tokens.beside[_LOG_SUMS][:, None]), dim=1)
        largest = each.amax(dim=1, keepdim=True)
        return ((each - largest).exp().sum(dim=1, keepdim=True).log() + largest).squeeze(1)
