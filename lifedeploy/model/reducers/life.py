"""``life``: predict once, after layer t_base, how long each patch is worth keeping (METHOD.md, eq. 1-7).

Lives are a single ranking, so the hard form orders the tokens once and from then on only slices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.model.reducers.base import KeepPrefix, Reducer, Tokens, gather_tokens
from lifedeploy.model.reducers.first_k import drops
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


def standardise(scores: Tensor) -> Tensor:
    """Scores (B, N) less their mean, over their standard deviation, for every image; 0 where they are all equal."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    # Of the whole population, as eq. 10 is; and guarded, since the deviation can be 0.
    # before the root: behind it, the gradient of the root at 0 would already be infinite
    deviation = centred.square().mean(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    return centred / deviation


def lives(scores: Tensor, schedule: Schedule) -> Tensor:
    """τ of eq. 3: scores (B, N) → lives (B, N) in layers, with the schedule's mean and standard deviation.

    An image whose scores are all equal gets the mean everywhere.
    """
    return standardise(scores) * schedule.std_life + schedule.mean_life


class TakeOrdered(nn.Module):
    """Prefix tokens, then the ``kept`` best-scored patch tokens in descending score: one TopK, one Gather."""

    def __init__(self, kept: int, prefix: int) -> None:
        super().__init__()
        self.kept = kept
        self.prefix = prefix

    def forward(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P + n, C), (B, n) → tokens (B, P + kept, C), their scores and indices (B, kept)."""
        best = scores.topk(self.kept, dim=1, sorted=True)
        # The prefix goes through the same Gather: joining two index rows is cheaper than joining two token tensors.
        front = torch.arange(self.prefix, device=x.device).expand(x.shape[0], self.prefix)
        index = torch.cat((front, best.indices + self.prefix), dim=1)  # (B, P + kept)
        return gather_tokens(x, index), best.values, best.indices


class LifeReducer(Reducer):
    """The hard form, for inference.

    Args:
        schedule: tokens per layer.
        dim: channels C.
        prefix: tokens in front that are never dropped.
        graph: ``order-once`` (order after t_base, then static slices) or ``per-stage`` (the literal form: a TopK and
            a Gather at every drop). Both give the same logits.
        temperature: U of eq. 7, for :meth:`relaxed`.
        predictor: one to share; a new one where None.
    """

    method = "life"

    def __init__(
        self,
        schedule: Schedule,
        dim: int,
        prefix: int,
        *,
        graph: str = "order-once",
        temperature: float = 1.5,
        predictor: LifePredictor | None = None,
    ) -> None:
        super().__init__(schedule)
        self.dim = dim
        self.prefix = prefix
        self.temperature = temperature
        self.predictor = predictor or LifePredictor(dim)
        layers = drops(schedule)
        # Lives are predicted after t_base even where the first count drops nothing there.
        ordering = (schedule.base_layer,) if layers else ()
        if graph == "per-stage":
            ordering = tuple(sorted({*ordering, *layers}))
        self.order = nn.ModuleDict({str(t): TakeOrdered(schedule.after(t), prefix) for t in ordering})
        self.keep = nn.ModuleDict({str(t): KeepPrefix(prefix + schedule.after(t)) for t in layers if t not in ordering})

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Predict after t_base, then order or slice as the schedule says."""
        key = str(layer)
        if self.schedule.drop_layers and layer == self.schedule.base_layer:
            scores = self.predictor(tokens.x, tokens.prefix)
            tokens = tokens.but(scores=scores, carry={"ranking": scores})
        if key in self.order:
            x, ranking, index = self.order[key](tokens.x, tokens.carry["ranking"])
            positions = index if tokens.positions is None else tokens.positions.gather(1, index)
            return tokens.but(x=x, positions=positions, carry={"ranking": ranking})
        if key in self.keep and tokens.positions is not None:
            kept = self.schedule.after(layer)
            return tokens.but(x=self.keep[key](tokens.x), positions=tokens.positions[:, :kept])
        return tokens

    def at(self, schedule: Schedule) -> Reducer:
        """The hard form over the same predictor, under another schedule."""
        return LifeReducer(schedule, self.dim, self.prefix, temperature=self.temperature, predictor=self.predictor)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The soft form over the same predictor."""
        return RelaxedLife(schedule, self.predictor, self.temperature)


class RelaxedLife(Reducer):
    """The soft form, for training: every token stays, its weight as a key fades once its life is over.

    β_i(t) = sigmoid(U (τ_i - t)) multiplies exp(h) in the softmax of layer t (eq. 6 and 7, sign corrected), so
    log β is an additive mask on the keys. Prefix tokens and the layers up to t_base are untouched.
    """

    method = "life"

    def __init__(self, schedule: Schedule, predictor: LifePredictor, temperature: float) -> None:
        super().__init__(schedule)
        self.predictor = predictor
        self.temperature = temperature

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Set the key mask of this layer."""
        if "life" not in tokens.carry:
            return tokens
        log_keep = F.logsigmoid(self.temperature * (tokens.carry["life"] - layer))  # (B, N)
        # Autocast may have made the scores half precision or not; the mask has to be what attention computes in.
        bias = F.pad(log_keep, (tokens.prefix, 0)).to(tokens.x.dtype)
        return tokens.but(key_bias=bias[:, None, None, :])

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Predict after t_base."""
        if not self.schedule.drop_layers or layer != self.schedule.base_layer:
            return tokens
        scores = self.predictor(tokens.x, tokens.prefix)
        return tokens.but(scores=scores, carry={"life": lives(scores.float(), self.schedule)})
