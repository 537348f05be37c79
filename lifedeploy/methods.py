"""The methods. A row of :mod:`lifedeploy.rows` says of each all that the rest of the package has to know, and how it
drops tokens is in its reducer; nowhere else is a method called by its name.

Other packages add methods through the entry-point group ``lifedeploy.methods``: an entry called as the method, whose
object is a :class:`Method`. docs/architecture.md says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from lifedeploy.cost import Cost, Work
from lifedeploy.errors import UsageError
from lifedeploy.method import BASELINE, BOUND, ROLES, SLIMMED, Fate, Method
from lifedeploy.options import NoOptions, Option, option
from lifedeploy.published import Published, Renamed
from lifedeploy.reading import reason
from lifedeploy.recipe import TrainingStage
from lifedeploy.rows.avit import AVIT, AVIT_RANKED
from lifedeploy.rows.dynamicvit import DYNAMICVIT
from lifedeploy.rows.evit import EVIT, TOPK
from lifedeploy.rows.evo_vit import EVO_VIT
from lifedeploy.rows.ia_red2 import IA_RED2
from lifedeploy.rows.life import LIFE
from lifedeploy.rows.measures import DENSE, FIRST_K, PLAIN, RANDOM
from lifedeploy.rows.tome import TOME
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
    "fate_of",
    "get",
    "known",
    "names",
    "option",
    "plugins",
    "role_of",
    "title_of",
    "variants",
]

GROUP = "lifedeploy.methods"


# In the order in which they are listed, and in which an export holds them: the slimmed ones, what their speed-up is
# over, and the bound on it.
_BUILT_IN = (LIFE, EVIT, TOPK, DYNAMICVIT, EVO_VIT, TOME, AVIT, AVIT_RANKED, IA_RED2, RANDOM, PLAIN, DENSE, FIRST_K)
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


def known(name: str) -> Method | None:
    """A method that a file names, of another package too; None where it is not there, or cannot be used."""
    try:
        return get(name)
    except UsageError:
        return None


def title_of(name: str) -> str:
    """The title of a method that a file names; its name, where it is not known here."""
    method = known(name)
    return name if method is None else method.title


def fate_of(name: str) -> Fate:
    """What becomes of tokens under a method that a file names; where it is not known here, they are dropped."""
    method = known(name)
    return "dropped" if method is None else method.fate


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
