"""``evo-vit``: most layers see half of the patches, and the other half waits for its next chance.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer" (AAAI 2022), in the form that its authors
deploy on DeiT: tokens that wait are not updated by a representative of theirs. Written from the paper and the names in
the authors' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from lifedeploy.model.blocks import Backbone
from lifedeploy.model.reducers.base import Reducer, TakeOrdered
from lifedeploy.model.tokens import BlockAttention, Tokens
from lifedeploy.schedule import Schedule

_ATTENTION = "attention"  # (B, N): what CLS paid to each patch so far, in the order in which tokens lie
_NEW = 0.5  # how much of that is the latest layer's, once tokens wait
_CLS = "cls"  # (B, classes), in training: logits of CLS, from a head of its own
_NORM, _HEAD = "norm", "head"  # of that
_BLOCKWISE = 2 / 3  # of training, in which tokens are chosen anew before every block


class EvoVitReducer(Reducer):
    """After each drop layer, sorts all patches by how CLS attended to them; the best go on, the others wait and come
    back, as they were, behind the last layer before the next drop, or at the end.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        layers = schedule.drop_layers if schedule.prunes else ()
        self.take = nn.ModuleDict({str(layer): TakeOrdered(schedule.patches) for layer in layers})
        self.sorts = len(self.take)

    @property
    def inside_layers(self) -> frozenset[int]:
        """The first drop layer, and from there on to the last one: attention is averaged over these."""
        layers = tuple(map(int, self.take))
        return frozenset(range(layers[0], layers[-1] + 1) if layers else ())

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Note down what CLS attends to: half of it from before, for those that took part."""
        latest = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        known = tokens.carry.get(_ATTENTION)
        if known is None:
            return tokens.but(carry={_ATTENTION: latest})
        there = known[:, : tokens.patches]
        mean = (1 - _NEW) * there + _NEW * latest
        return tokens.but(carry={**tokens.carry, _ATTENTION: torch.cat((mean, known[:, tokens.patches :]), dim=1)})

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        """Behind a drop layer: all come together, and the best go on."""
        behind = str(layer - 1)
        if behind not in self.take:
            return tokens
        tokens = self._together(tokens)
        ordered: Tokens
        ordered, attention = self.take[behind](tokens, tokens.carry[_ATTENTION])
        return ordered.park(self.schedule.after(layer - 1)).but(carry={_ATTENTION: attention})

    def after_block(self, layer: int, tokens: Tokens) -> Tokens:
        """After the last layer all come together."""
        return self._together(tokens) if layer == self.schedule.depth else tokens

    def logits(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        """Of the mean of all patches: CLS counts in training alone."""
        return backbone.classify_one(tokens.x[:, tokens.prefix :].mean(dim=1))

    @staticmethod
    def _together(tokens: Tokens) -> Tokens:
        return tokens if tokens.parked is None else tokens.unpark()

    def at(self, schedule: Schedule) -> Reducer:
        return EvoVitReducer(schedule)

    def relaxed(self, schedule: Schedule) -> Reducer:
        """The form that CLS has a head in, too."""
        return RelaxedEvoVit(schedule, self.train_only)

    def equip(self, backbone: Backbone) -> None:
        """A norm and a head for CLS; both begin as the backbone's, which from now on are for the mean of patches."""
        self.train_only.update({_NORM: deepcopy(backbone.final_norm), _HEAD: deepcopy(backbone.head)})

    def unused(self, backbone: Backbone) -> tuple[str, ...]:
        """Classes are those of one vector."""
        return backbone.beside_one

    def labelled(
        self, logits: Tensor, loss_inputs: Mapping[str, Tensor], criterion: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Half of it for each head."""
        pooled = criterion(logits)
        return (pooled + criterion(loss_inputs[_CLS])) / 2 if _CLS in loss_inputs else pooled


class RelaxedEvoVit(EvoVitReducer):
    """For training: CLS is read too; and for the first two thirds all come together behind every layer from the first
    drop on, so that each of these chooses anew.
    """

    def __init__(self, schedule: Schedule, train_only: nn.ModuleDict, *, blockwise: bool = True) -> None:
        super().__init__(schedule)
        self.train_only = train_only
        if blockwise and self.take:
            first = schedule.drop_layers[0]
            self.take = nn.ModuleDict({str(t): TakeOrdered(schedule.patches) for t in range(first, schedule.depth)})

    def during(self, progress: float) -> Reducer:
        """Block by block, then stage by stage."""
        return RelaxedEvoVit(self.schedule, self.train_only, blockwise=progress < _BLOCKWISE)

    def loss_inputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """What CLS answers."""
        return {_CLS: self.train_only[_HEAD](self.train_only[_NORM](tokens.x[:, 0]))} if self.train_only else {}
