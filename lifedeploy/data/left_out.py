"""What lies in a data set and is not used: counted by reason, with an example of each, so that it can be said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lifedeploy.text import LINE, printable, shortened

_ENDINGS_NAMED = 4
_LONGEST_ENDING = 24  # characters shown of one: a dot may be anywhere in a name


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files, members or rows that are not used, all for one reason."""

    reason: str
    count: int
    first: str  # an example: its name below ``where``
    where: str  # a folder, wds/FOLDER or hfds/NAME
    unit: str = "file"

    def __str__(self) -> str:
        """One line for whoever expected them to be used."""
        if self.count == 1:
            return f"1 {self.unit} of {self.where} is not used: {self.reason}: {self.first}"
        return f"{self.count:,} {self.unit}s of {self.where} are not used: {self.reason}, the first is {self.first}"


def unique(left: Iterable[LeftOut]) -> list[str]:
    """The lines of several sets, each once: two halves share what lies beside them."""
    return list(dict.fromkeys(map(str, left)))


@dataclass
class _Kind:
    first: str
    count: int = 0
    endings: Counter[str] = field(default_factory=Counter)


class LeftOutCounter:
    """Counts what is left out, apart for every top folder (or shard), of which a half takes its own."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, reason: str, name: str, *, ending: str | None = None, count: int = 1) -> None:
        """``count`` of them, ``name`` the first; ``ending`` is named with the reason ('' is a name without one)."""
        top = name.partition("/")[0] if "/" in name else ""
        kind = self._kinds.setdefault((top, reason), _Kind(name))
        kind.count += count
        if ending is not None:
            kind.endings[ending or "none"] += count

    def of(self, top: str, where: str) -> tuple[LeftOut, ...]:
        """What is left out below one top folder, which lies at ``where``."""
        kinds = [(reason, kind) for (part, reason), kind in self._kinds.items() if part == top]
        return tuple(_line(reason, [kind], where, "file", top + "/") for reason, kind in kinds)

    def but(self, tops: Iterable[str], where: str, unit: str = "file") -> tuple[LeftOut, ...]:
        """What is left out everywhere else."""
        taken = set(tops)
        merged: dict[str, list[_Kind]] = {}
        for (part, reason), kind in self._kinds.items():
            if part not in taken:
                merged.setdefault(reason, []).append(kind)
        return tuple(_line(reason, kinds, where, unit) for reason, kinds in merged.items())


def _line(reason: str, kinds: list[_Kind], where: str, unit: str, prefix: str = "") -> LeftOut:
    endings: Counter[str] = sum((kind.endings for kind in kinds), Counter())
    if endings:
        named = sorted(endings, key=lambda ending: (-endings[ending], ending))
        shown = [shortened(ending, _LONGEST_ENDING) for ending in named[:_ENDINGS_NAMED]]
        reason = f"{reason} ({', '.join(shown)}{', …' if len(named) > _ENDINGS_NAMED else ''})"
    first = kinds[0].first.removeprefix(prefix)
    return LeftOut(
        reason=reason,
        count=sum(kind.count for kind in kinds),
        first=printable(first) if len(first) <= LINE else shortened(first),
        where=printable(where),
        unit=unit,
    )
