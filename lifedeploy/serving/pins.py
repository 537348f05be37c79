"""Which distributions a deployed engine needs, in the versions that are installed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from lifedeploy.engines.base import Engine
from lifedeploy.errors import UsageError
from lifedeploy.serving.wheel import NAME

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^]]*)\])?[^;]*(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def pinned(engine: type[Engine]) -> dict[str, str]:
    """Distribution → version: all that lifedeploy needs to run ``engine``, without torch, and what these need.

    Raises:
        UsageError: one is not installed here, so that no version of it is known to work.
    """
    pins: dict[str, str] = {}
    waiting = list(_needed(metadata.distribution(NAME), frozenset({engine.extra}), all_of_it=True))
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise UsageError(
                f"{name} is not installed here, so its version cannot be pinned", hint=f"pip install {name}"
            ) from error
        pins[_normal(name)] = distribution.version
        for needed in _needed(distribution, extras):
            if needed not in seen:
                seen.add(needed)
                waiting.append(needed)
    return dict(sorted(pins.items()))


def _needed(
    distribution: metadata.Distribution, extras: frozenset[str], *, all_of_it: bool = False
) -> Iterator[tuple[str, frozenset[str]]]:
    """What a distribution needs with these extras, as far as it is there; or ``all_of_it``.

    Conditions on the Python or the system are not evaluated: here they were met when it was installed, or else what
    they are about is not here, or here for another reason, and does no harm.
    """
    for requirement in distribution.requires or ():
        name, asked, condition = _parsed(requirement)
        wanted = _EXTRA.findall(condition)
        if wanted and not extras & set(wanted):
            continue
        if all_of_it or _is_there(name):
            yield _normal(name), asked


def _is_there(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _parsed(requirement: str) -> tuple[str, frozenset[str], str]:
    """The name, extras and condition of a requirement."""
    match = _REQUIREMENT.match(requirement)
    assert match is not None  # of distributions that are installed
    name, extras, condition = match.groups()
    return name, frozenset(filter(None, re.split(r"[,\s]+", extras or ""))), condition or ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
