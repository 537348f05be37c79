"""What a graph needs differently from the model, as a wrapper: the model never asks whether it is exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lifedeploy.kept import kept_name
from lifedeploy.model.vit import SlimViT
from lifedeploy.spec import GROUPS_NAME, LIVES_NAME, SCORES_NAME, PreprocessSpec


class Normalise(nn.Module):
    """uint8 images as a camera or a decoder gives them, (B, H, W, 3), to the model's input, (B, 3, H, W)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: PreprocessSpec) -> None:
        super().__init__()
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        # (x / 255 - mean) / std as one multiply and one add.
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift


Told = Callable[[tuple[str, ...]], None]


class ExportModel(nn.Module):
    """The model as it is traced: images in; the output, and after it whatever the graph may be asked for, out.

    ``told`` hears the names of what comes out whenever it runs.
    """

    def __init__(
        self, model: SlimViT, *, output: str, preprocess: PreprocessSpec | None, selection: str, told: Told
    ) -> None:
        super().__init__()
        self.preprocess = Normalise(preprocess) if preprocess else None
        self.model = model
        self.output = output
        self.selection = selection
        self.told = told

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the model gives, lives, scores and groups where it tells any, and the kept tokens after every drop.

        Where a method ranks once, those after the first drop tell all; where nothing leaves after a drop layer, those
        after the one before do.
        """
        if self.preprocess is not None:
            images = self.preprocess(images)
        answer = self.model(images)
        given = {self.output: answer.logits}
        if answer.lives is not None and answer.scores is not None:
            given |= {LIVES_NAME: answer.lives, SCORES_NAME: answer.scores}
        if answer.groups is not None:
            given[GROUPS_NAME] = answer.groups
        kept = [] if self.selection == "none" else sorted(answer.kept.items())
        for layer, positions in kept[:1] if self.selection == "once" else kept:
            if not any(positions is other for other in given.values()):
                given[kept_name(layer)] = positions
        self.told(tuple(given))
        return tuple(given.values())
