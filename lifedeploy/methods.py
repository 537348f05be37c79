"""The methods. One row says of each all that the rest of the package has to know, and how it drops tokens is in its
reducer; nowhere else is a method called by its name.

Other packages add methods through the entry-point group ``lifedeploy.methods``: an entry called as the method, whose
object is a :class:`Method`. docs/architecture.md says how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from lifedeploy.cost import Cost, Work
from lifedeploy.errors import UsageError
from lifedeploy.method import BASELINE, BOUND, ROLES, SLIMMED, Method, NoOptions, Option, TrainingStage, option
from lifedeploy.published import Published, Renamed
from lifedeploy.reading import reason
from lifedeploy.schedule import Schedule
from lifedeploy.text import quoted, shortened

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "BASELINE",
    "BOUND",
    "DEFAULT",
    "GROUP",
    "ROLES",
    "SLIMMED",
    "Cost",
    "Method",
    "NoOptions",
    "Option",
    "Published",
    "Renamed",
    "Schedule",
    "TrainingStage",
    "Work",
    "baseline",
    "bound",
    "built_in",
    "get",
    "names",
    "option",
    "plugins",
    "role_of",
    "title_of",
    "variants",
]

GROUP = "lifedeploy.methods"


@dataclass(frozen=True)
class LifeOptions:
    """How sharply a key fades around the end of its life."""

    temperature: Annotated[float, Meta(ge=0.001, le=1000)] = option(1.5, "U of eq. 7.", training=True)


@dataclass(frozen=True)
class FirstKOptions:
    """Where it cuts: where the method does that it is the bound of."""

    inside: bool = option(False, "Between attention and MLP of a drop layer, not behind it.")


def _first_k_work(schedule: Schedule, options: FirstKOptions, cost: Cost) -> Work:
    behind = tuple(schedule.after(layer) for layer in range(1, schedule.depth + 1))
    return Work(schedule.tokens, behind if options.inside else schedule.tokens)


@dataclass(frozen=True)
class RandomOptions:
    """Which order it is."""

    draw: Annotated[int, Meta(ge=0, le=10**9)] = option(0, "Which random order: its seed.")


@dataclass(frozen=True)
class EvitOptions:
    """What becomes of dropped tokens."""

    fuse: bool = option(True, "Fuse the tokens that are dropped into one; else they are gone.")


def _evit_schedule(
    patches: int, depth: int, keep_rate: float, drop_layers: Sequence[int], options: EvitOptions
) -> Schedule:
    """Of n tokens, earlier fused ones among them, ⌈ρ n⌉ stay at each drop, and the fused one comes to them.

    Where that is no fewer than before nothing is dropped: one token alone would be fused with itself.
    """
    counts: list[int] = []
    for _ in drop_layers:
        tokens = counts[-1] if counts else patches
        counts.append(min(math.ceil(round(keep_rate * tokens, 6)) + options.fuse, tokens))
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _evit_work(schedule: Schedule, options: EvitOptions, cost: Cost) -> Work:
    """The MLP of a drop layer has fewer tokens than its attention; the CLS row is computed apart from that."""
    scoring = 0
    for layer in schedule.leaving_layers:
        before, after = schedule.tokens[layer - 1], schedule.after(layer)
        scoring += cost.width * (cost.prefix + before)  # q_cls Kᵀ
        if options.fuse:
            scoring += cost.width * (before - after + 1)  # the weighted sum of those that are dropped
    return Work(schedule.tokens, tuple(schedule.after(layer) for layer in range(1, schedule.depth + 1)), scoring)


def _topk_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    return _evit_work(schedule, EvitOptions(fuse=False), cost)


def _dynamicvit_schedule(
    patches: int, depth: int, keep_rate: float, drop_layers: Sequence[int], options: NoOptions
) -> Schedule:
    """⌊ρ^k N⌋ tokens after the k-th drop, of the first count."""
    counts = [math.floor(round(patches * keep_rate**k, 6)) for k in range(1, len(drop_layers) + 1)]
    return Schedule.of_keep_rate(patches, depth, keep_rate, counts, drop_layers)


def _dynamicvit_work(schedule: Schedule, options: NoOptions, cost: Cost) -> Work:
    """A predictor maps C channels of every patch to C, C/2, C/4 and 2."""
    width = cost.width
    per_patch = width * width + width * (width // 2) + (width // 2) * (width // 4) + (width // 4) * 2
    return Work.of(schedule, per_patch * sum(schedule.tokens[layer - 1] for layer in schedule.leaving_layers))


def _life_work(schedule: Schedule, options: LifeOptions, cost: Cost) -> Work:
    """s_i = x̄_clsᵀ W x̄_i (eq. 2): W meets one token, and what comes of it each patch."""
    return Work.of(schedule, cost.width**2 + cost.width * schedule.patches if schedule.drop_layers else 0)


# In the order in which an export holds them: the slimmed ones, what their speed-up is over, and the bound on it.
_BUILT_IN = (
    Method(
        name="life",
        title="LifeViT",
        reducer="lifedeploy.model.reducers.life:LifeReducer",
        selection="once",
        predicts_lives=True,
        derives=True,
        options=LifeOptions,
        stages=(
            TrainingStage("predictor", reducer=True, backbone=False),
            TrainingStage("backbone", reducer=False, backbone=True),
        ),
        work=_life_work,
    ),
    Method(
        name="evit",
        title="EViT",
        reducer="lifedeploy.model.reducers.evit:EvitReducer",
        inside=True,
        options=EvitOptions,
        stages=(TrainingStage("backbone", reducer=False, backbone=True),),
        work=_evit_work,
        schedule=_evit_schedule,
        published=Published(arguments=("base_keep_rate", "drop_loc", "fuse_token")),
    ),
    Method(
        name="topk",
        title="Top-K by CLS attention",
        reducer="lifedeploy.model.reducers.topk:TopKReducer",
        inside=True,
        stages=(TrainingStage("backbone", reducer=False, backbone=True),),
        work=_topk_work,
    ),
    Method(
        name="dynamicvit",
        title="DynamicViT",
        reducer="lifedeploy.model.reducers.dynamicvit:DynamicVitReducer",
        drop_layers=(3, 6, 9),
        work=_dynamicvit_work,
        schedule=_dynamicvit_schedule,
        published=Published(parameters=("score_predictor.",), arguments=("base_rate",)),
    ),
    Method(
        name="random",
        title="random order",
        reducer="lifedeploy.model.reducers.random:RandomReducer",
        selection="once",
        derives=True,
        options=RandomOptions,
        stages=(TrainingStage("backbone", reducer=False, backbone=True),),
        work=lambda schedule, options, cost: Work.of(schedule, cost.width * schedule.patches * schedule.prunes),
    ),
    Method(
        name="dense",
        title="nothing dropped",
        reducer="lifedeploy.model.reducers.dense:DenseReducer",
        role=BASELINE,
        stem="dense",
        selection="none",
        stages=(TrainingStage("dense", reducer=False, backbone=True),),
        work=lambda schedule, options, cost: Work.dense(schedule),
    ),
    Method(
        name="first-k",
        title="tokens cut by position",
        reducer="lifedeploy.model.reducers.first_k:FirstKReducer",
        role=BOUND,
        stem="first-k",
        selection="none",
        options=FirstKOptions,
        work=_first_k_work,
    ),
)
_TABLE: Mapping[str, Method] = {method.name: method for method in _BUILT_IN}
DEFAULT = _BUILT_IN[0].name


def baseline() -> Method:
    """The method that drops nothing."""
    return next(method for method in _BUILT_IN if method.role == BASELINE)


def bound() -> Method:
    """The method that only slices."""
    return next(method for method in _BUILT_IN if method.role == BOUND)


def variants(method: Method) -> tuple[Method, ...]:
    """What an export of ``method`` holds: itself, its baseline and its bound."""
    return (method, baseline(), bound())


def built_in(name: str) -> Method | None:
    """A method of this package; None where it is one of another, or none at all."""
    return _TABLE.get(name)


def role_of(name: str) -> str:
    """The role of a method that a file names: what is no baseline and no bound is slimmed, known here or not."""
    return _TABLE[name].role if name in _TABLE else SLIMMED


def names(*roles: str) -> tuple[str, ...]:
    """All methods, or those of some roles, built in and added; nothing is imported for it."""
    added = [name for name in sorted(plugins()) if name not in _TABLE]
    return tuple(name for name in (*_TABLE, *added) if not roles or role_of(name) in roles)


def get(name: str, *roles: str) -> Method:
    """The method called ``name``; of one of ``roles``, if any are given.

    Raises:
        UsageError: there is none, or two of that name, or one that cannot be imported; or it has another role.
    """
    entries = plugins().get(name, ())
    if len(entries) + (name in _TABLE) > 1:
        owners = ["lifedeploy itself"] * (name in _TABLE) + [_package(entry) for entry in entries]
        raise UsageError(
            f"method {quoted(name)} is there more than once: of {' and of '.join(owners)}",
            hint="uninstall a package that adds it",
        )
    if name not in _TABLE and not entries:
        import difflib

        there = names(*roles)
        near = difflib.get_close_matches(shortened(name, 60).lower(), there, n=3, cutoff=0.5)
        raise UsageError(
            f"method {quoted(name)} is unknown; there are: {', '.join(there)}",
            hint=f"did you mean {', '.join(near)}?" if near else None,
        )
    method = _TABLE[name] if name in _TABLE else _loaded(entries[0])
    if roles and method.role not in roles:
        raise UsageError(
            f"{name} is no method to slim a model by, but the {method.role} that every export holds; "
            f"there are: {', '.join(names(*roles))}"
        )
    return method


def title_of(name: str) -> str:
    """The title of a method that a file names; its name, where it is not known here."""
    try:
        return get(name).title
    except UsageError:
        return name


@cache
def plugins() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Name → who adds a method of that name."""
    from importlib.metadata import entry_points  # help for the commands as they are needs none

    entries: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        entries[entry.name] = (*entries.get(entry.name, ()), entry)
    return entries


@cache
def _loaded(entry: EntryPoint) -> Method:
    whose = f"method {quoted(entry.name)} of {_package(entry)} cannot be used: "
    try:
        method = entry.load()
    except UsageError as error:
        raise UsageError(f"{whose}{error.message}") from error
    except (Exception, SystemExit) as error:  # code of others: anything may come out of it
        raise UsageError(f"{whose}{entry.value} cannot be imported: {reason(error)}") from error
    if not isinstance(method, Method):
        raise UsageError(f"{whose}{entry.value} is a {type(method).__name__}; expected a lifedeploy.methods.Method")
    if method.name != entry.name:
        raise UsageError(f"{whose}its row is called {quoted(method.name)}")
    if method.role != SLIMMED:
        raise UsageError(f"{whose}its role is {method.role}; expected {SLIMMED}")
    return replace(method, package=_package(entry))


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
