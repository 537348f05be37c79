"""``avit``: tokens say themselves, layer by layer, when they have seen enough; and its scores under a fixed budget.

Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer" (CVPR 2022), section 3. After every layer a token
halts with the probability h = sigmoid(γ x - β), x its first channel, so nothing is added to the backbone; at the last
layer h is 1. Once its probabilities add up to 1 - ε it takes no further part. What classes are read from is the mean of
a token's outputs over its layers, each weighted by h, the last one by what is left of 1 (adaptive computation time).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

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
_HALTED = "halted"  # of each token, after each layer: the logit of its probability of halting there
# In training: (B,), layers that tokens took; (T,), log of the probabilities of halting in each layer, added up.
_PONDER, _DEPTHS = "ponder", "log depths"
_NEVER = -1e4  # a logarithm of next to nothing that has a gradient
_PUBLISHED_CENTER = {192: 30.0}  # channels → β; of wider models 75
_SPREAD = 1.0  # standard deviation, in layers, of the depths wanted


class _Adaptive(Reducer):
    """What both share: halting probabilities, and the weighted mean of outputs."""

    knows_schedule = False

    def __init__(self, schedule: Schedule, options: Any, width: int) -> None:
        super().__init__(schedule)
        self.options = options
        self.width = width
        self.scale, self.center = options.gate_scale, options.gate_center
        if self.center < 0:
            self.center = _PUBLISHED_CENTER.get(width, 75.0)

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule, plan.options, plan.width)

    def logit(self, first: Tensor) -> Tensor:
        """γ x - β of first channels x of any shape."""
        logit: Tensor = first * self.scale - self.center
        return logit

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
        return type(self)(schedule, self.options, self.width)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """As published, whatever the budget: tokens are masked once they have halted."""
        return RelaxedAvit(Schedule.dense(schedule.patches, schedule.depth), self.options, self.width)

    def penalty(self, loss_inputs: Mapping[str, Tensor], right: Tensor) -> Tensor | None:
        """The ponder loss, how many layers tokens take; and how far the layers in which they halt are from a normal
        distribution around the depth wanted, as a divergence.
        """
        if not loss_inputs:
            return None
        depths = loss_inputs[_DEPTHS]
        layers = torch.arange(1, len(depths) + 1, device=depths.device)
        wanted = (-0.5 * ((layers - self.options.halting_depth * len(depths)) / _SPREAD).square()).softmax(dim=0)
        halting = depths.softmax(dim=0).clamp(0.01, 0.99)
        away = (wanted * (wanted.log() - halting.log())).sum()
        loss: Tensor = self.options.ponder_weight * loss_inputs[_PONDER].mean() + self.options.prior_weight * away
        return loss


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


class RelaxedAvit(AvitReducer):
    """For training: the same, and what its loss is made of is noted down."""

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Note the probability of halting."""
        return _note(super().after_block(layer, tokens), _HALTED, layer, self.logit(tokens.x[..., 0]).float())

    def alive(self, tokens: Tokens) -> Tensor | None:
        """The patches that had not halted before the last layer."""
        return (tokens.beside[_SUMS][:, tokens.prefix :] < 1 - EPSILON).float()

    def loss_inputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """ρ = N + r of each token: its layers, and what was left of 1 before the last of them; a mean over an image's
        tokens. And how probable it is to halt in each layer, of tokens that have not yet: as logarithms, since far from
        halting all are smaller than numbers are, and by how much is what has to be learned.
        """
        logits = torch.stack(_noted(tokens, _HALTED), dim=2)  # (B, P + N, T)
        halting = F.pad(logits[..., :-1].sigmoid(), (0, 1), value=1.0)  # at the last layer all halt
        before = F.pad(halting.cumsum(dim=-1)[..., :-1], (1, 0))
        took = before < 1 - EPSILON
        left = 1 - (halting * (took & (before + halting < 1 - EPSILON))).sum(dim=-1)
        depths = F.logsigmoid(logits).masked_fill(~took, _NEVER).logsumexp(dim=(0, 1))
        return {_PONDER: (took.sum(dim=-1) + left).mean(dim=1), _DEPTHS: depths}


class AvitRankedReducer(_Adaptive):
    """Keeps at every drop the patches that have the least probability of having halted so far."""

    def __init__(self, schedule: Schedule, options: Any, width: int) -> None:
        super().__init__(schedule, options, width)
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
