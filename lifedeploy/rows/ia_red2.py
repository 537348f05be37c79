"""The row of ``ia-red2``."""

from __future__ import annotations

from lifedeploy.cost import Cost, Work
from lifedeploy.method import Method
from lifedeploy.options import NoOptions
from lifedeploy.published import Published
from lifedeploy.recipe import TrainingStage
from lifedeploy.schedule import Schedule


def _ia_red2_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    """What the policy token makes of a layer's two projections is known beforehand: a vector for each head."""
    return Work.of(schedule, cost.width * cost.heads * sum(schedule.tokens[t - 1] for t in schedule.leaving_layers))


IA_RED2 = Method(
    name="ia-red2",
    title="IA-RED² scores, fixed budget",
    shown_by_title=True,
    reducer="lifedeploy.model.reducers.ia_red2:IaRed2Reducer",
    last_block="prefix",
    stages=(
        TrainingStage("interpreter", reducer=True, backbone=False),
        TrainingStage("backbone", reducer=False, backbone=True, soft=False),  # where nothing learns, nothing is drawn
    ),
    recipe={"single_stage": True},  # for 90 epochs, group by group; rates are not in the paper
    work=_ia_red2_work,
    published=Published(parameters=("interpreters.",)),
)
