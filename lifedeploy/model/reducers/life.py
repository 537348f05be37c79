"""``life``: predict once, after layer t_base, how long each patch is worth keeping.

Chen et al., "Life Regression based Patch Slimming for Vision Transformers", eq. 1-7, whose signs and squares are
corrected where the print lost them. Lives are a single ranking, so the hard reducer orders the tokens once and from
then on only slices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.lives import lives
from lifedeploy.model.reducers.base import KeepPrefix, Plan, Reducer, TakeOrdered
from lifedeploy.model.tokens import Tokens
from lifedeploy.schedule import Schedule


class LifePredictor(nn.Module):
    """s_i = x̄_clsᵀ W x̄_i with x̄ = LayerNorm(x) (eq. 1 and 2).

    W starts as the identity, a cosine-like score of patch against CLS that ranks patches better than chance before
    any training.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        """Scores of the patch tokens of x: (B, P + N, C) → (B, N). CLS is token 0."""
        x = self.norm(x)
        query = x[:, :1] @ self.weight  # (B, 1, C); W meets one token, not N
        return (query @ x[:, prefix:].transpose(1, 2)).squeeze(1)


class _Life(Reducer):
    """What the hard and the soft reducer share: one prediction, after t_base."""

    def __init__(self, schedule: Schedule, predictor: LifePredictor, temperature: float) -> None:
        super().__init__(schedule)
        self.predictor = predictor
        self.temperature = temperature

    def predicted(self, layer: int, tokens: Tokens) -> Tokens:
        """After t_base: the tokens with their scores."""
        if not self.schedule.drop_layers or layer != self.schedule.base_layer:
            return tokens
        return tokens.but(scores=self.predictor(tokens.x, tokens.prefix))

    def lives(self, tokens: Tokens) -> Tensor | None:
        return None if tokens.scores is None else lives(tokens.scores.float(), self.schedule)

    def at(self, schedule: Schedule) -> Reducer:
        """The hard reducer over the same predictor."""
        return LifeReducer(schedule, self.predictor, self.temperature)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The soft reducer over the same predictor."""
        return RelaxedLife(schedule, self.predictor, self.temperature)


class LifeReducer(_Life):
    """The hard reducer, for inference.

    Args:
        schedule: tokens per layer.
        predictor: of the scores.
        temperature: U of eq. 7, for :meth:`relaxed`.
        ordering: ``order-once`` (order after t_base, then static slices) or ``per-stage`` (as printed: a TopK and
            a Gather at every drop). Both give the same logits.
    """

    def __init__(
        self, schedule: Schedule, predictor: LifePredictor, temperature: float = 1.5, ordering: str = "order-once"
    ) -> None:
        super().__init__(schedule, predictor, temperature)
        layers = schedule.leaving_layers
        # Lives are predicted after t_base even where the first count drops nothing there.
        sorted_after = (schedule.base_layer,) if layers else ()
        if ordering == "per-stage":
            sorted_after = tuple(sorted({*sorted_after, *layers}))
        self.order = nn.ModuleDict({str(t): TakeOrdered(schedule.after(t)) for t in sorted_after})
        self.keep = nn.ModuleDict({str(t): KeepPrefix(schedule.after(t)) for t in layers if t not in sorted_after})
        self.sorts = len(sorted_after)

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule, LifePredictor(plan.width), plan.options.temperature, plan.ordering)

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Predict after t_base, then order or slice as the schedule says."""
        key, before = str(layer), tokens.scores
        tokens = self.predicted(layer, tokens)
        if key in self.order:
            ranking = tokens.scores if before is None else tokens.carry["ranking"]
            taken: Tokens
            taken, best = self.order[key](tokens, ranking)
            return taken.but(carry={"ranking": best})
        return self.keep[key](tokens) if key in self.keep else tokens


class RelaxedLife(_Life):
    """The soft reducer, for training: every token stays, its weight as a key fades once its life is over.

    β_i(t) = sigmoid(U (τ_i - t)) multiplies exp(h) in the softmax of layer t (eq. 6 and 7, sign corrected), so
    log β is an additive mask on the keys. Prefix tokens and the layers up to t_base are untouched.
    """

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Set the key mask of this layer."""
        if tokens.scores is None:
            return tokens
        log_keep = F.logsigmoid(self.temperature * (tokens.carry["life"] - layer))  # (B, N)
        # Autocast may have made the scores half precision or not; the mask has to be what attention computes in.
        bias = F.pad(log_keep, (tokens.prefix, 0)).to(tokens.x.dtype)
        return tokens.but(key_bias=bias[:, None, None, :])

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Predict after t_base."""
        predicted = self.predicted(layer, tokens)
        life = None if predicted is tokens else self.lives(predicted)
        return predicted if life is None else predicted.but(carry={"life": life})

    def alive(self, tokens: Tokens) -> Tensor | None:
        """The patches with the longest lives."""
        if tokens.scores is None:
            return None
        longest = tokens.scores.topk(self.schedule.tokens[-1], dim=1).indices
        return torch.zeros_like(tokens.scores).scatter(1, longest, 1.0)
