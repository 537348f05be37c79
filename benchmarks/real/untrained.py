"""Ways to choose tokens without training, under the same schedule as life: what a trained predictor has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifedeploy.model.reducers import BlockAttention, Reducer, Tokens
from lifedeploy.model.reducers.life import LifeReducer, TakeOrdered
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule


class ClsAttention(Reducer):
    """EViT's score: the attention that CLS pays to a patch in the last layer before a drop, mean over heads.

    Scored anew at every drop, as EViT does. The same counts as life, after the same layers; no fused token.
    """

    method = "evit-scores"

    def __init__(self, schedule: Schedule, prefix: int) -> None:
        super().__init__(schedule)
        self._take = {layer: TakeOrdered(schedule.after(layer), prefix) for layer in schedule.drop_layers}

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(self._take)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        return tokens.but(carry={"row": attention.cls_row()[:, tokens.prefix :]})

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        if layer not in self._take:
            return tokens
        x, _, index = self._take[layer](tokens.x, tokens.carry["row"])
        positions = index if tokens.positions is None else tokens.positions.gather(1, index)
        return tokens.but(x=x, positions=positions, carry={})


class RandomScores(LifeReducer):
    """Patches leave in a random order, drawn for every image anew."""

    method = "random"

    def __init__(self, schedule: Schedule, dim: int, prefix: int, seed: int) -> None:
        super().__init__(schedule, dim, prefix)
        generator = torch.Generator().manual_seed(seed)

        class Draw(torch.nn.Module):
            def forward(self, x: Tensor, prefix: int) -> Tensor:
                return torch.rand(x.shape[0], x.shape[1] - prefix, generator=generator)

        self.predictor: Any = Draw()


def with_reducer(model: SlimViT, reducer: Reducer) -> SlimViT:
    """The same backbone under another way to choose."""
    return SlimViT(model.backbone, reducer).eval()
