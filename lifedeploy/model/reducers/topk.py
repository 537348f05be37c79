"""``topk``: the tokens that CLS attends to most, and nothing of the rest.

What the literature compares with under many names: EViT's scores at EViT's place (Liang et al., ICLR 2022) without its
fused token, at the token counts of ``life``.
"""

from __future__ import annotations

from lifedeploy.model.reducers.cls_attention import ByClsAttention


class TopKReducer(ByClsAttention):
    """Keeps the best and drops the rest: there is nothing to it beside."""
