"""What a model loses by dropping tokens, asked of PyTorch: two proxies of accuracy that need no labels.

The model's blocks do not care about the order of patches, so what is dropped after a layer can be told from one dense
pass: the tokens that it left, in the order in which the method ranks them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifedeploy.data.preprocess import normalise
from lifedeploy.errors import UnsupportedModelError
from lifedeploy.model.tokens import BlockAttention, Tokens, gather_tokens
from lifedeploy.model.vit import SlimViT
from lifedeploy.progress import Progress, Step, unwatched
from lifedeploy.schedule import Schedule
from lifedeploy.spec import PreprocessSpec
from lifedeploy.tuning.expected import Expected, Floats

_BATCH = 8  # images at a time
_CUT_IMAGES = 64  # that every single cut is asked about
_MOST_S = 60.0  # for each of the two, after the first images: of a large model fewer are looked at
_CUT_COUNTS = 9  # numbers of tokens of single cuts, all of them among these
Count = Callable[[int], None]  # told how many images are done


@dataclass(frozen=True)
class Images:
    """Pixels, (B, H, W, 3), and how they are prepared."""

    pixels: NDArray[np.uint8]
    preprocess: PreprocessSpec

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, count: int) -> Images:
        """At most ``count`` of them, evenly."""
        if count >= len(self):
            return self
        return Images(self.pixels[np.arange(count) * len(self) // count], self.preprocess)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self), _BATCH):
            yield torch.from_numpy(normalise(self.pixels[start : start + _BATCH], self.preprocess))


def expected_losses(
    model: SlimViT, images: Images, bases: Sequence[int], *, cuts: bool, progress: Progress = unwatched
) -> Expected:
    """Both proxies of a model; that of single ``cuts`` if asked for, where there is one layer to rank after."""
    patches = model.schedule.patches
    counts = tuple(sorted({round(n) for n in np.linspace(1, patches, _CUT_COUNTS)}, reverse=True))
    some = images.some(_CUT_IMAGES)
    done, total = 0, len(images) + (len(counts) * len(some) if cuts else 0)

    def counted(many: int) -> None:
        nonlocal done
        done += many
        progress(Step("looking at the model", min(1.0, done / total), f"{len(images):,} images"))

    attention = lost_attention(model, _for_a_while(images), bases, counted)
    if not cuts:
        return Expected(attention=attention)
    table = single_cuts(model, _for_a_while(some), bases[0], counts, lambda many: counted(many * len(counts)))
    return Expected(attention=attention, cuts=table, cut_counts=counts)


def require_open(model: SlimViT) -> None:
    """Make sure that the attention of every layer can be looked at.

    Raises:
        UnsupportedModelError: that of one cannot.
    """
    backbone = model.adapted
    closed = [type(block).__name__ for layer, block in enumerate(backbone.blocks, 1) if not backbone.has_inside(layer)]
    if closed:
        raise UnsupportedModelError(
            f"tune looks at the attention of pre-norm blocks, and the backbone has a {closed[0]}"
        )


def _for_a_while(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches that are begun within the time there is; one at least."""
    end = time.monotonic() + _MOST_S
    for number, batch in enumerate(batches):
        if number and time.monotonic() > end:
            return
        yield batch


@dataclass(frozen=True)
class _Dense:
    """What one dense pass leaves. Tokens behind layer t are at place t - 1."""

    tokens: list[Tokens]
    attention: list[Tensor]  # (B, N): what CLS pays to each patch in layer t
    log_probabilities: Tensor  # (B, classes)


def lost_attention(
    model: SlimViT, batches: Iterable[Tensor], bases: Sequence[int], counted: Count
) -> dict[int, Floats]:
    """The share of CLS's attention that patches get which a schedule has dropped: the proxy that every model has.

    Args:
        model: that is to be scheduled, whose method ranks once.
        batches: normalised images, (B, 3, H, W).
        bases: layers after which it may rank.
        counted: told after each batch.

    Returns:
        Base layer → (T, N + 1): at [t - 1, n] what is lost in layer t by having no more than n patch tokens there, as
        part of what all layers pay to patches: so a schedule's loss is a sum over its layers.
    """
    depth, patches = model.schedule.depth, model.schedule.patches
    kept = {base: torch.zeros(depth, patches + 1, dtype=torch.float64) for base in bases}
    images = 0
    with torch.inference_mode():
        for batch in batches:
            dense = _dense(model, batch)
            for base in bases:
                ranking = _ranking(model, dense.tokens[base - 1], base)
                for layer in range(base + 1, depth + 1):
                    ordered = dense.attention[layer - 1].gather(1, ranking).double()
                    kept[base][layer - 1, 1:] += (ordered / ordered.sum(dim=1, keepdim=True)).cumsum(dim=1).sum(dim=0)
            images += len(batch)
            counted(len(batch))
    losses = {}
    for base, sums in kept.items():
        lost = 1 - sums.numpy() / max(images, 1)
        lost[:base] = 0.0  # every token is there
        losses[base] = np.clip(lost, 0.0, 1.0) / depth
    return losses


def single_cuts(model: SlimViT, batches: Iterable[Tensor], base: int, counts: Sequence[int], counted: Count) -> Floats:
    """The KL divergence of the classes, dense over pruned, of every single cut: the proxy of weights that are good at
    any keep rate.

    Args:
        model: whose method ranks once, after ``base``.
        batches: normalised images, (B, 3, H, W).
        base: the layer that it ranks after.
        counts: patch tokens to keep, most first: all of them, N, at place 0.
        counted: told after each batch.

    Returns:
        (T, counts), in nats: at [t - 1, k] what is added by having no more than ``counts[k]`` in layer t where
        all later ones have no more either. Of several cuts these add up, each over those before it.
    """
    depth, images = model.schedule.depth, 0
    cut = np.zeros((depth + 1, len(counts)))  # [t]: KL of a cut behind layer t
    with torch.inference_mode():
        for batch in batches:
            dense = _dense(model, batch)
            ranking = _ranking(model, dense.tokens[base - 1], base)
            for layer in range(base, depth):
                for place, count in enumerate(counts[1:], start=1):
                    divergence = _divergence(model, dense, ranking[:, :count], layer)
                    cut[layer, place] += float(divergence.sum())
            images += len(batch)
            counted(len(batch))
    cut /= max(images, 1)
    losses = np.zeros((depth, len(counts)))
    losses[base:] = cut[base:depth] - cut[base + 1 :]
    return losses


def _dense(model: SlimViT, images: Tensor) -> _Dense:
    """Every token through every layer."""
    backbone, left, attention = model.adapted, [], []
    tokens = backbone.embed(images)
    for layer in range(1, backbone.depth + 1):

        def seen(tokens: Tokens, attended: BlockAttention) -> Tokens:
            attention.append(attended.cls_row()[:, tokens.prefix :])
            return tokens

        tokens = backbone.run_block(layer, tokens, seen)
        left.append(tokens)
    return _Dense(left, attention, backbone.classify(tokens).double().log_softmax(dim=-1))


def _ranking(model: SlimViT, tokens: Tokens, base: int) -> Tensor:
    """Patches in the order in which the method lets them live, the longest first: (B, N)."""
    patches, depth = tokens.patches, model.schedule.depth
    # One leaves, so that there is something to rank for: it is the last.
    reducer = model.reducer.at(Schedule.from_counts(patches, depth, (patches - 1,), (base,)))
    best = reducer("after_block", base, tokens).original
    last = patches * (patches - 1) // 2 - best.sum(dim=1, keepdim=True)
    return torch.cat([best, last], dim=1)


def _divergence(model: SlimViT, dense: _Dense, kept: Tensor, layer: int) -> Tensor:
    """KL of what the model says where only ``kept`` go on after ``layer``: (B,)."""
    backbone, tokens = model.adapted, dense.tokens[layer - 1]
    front = torch.arange(tokens.prefix, device=kept.device).expand(len(kept), tokens.prefix)
    tokens = tokens.but(x=gather_tokens(tokens.x, torch.cat([front, kept + tokens.prefix], dim=1)))
    for later in range(layer + 1, backbone.depth + 1):
        tokens = backbone.run_block(later, tokens, None)
    said = backbone.classify(tokens).double().log_softmax(dim=-1)
    return (dense.log_probabilities.exp() * (dense.log_probabilities - said)).sum(dim=-1)
