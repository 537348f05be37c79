"""What a method sees: the tokens between two places of a ViT, and what a block's attention saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lifedeploy.kept import NO_PATCH


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens between two seams.

    Shapes: B images, P prefix tokens, n patch tokens now, N at the start, C channels. Patch tokens leave, and change
    their order, through :meth:`take`, :meth:`first` and :meth:`park` only, and come through :meth:`append` and
    :meth:`unpark`: these take along whatever there is of each token.
    """

    x: Tensor  # (B, P + n, C)
    prefix: int  # P
    positions: Tensor | None = None  # (B, n), original index of each patch token; None: all N, in order
    scores: Tensor | None = None  # (B, N), importance in original order, once predicted
    groups: Tensor | None = None  # (B, N), of a method that merges: the patch whose token stands for each patch now
    key_bias: Tensor | None = None  # (B, 1, 1, P + n), added to the attention logits of every query
    parked: Tokens | None = None  # patch tokens that wait, without a prefix
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # (B, P + n, …): of each token, such as its size
    carry: Mapping[str, Tensor] = field(default_factory=dict)  # whatever else the method takes along, as it is

    @property
    def patches(self) -> int:
        """Patch tokens now, n."""
        return self.x.shape[1] - self.prefix

    @property
    def original(self) -> Tensor:
        """Original index of each patch token, also while nothing has moved: (B, n)."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.patches, device=self.x.device).expand(self.x.shape[0], self.patches)

    def but(self, **changes: Any) -> Tokens:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def take(self, index: Tensor) -> Tokens:
        """The prefix, then the patch tokens ``index`` (B, K), counted from 0 behind the prefix, in that order."""
        # The prefix goes through the same Gather: joining two index rows is cheaper than joining two token tensors.
        front = torch.arange(self.prefix, device=self.x.device).expand(self.x.shape[0], self.prefix)
        places = torch.cat((front, index + self.prefix), dim=1)  # (B, P + K)
        return self.but(
            x=gather_tokens(self.x, places),
            positions=index if self.positions is None else self.positions.gather(1, index),
            key_bias=None if self.key_bias is None else self.key_bias.gather(3, places[:, None, None, :]),
            beside={name: gather_tokens(value, places) for name, value in self.beside.items()},
        )

    def first(self, count: int) -> Tokens:
        """The prefix and the first ``count`` patch tokens."""
        places = self.prefix + count
        return self.but(
            x=self.x[:, :places],
            positions=self.original[:, :count],
            key_bias=None if self.key_bias is None else self.key_bias[..., :places],
            beside={name: value[:, :places] for name, value in self.beside.items()},
        )

    def park(self, count: int) -> Tokens:
        """The prefix and the first ``count`` patch tokens; the others wait, as they are, for :meth:`unpark`."""
        places = self.prefix + count
        waiting = self.but(
            x=self.x[:, places:],
            prefix=0,
            positions=self.original[:, count:],
            key_bias=None if self.key_bias is None else self.key_bias[..., places:],
            beside={name: value[:, places:] for name, value in self.beside.items()},
        )
        return self.first(count).but(parked=waiting)

    def unpark(self) -> Tokens:
        """All together: those that wait behind the others.

        Raises:
            ValueError: none wait, or they and the others have different things beside them.
        """
        waiting = self.parked
        if waiting is None:
            raise ValueError("no tokens wait")
        if set(waiting.beside) != set(self.beside):
            raise ValueError(
                f"tokens come back with {sorted(waiting.beside)}, and the others have {sorted(self.beside)}"
            )
        biased = any(part.key_bias is not None for part in (self, waiting))
        return self.but(
            x=torch.cat((self.x, waiting.x), dim=1),
            positions=torch.cat((self.original, waiting.original), dim=1),
            key_bias=torch.cat((_bias(self), _bias(waiting)), dim=3) if biased else None,
            beside={name: torch.cat((value, waiting.beside[name]), dim=1) for name, value in self.beside.items()},
            parked=None,
        )

    def append(self, x: Tensor, **beside: Tensor) -> Tokens:
        """Tokens ``x`` (B, m, C) behind the others, which are no single patch any more; with what is of each of them.

        Raises:
            ValueError: not all that the others have beside them is there, or more.
        """
        if set(beside) != set(self.beside):
            raise ValueError(f"tokens come with {sorted(beside)}, and the others have {sorted(self.beside)}")
        added = x.shape[1]
        return self.but(
            x=torch.cat((self.x, x), dim=1),
            positions=torch.cat((self.original, no_patches(self.x, added)), dim=1),
            key_bias=None if self.key_bias is None else F.pad(self.key_bias, (0, added)),
            beside={name: torch.cat((value, beside[name]), dim=1) for name, value in self.beside.items()},
        )


@dataclass(frozen=True)
class BlockAttention:
    """What the attention of one block saw: for methods that score from it.

    Taken from the block's own qkv projection as it ran, so nothing is computed twice and the attention itself stays
    fused.
    """

    q: Tensor  # (B, H, L, D)
    k: Tensor  # (B, H, L, D)
    scale: float
    key_bias: Tensor | None

    def cls_row(self) -> Tensor:
        """Attention that CLS pays to every token, softmax over all, mean over heads: (B, L)."""
        logits = (self.q[:, :, :1] * self.scale) @ self.k.transpose(-2, -1)  # (B, H, 1, L)
        if self.key_bias is not None:
            logits = logits + self.key_bias
        return logits.softmax(dim=-1).mean(dim=1).squeeze(1)


def _bias(tokens: Tokens) -> Tensor:
    """The bias of each key, 0 where there is none: (B, 1, 1, L)."""
    return torch.zeros_like(tokens.x[:, None, None, :, 0]) if tokens.key_bias is None else tokens.key_bias


def no_patches(x: Tensor, count: int) -> Tensor:
    """Positions of ``count`` tokens that are no single patch, for each image of ``x``: (B, count).

    To be joined to others: ONNX Runtime pads integers on the CPU only, which no CUDA graph holds.
    """
    return torch.full((1, 1), NO_PATCH, dtype=torch.int64, device=x.device).expand(x.shape[0], count)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """``x[b, index[b]]`` for every image b: (B, L, …), (B, K) → (B, K, …).

    As a flat ``index_select`` over axis 0 of [B·L, …]: in ONNX one plain Gather on axis 0, the form that runtimes
    handle best, and one that no exporter ties to the example's batch size.
    """
    batch, length, *rest = x.shape
    start = torch.arange(batch, device=x.device).unsqueeze(1) * length  # (B, 1)
    rows = (index + start).reshape(-1)  # (B·K,)
    return x.reshape(batch * length, *rest).index_select(0, rows).reshape(batch, index.shape[1], *rest)
