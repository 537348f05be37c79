"""How much each method is given: its keep rate, or what brings it to the work, or the speed, of the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.bench.comparison import Trial
from lifedeploy.budget import Budget, Sized, at_keep_rate, at_macs, nearer
from lifedeploy.method import Method
from lifedeploy.model import backbones
from lifedeploy.model.request import ModelRequest, require_possible
from lifedeploy.schedule import DEFAULT_KEEP_RATE
from lifedeploy.workflows.compare.request import CompareRequest
from lifedeploy.workflows.compare.workshop import Workshop

_AS_FAST = 0.02  # a method is as fast as another if it is within this share of it
_MOST_TRIALS = 4  # of one method, on the way to equal speed
_TRIAL_S = 30.0  # for each contest on that way, at most
_OFF = 0.02  # share of the work asked for that a method may miss without a word


def budgets_of(request: CompareRequest, shop: Workshop) -> tuple[dict[str, Budget], tuple[Trial, ...]]:
    """Each method's keep rate; and what was measured to find it.

    Raises:
        ScheduleError, UsageError: a method can have none.
    """
    first, *others = request.slimmed
    rate = request.model.keep_rate or DEFAULT_KEEP_RATE
    asked = request.model
    backbone = backbones.sized(asked.backbone, image_size=asked.image_size, num_classes=asked.num_classes)
    for method in request.slimmed:  # refused before anything is made
        require_possible(method, rate, backbone, asked.backbone)
    spec = shop.exported(wanted_of(request, first, None if first.own_budget else rate), first.name).manifest.spec
    if spec.image_size != asked.image_size or spec.num_classes != asked.num_classes:  # the weights have their own
        backbone = backbones.sized(spec.timm_name, image_size=spec.image_size, num_classes=spec.num_classes)
    budgets = {first.name: at_keep_rate(first, rate, backbone)}
    macs = budgets[first.name].macs
    for method in others:
        same = request.at == "keep-rate" or not method.takes_keep_rate
        budgets[method.name] = at_keep_rate(method, rate, backbone) if same else at_macs(method, macs, backbone)
        if budgets[method.name].keep_rate is None:
            shop.warn(f"{method.name} has a budget of its own, whatever the others are brought to: {method.own_budget}")
        elif request.at == "macs" and abs(budgets[method.name].macs / macs - 1) > _OFF:
            nearest, wanted = budgets[method.name].macs / 1e9, macs / 1e9
            shop.warn(f"{method.name} comes no nearer to {first.name}'s {wanted:.3g} GMACs than {nearest:.3g}")
    if request.at != "speed":
        return budgets, ()
    return _at_speed(request, shop, budgets, backbone)


def _at_speed(
    request: CompareRequest, shop: Workshop, budgets: dict[str, Budget], backbone: Sized
) -> tuple[dict[str, Budget], tuple[Trial, ...]]:
    """Keep rates under which all methods are as fast as the first one, on the first engine in the first setting."""
    first = request.slimmed[0].name
    mode, batch = request.bench.modes[0], request.bench.batches[0]
    stop = replace(request.bench.stop, budget_s=min(_TRIAL_S, request.bench.stop.budget_s))
    moving = [method for method in request.slimmed[1:] if method.takes_keep_rate]
    tried: dict[str, list[tuple[Budget, float]]] = {method.name: [] for method in moving}
    trials = []
    for _ in range(_MOST_TRIALS):
        if not moving:
            break
        now_tried = {first: budgets[first]} | {method.name: budgets[method.name] for method in moving}
        chosen = shop.variants(exports_of(request, shop, now_tried), shop.engines[:1])
        ended, _ = shop.contest(chosen, first, (mode, batch), stop, shop.progress)
        copies = ended.rows[0].setting.copies
        speeds = {row.subject.shown: row.over_like or 1.0 for row in ended.rows if row.setting.copies is copies}
        for method in tuple(moving):
            budget, speed = budgets[method.name], speeds[method.name]
            assert budget.keep_rate is not None  # it takes one
            trials.append(Trial(method=method.name, keep_rate=budget.keep_rate, gmacs=budget.macs / 1e9, speed=speed))
            known = tried[method.name]
            known.append((budget, speed))
            target = nearer([budget.macs for budget, _ in known], [speed for _, speed in known])
            budgets[method.name] = at_macs(method, target, backbone)
            again = budgets[method.name].macs in [budget.macs for budget, _ in known]
            if abs(speed - 1) <= _AS_FAST or again:
                moving.remove(method)
    for name, known in tried.items():
        budgets[name], speed = min(known, key=lambda trial: abs(trial[1] - 1))
        if abs(speed - 1) > _AS_FAST:
            shop.warn(f"{name} comes no nearer to the speed of {first} than {speed:.3g} of it")
    return budgets, tuple(trials)


def exports_of(request: CompareRequest, shop: Workshop, budgets: Mapping[str, Budget]) -> dict[str, Artifact]:
    """The export of each method at what it is given."""
    return {
        name: shop.exported(wanted_of(request, methods.get(name), budget.keep_rate), name)
        for name, budget in budgets.items()
    }


def wanted_of(request: CompareRequest, method: Method, keep_rate: float | None) -> ModelRequest:
    """A method at a keep rate, with its usual drop layers and options."""
    depth = backbones.sized(request.model.backbone).depth
    return replace(
        request.model,
        method=method.name,
        keep_rate=keep_rate,
        drop_layers=method.default_drop_layers(depth),
        options=method.usual_options,
    )
