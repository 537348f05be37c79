"""Ways to choose tokens without training, under the same schedule as life: what a trained predictor has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifedeploy.model.reducers import BlockAttention, Reducer, TakeOrdered, Tokens
from lifedeploy.model.reducers.life import LifeReducer
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule


class ClsAttention(Reducer):
    """EViT's score: the attention that CLS pays to a patch in the last layer before a drop, mean over heads.

    Scored anew at every drop, as EViT does. The same counts as life, after the same layers; no fused token.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._take = {layer: TakeOrdered(schedule.after(layer)) for layer in schedule.drop_layers}

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(self._take)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        return tokens.but(carry={"row": attention.cls_row()[:, tokens.prefix :]})

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer not in self._take:
            return tokens
        taken, _ = self._take[layer](tokens, tokens.carry["row"])
        return taken.but(carry={})


class RandomScores(LifeReducer):
    """Patches leave in a random order, drawn for every image anew."""

    def __init__(self, schedule: Schedule, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        class Draw(torch.nn.Module):
            def forward(self, x: Tensor, prefix: int) -> Tensor:
                return torch.rand(x.shape[0], x.shape[1] - prefix, generator=generator)

        draw: Any = Draw()
        super().__init__(schedule, draw)


def with_reducer(model: SlimViT, reducer: Reducer) -> SlimViT:
    """The same backbone under another way to choose."""
    return SlimViT(model.backbone, reducer).eval()
