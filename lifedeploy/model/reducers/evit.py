"""``evit``: keep what CLS attends to, and fuse the rest into one token.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations" (ICLR 2022),
section 3. Between attention and MLP of a drop layer tokens are scored by the attention that CLS pays them in that very
layer; there is nothing to learn.
"""

from __future__ import annotations

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

    Raises:
        UsageError: nothing is left beside the fused token.
    """

    def __init__(self, schedule: Schedule, *, fuse: bool = True) -> None:
        alone = [layer for layer in schedule.leaving_layers if fuse and schedule.after(layer) < 2]
        if alone:
            raise UsageError(
                f"evit keeps 1 patch token after layer {alone[0]}, which would stand for all others",
                hint="a larger keep rate, or --no-fuse",
            )
        super().__init__(schedule, all_ordered=fuse)
        self.fuse = fuse

    @classmethod
    def build(cls, plan: Plan) -> Reducer:
        return cls(plan.schedule, fuse=plan.options.fuse)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Order all, then slice: the best stay, and f = Σ s_i x_i over the others, whose weights are not normalised.

        The sum of all less that of the best would need no order of the others, but is the small difference of two large
        sums, which half precision rounds; and it compiles to more kernels.
        """
        if not self.fuse:
            return super().inside_block(layer, tokens, attention)
        scores = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        ordered: Tokens
        ordered, weights = self.take[str(layer)](tokens, scores)
        stay = self.schedule.after(layer) - 1
        dropped = ordered.x[:, tokens.prefix + stay :]  # (B, n - stay, C)
        return ordered.first(stay).append(weights[:, None, stay:] @ dropped)

    def at(self, schedule: Schedule) -> Reducer:
        return EvitReducer(schedule, fuse=self.fuse)
