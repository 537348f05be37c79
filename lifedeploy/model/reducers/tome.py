"""``tome``: merge the tokens that are most alike, some in every layer.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3. Nothing to learn. Written from the paper.

Between attention and MLP the patch tokens are dealt in turn into sources and targets (bipartite soft matching). Each
source looks for the target whose keys, averaged over heads, are most like its own; the r sources that are most like
theirs are merged into them, each token weighted by how many patches it stands for. In all later attention a key counts
as often as it has patches: log size is added to its logits (proportional attention).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lifedeploy.kept import NO_PATCH
from lifedeploy.model.reducers.base import Reducer
from lifedeploy.model.tokens import BlockAttention, Tokens, no_patches
from lifedeploy.schedule import Schedule

# Of each token, once anything was merged: how many patches it stands for, and which of them began it.
SIZE, SEED = "size", "seed"


class TomeReducer(Reducer):
    """Merges in every drop layer as many tokens as the schedule says."""

    @property
    def inside_layers(self) -> frozenset[int]:
        return frozenset(self.schedule.leaving_layers)

    def inside_block(self, layer: int, tokens: Tokens, attention: BlockAttention) -> Tokens:
        """Order the tokens into those that stay, targets, and those that go; then slice, and fold the last part in."""
        prefix, left = tokens.prefix, self.schedule.after(layer)
        merged = tokens.patches - left
        # Dealt from the first token of all, as published: behind one prefix token, patches at odd places are sources.
        first_source, first_target = prefix % 2, 1 - prefix % 2
        keys = F.normalize(attention.k.mean(dim=1)[:, prefix:], dim=-1)  # (B, n, D)
        alike = keys[:, first_source::2] @ keys[:, first_target::2].transpose(1, 2)  # (B, sources, targets)
        closest, target = alike.max(dim=-1)
        ranked = closest.topk(closest.shape[1], dim=1).indices
        go = ranked[:, :merged]
        # Those that stay keep their order: it decides who is dealt to whom in the next layer.
        stay = ranked[:, merged:]
        if stay.shape[1]:
            stay = stay.int().topk(stay.shape[1], dim=1, largest=False).values.long()
        targets = torch.arange(first_target, tokens.patches, 2, device=go.device).expand(go.shape[0], alike.shape[2])
        places = torch.cat((2 * stay + first_source, targets, 2 * go + first_source), dim=1)
        if SIZE not in tokens.beside:  # each token is one patch
            seeds = torch.cat((no_patches(tokens.x, prefix), tokens.original), dim=1)
            tokens = tokens.but(beside={SIZE: torch.ones_like(tokens.x[..., 0]), SEED: seeds}, groups=tokens.original)
        return self._merged(tokens.take(places).park(left), target.gather(1, go), alike.shape[2])

    def _merged(self, kept: Tokens, target: Tensor, targets: int) -> Tokens:
        """Fold parked tokens into the last ``targets`` of the others, each into the one that ``target`` (B, r) says.

        As a product with a matrix of weights, since engines scatter slowly.
        """
        going = kept.parked
        assert going is not None  # at least one is merged
        x, size = going.x, going.beside[SIZE]  # (B, r, C), (B, r)
        into = target[:, None, :] == torch.arange(targets, device=target.device)[:, None]  # (B, m, r)
        apart, seeds = kept.x.shape[1] - targets, kept.beside[SEED]  # tokens in front of the targets
        weights = torch.where(into, size[:, None, :], 0)  # (B, m, r)
        before = kept.beside[SIZE][:, apart:]
        after = before + weights.sum(dim=2)  # (B, m)
        # Weighted before it is summed: sums of hundreds of tokens would leave the range of half precision.
        mean = (weights / after[..., None]) @ x + kept.x[:, apart:] * (before / after)[..., None]
        sizes = torch.cat((kept.beside[SIZE][:, :apart], after), dim=1)  # (B, P + n - r)
        return kept.but(
            x=torch.cat((kept.x[:, :apart], mean), dim=1),
            positions=torch.where(sizes[:, kept.prefix :] > 1, NO_PATCH, kept.original),
            groups=_regrouped(kept.groups, going.beside[SEED], seeds[:, apart:].gather(1, target)),
            key_bias=sizes.log()[:, None, None, :],
            beside={SIZE: sizes, SEED: seeds},
            parked=None,
        )

    def at(self, schedule: Schedule) -> Reducer:
        return TomeReducer(schedule)


def _regrouped(groups: Tensor | None, going: Tensor, into: Tensor) -> Tensor:
    """The patch that stands for each patch (B, N), after those ``going`` (B, r) went ``into`` others (B, r)."""
    assert groups is not None  # set before the first merge
    hit = groups[:, :, None] == going[:, None, :]  # (B, N, r)
    return torch.where(hit.any(dim=2), (hit * into[:, None, :]).sum(dim=2), groups)
