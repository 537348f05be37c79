"""A plain order-once pruned ViT, in every form whose speed is in question (see ``questions.py``). Needs torch only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifedeploy.schedule import Schedule

KEEP_RATE, PATCH, CLASSES = 0.7, 16, 1000


@dataclass(frozen=True)
class Size:
    """The ViT's."""

    width: int
    depth: int
    heads: int
    side: int  # patches along an edge of the image

    @property
    def schedule(self) -> Schedule:
        """Patch tokens in each layer: 196, 137, 96, 67 after layers 4, 7, 10 at DeiT-S's size."""
        return Schedule.from_keep_rate(self.side**2, self.depth, KEEP_RATE)


@dataclass(frozen=True)
class Form:
    """One way of computing the same model."""

    gather: str = "flat"
    ranking: str = "fp32"
    layout: str = "[B, N, C]"
    attention: str = "operator"


# Forms: the deployed one first, the others are held against it.


def addresses(index: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both leading indices of the tokens ``index`` (B, K), the tokens lying along ``axis`` of what they index."""
    image = torch.arange(len(index), device=index.device)
    return (image[:, None], index) if axis == 1 else (index.T, image)


def flat(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """By rows of [B·N, C]: a plain Gather on axis 0, the form of the deployed graph."""
    first, second = addresses(index, axis)
    rows = first * x.shape[1] + second
    return x.reshape(-1, x.shape[-1]).index_select(0, rows.reshape(-1)).reshape(*rows.shape, x.shape[-1])


def elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Every element by an index of its own: GatherElements."""
    places = index if axis == 1 else index.T
    return x.gather(axis, places.unsqueeze(-1).expand(*places.shape, x.shape[-1]))


def advanced(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """By advanced indexing: GatherND."""
    return x[addresses(index, axis)]


def operator(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention that torch fuses."""
    return F.scaled_dot_product_attention(query, key, value)


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as it is traced for ONNX."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


GATHERS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"flat": flat, "elements": elements, "advanced": advanced}
RANKINGS = {"fp32": torch.float32, "fp16": torch.float16}
LAYOUTS = {"[B, N, C]": 1, "[N, B, C]": 0}  # the axis that tokens lie along
ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"operator": operator, "products": products}
FORMS = {
    1: {name: Form(gather=name) for name in GATHERS},
    2: {name: Form(ranking=name) for name in RANKINGS},
    3: {name: Form(layout=name) for name in LAYOUTS},
    4: {name: Form(attention=name) for name in ATTENTIONS},
}


class Block(nn.Module):
    """A pre-norm transformer block whose tokens lie along either axis."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, form: Form) -> Tensor:
        x = x + self.proj(attend(self.qkv(self.norm1(x)), self.heads, form))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def attend(qkv: Tensor, heads: int, form: Form) -> Tensor:
    """(B, N, 3 C) or (N, B, 3 C) → (B, N, C) or (N, B, C)."""
    axis = LAYOUTS[form.layout]
    split = qkv.unflatten(-1, (3, heads, -1))  # (B, N, 3, H, D) or (N, B, 3, H, D)
    query, key, value = split.permute(2, 1 - axis, 3, axis, 4).unbind()  # (B, H, N, D)
    attended = ATTENTIONS[form.attention](query, key, value)
    return (attended.permute(0, 2, 1, 3) if axis == 1 else attended.permute(2, 0, 1, 3)).flatten(-2)


def scores_of(x: Tensor, weight: Tensor) -> Tensor:
    """Scores (B, N) of the patches of normalised tokens (B, 1 + N, C), in the precision of ``weight``."""
    x = x.to(weight.dtype)
    return ((x[:, :1] @ weight) @ x[:, 1:].transpose(1, 2)).squeeze(1)


class Plain(nn.Module):
    """A ViT with CLS, ordered once and then sliced, with the same random weights wherever it is made."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.schedule = size.schedule
        self.embed = nn.Conv2d(3, size.width, PATCH, PATCH)
        self.cls = nn.Parameter(torch.randn(size.width))
        self.position = nn.Parameter(torch.randn(1 + size.side**2, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.predictor_norm, self.norm = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, CLASSES)
        weight = torch.eye(size.width)
        self.to(device, dtype).eval()
        self.predictors = {name: weight.to(device, precision) for name, precision in RANKINGS.items()}

    def forward(self, images: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) → logits (B, classes) and the kept patches, best first (B, K)."""
        axis = LAYOUTS[form.layout]
        x = self.embed(images).flatten(2)  # (B, C, N)
        x = x.transpose(1, 2) if axis == 1 else x.permute(2, 0, 1)
        shape = list(x.shape)
        shape[axis] = 1
        x = torch.cat((self.cls.expand(shape), x), dim=axis) + self.position.unsqueeze(1 - axis)
        for layer, block in enumerate(self.blocks, start=1):
            x = block(x, form)
            if layer == self.schedule.base_layer:
                x, kept = self._order(x, form)
            elif layer in self.schedule.drop_layers:
                x = x.narrow(axis, 0, 1 + self.schedule.after(layer))
        return self.head(self.norm(x.select(axis, 0))), kept

    def _order(self, x: Tensor, form: Form) -> tuple[Tensor, Tensor]:
        axis = LAYOUTS[form.layout]
        tokens = self.predictor_norm(x)
        scores = scores_of(tokens if axis == 1 else tokens.transpose(0, 1), self.predictors[form.ranking])
        kept = scores.topk(self.schedule.after(self.schedule.base_layer), dim=1, sorted=True).indices
        return GATHERS[form.gather](x, F.pad(kept + 1, (1, 0)), axis), kept  # CLS is token 0
