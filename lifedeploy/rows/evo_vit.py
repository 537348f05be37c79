"""The row of ``evo-vit``."""

from __future__ import annotations

from collections.abc import Sequence

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import NoOptions
from lifedeploy.published import Published, Renamed
from lifedeploy.recipe import LR_BASE_SIZE, TrainingStage
from lifedeploy.schedule import Schedule


def _evo_vit_schedule(
    patches: int, depth: int, keep_rate: float | None, drop_layers: Sequence[int], options: NoOptions
) -> Schedule:
    """Half of the patches from the first drop on; which half is decided anew at the others."""
    return Schedule.from_counts(patches, depth, (patches // 2,) * len(drop_layers), drop_layers)


def _evo_vit_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    """A CLS row in each layer from the first drop layer to the last one."""
    layers = range(schedule.drop_layers[0], schedule.drop_layers[-1] + 1) if schedule.prunes else ()
    return Work.of(schedule, sum(cost.width * (cost.prefix + schedule.tokens[layer - 1]) for layer in layers))


EVO_VIT = Method(
    name="evo-vit",
    title="Evo-ViT",
    reducer="lifedeploy.model.reducers.evo_vit:EvoVitReducer",
    fate="parked",
    stages=(TrainingStage("backbone", reducer=False, backbone=True),),
    # Of 300 epochs from scratch, five to warm up, as DeiT's.
    recipe={"epochs": 2, "backbone_lr": 5e-4, LR_BASE_SIZE: 512, "weight_decay": 0.05, "warmup": 5 / 300},
    work=_evo_vit_work,
    schedule=_evo_vit_schedule,
    published=Published(
        renamed=(
            Renamed("blocks.*.attn.qkv", ("qks.*.qk", "vs.*.v"), rows=(2, 1)),
            Renamed("blocks.*.attn.proj", ("projs.*",)),
            Renamed("blocks.*.norm1", ("norms.*",)),
        ),
        unused=("head_cls.", "norm_cls."),
        backbone_alone=False,
    ),
    own_budget="half of the patches, from a third of the layers on",
    drop_layers=(4, 8),
    takes_counts=False,
    takes_keep_rate=False,
)
