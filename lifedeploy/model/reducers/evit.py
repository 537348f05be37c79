"""``evit``: keep what CLS attends to, and fuse the rest into one token.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations" (ICLR 2022),
section 3. Between attention and MLP of a drop layer tokens are scored by the attention that CLS pays them in that very
layer; there is nothing to learn.
"""

from __future__ import annotations

from torch import Tensor

from lifedeploy.errors import UsageError
from lifedeploy.model.reducers.base import Plan, Reducer
from lifedeploy.model.reducers.cls_attention import ByClsAttention
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.schedule import Schedule


class EvitReducer(ByClsAttention):
    """Chooses by CLS attention; dropped tokens become one, each weighted by its attention as it is.

    Args:
        schedule: tokens per layer, the fused one among them.
        fuse: without it dropped tokens are gone.
    """

    def __init__(self, schedule: Schedule, *, fuse: bool = True) -> None:
        super().__init__(schedule, fused=int(fuse))
        self.fuse = fuse

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        """The reducer for a plan.

        Raises:
            UsageError: nothing is left beside the fused token.
        """
        alone = [t for t in plan.schedule.leaving_layers if plan.options.fuse and plan.schedule.after(t) < 2]
        if alone:
            raise UsageError(
                f"evit keeps 1 patch token after layer {alone[0]}, which would stand for all others",
                hint="a larger keep rate, or --no-fuse",
            )
        return cls(plan.schedule, fuse=plan.options.fuse)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Keep the best, then f = Σ s_i x_i over what is dropped; these weights are not normalised."""
        if not self.fuse:
            return super().inside_block(layer, tokens, attention)
        scores = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        kept: Tokens
        kept, best = self.take[str(layer)](tokens, scores)
        # What is dropped is all less what is kept: its indices are not needed, nor a second Gather.
        return kept.append(_weighted(scores, tokens) - _weighted(best, kept))

    def at(self, schedule: Schedule) -> Reducer:
        return EvitReducer(schedule, fuse=self.fuse)


def _weighted(weights: Tensor, tokens: Tokens) -> Tensor:
    """Σ w_i x_i over patch tokens: (B, n) → (B, 1, C)."""
    return weights.unsqueeze(1) @ tokens.x[:, tokens.prefix :]
