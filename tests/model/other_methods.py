"""Three methods of other people, written by hand as somebody would who adds one: what the seam has to carry."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.cost import Cost, Work
from lifedeploy.model.reducers import BlockAttention, Reducer, Tokens
from lifedeploy.model.vit import SlimViT
from lifedeploy.schedule import Schedule
from lifedeploy.spec import ModelSpec


class Evit(Reducer):
    """EViT: between attention and MLP keep what CLS attends to, and fuse the rest, weighted as attended to.

    The fused token is one of those that the schedule counts.
    """

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(self.schedule.leaving_layers)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        scores = attention.cls_row()[:, tokens.prefix :]  # (B, n)
        best = scores.topk(self.schedule.after(layer) - 1, dim=1)
        kept = tokens.take(best.indices)
        # What is dropped is all less what is kept: no complement of the indices is needed.
        fused = scores.unsqueeze(1) @ tokens.x[:, tokens.prefix :]  # (B, 1, C)
        fused = fused - best.values.unsqueeze(1) @ kept.x[:, tokens.prefix :]
        return kept.append(fused)


def evit_work(schedule: Schedule, cost: Cost) -> Work:
    """In its drop layers the MLP has fewer tokens than the attention."""
    layers = range(1, schedule.depth + 1)
    scoring = 0
    for layer in schedule.leaving_layers:
        before = schedule.tokens[layer - 1]
        scoring += cost.width * (cost.prefix + before)  # q_cls · Kᵀ
        scoring += cost.width * (before + schedule.after(layer) - 1)  # the weighted sums of all and of those kept
    return Work(schedule.tokens, tuple(schedule.after(layer) for layer in layers), scoring)


class KeepScore(nn.Module):
    """DynamicViT's predictor: half of the channels local, half averaged over the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.decide = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 2))

    def forward(self, patches: Tensor) -> Tensor:
        local, whole = self.embed(patches).chunk(2, dim=-1)
        logits = self.decide(torch.cat((local, whole.mean(dim=1, keepdim=True).expand_as(whole)), dim=-1))
        return logits[..., 0] - logits[..., 1]  # (B, n)


class DynamicVit(Reducer):
    """DynamicViT: score the survivors before the block behind each drop layer, each with a predictor of its own."""

    def __init__(self, schedule: Schedule, dim: int) -> None:
        super().__init__(schedule)
        self.predictors = nn.ModuleDict({str(layer): KeepScore(dim) for layer in schedule.leaving_layers})

    def before_block(self, layer: int, tokens: Tokens) -> Tokens:
        if str(layer - 1) not in self.predictors:
            return tokens
        scores = self.predictors[str(layer - 1)](tokens.x[:, tokens.prefix :])
        return tokens.take(scores.topk(self.schedule.after(layer - 1), dim=1).indices)


class Tome(Reducer):
    """ToMe: merge the ``merged`` most alike pairs between attention and MLP; sizes weigh the keys of later attention.

    Patches at even places look for their like among those at odd ones.
    """

    def __init__(self, schedule: Schedule, merged: int, layers: tuple[int, ...], *, weigh: bool = True) -> None:
        super().__init__(schedule)
        self.merged = merged
        self.layers = frozenset(layers)
        self.weigh = weigh
        self.sizes: Tensor | None = None

    @property
    def inside_layers(self) -> frozenset[int]:
        return self.layers

    def begin(self, tokens: Tokens) -> Tokens:
        return tokens.but(positions=tokens.original, beside={"size": torch.ones_like(tokens.x[..., 0])})

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        prefix = tokens.prefix
        metric = F.normalize(attention.k.mean(dim=1), dim=-1)[:, prefix:]
        alike = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)  # (B, sources, targets)
        value, partner = alike.max(dim=-1)
        order = value.argsort(dim=1, descending=True)
        leave, stay = order[:, : self.merged], order[:, self.merged :].sort(dim=1).values
        targets = torch.arange(1, tokens.patches, 2).expand(stay.shape[0], -1)
        gone, left = tokens.take(2 * leave), tokens.take(torch.cat((2 * stay, targets), dim=1))

        into = F.one_hot(partner.gather(1, leave), alike.shape[2]).to(metric.dtype).transpose(1, 2)
        into = F.pad(into, (0, 0, prefix + stay.shape[1], 0))  # (B, P + n - merged, merged): who takes whom in
        size = left.beside["size"] + (into @ gone.beside["size"][:, prefix:, None]).squeeze(2)
        x = left.x * left.beside["size"].unsqueeze(2)
        x = (x + into @ (gone.x * gone.beside["size"].unsqueeze(2))[:, prefix:]) / size.unsqueeze(2)
        assert left.positions is not None
        positions = left.positions.masked_fill(into[:, prefix:].any(dim=2), -1)
        self.sizes = size
        bias = size.log()[:, None, None, :] if self.weigh else None
        return left.but(x=x, positions=positions, key_bias=bias, beside={"size": size})


def with_merging(
    model: SlimViT, spec: ModelSpec, merged: int, layers: tuple[int, ...], **options: bool
) -> tuple[SlimViT, ModelSpec]:
    """The same backbone under ToMe, which has no row: that of a method that chooses at every drop stands in."""
    patches, depth = spec.schedule.patches, spec.schedule.depth
    counts = tuple(patches - merged * number for number in range(1, len(layers) + 1))
    schedule = Schedule.from_counts(patches, depth, counts, layers)
    reducer = Tome(schedule, merged, layers, **options)
    return SlimViT(model.backbone, reducer).eval(), replace(spec, method="topk", schedule=schedule, options={})
