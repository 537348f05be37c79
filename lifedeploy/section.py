"""Objects in a manifest: with types, and without losing what an older or a newer version wrote.

A section says what it was given, and nothing else: a fact that an older version did not write is not written now
either, and what a newer version wrote beside the facts that are known here is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from lifedeploy.typed import described

_NEEDED = "needed"


def absent() -> Any:
    """A fact that may be missing: ``None`` then. In JSON it is missing too, and never null."""
    return field(default_factory=lambda: None)


def needed() -> Any:
    """A fact that every version writes; ``None`` where a file lacks it all the same. What is shown or computed with is
    there after :meth:`~lifedeploy.manifest.Manifest.require_complete`."""
    return field(default_factory=lambda: None, metadata={_NEEDED: True})


@dataclass(frozen=True, kw_only=True)
class Section:
    """An object in a manifest. Subclasses are frozen dataclasses of keywords.

    It keeps what it was made of, or read from, and that is what it is in JSON. Other facts come with :meth:`but`, since
    :func:`dataclasses.replace` knows nothing of facts that are missing or of a newer version.
    """

    _given: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __new__(cls, **given: Any) -> Self:
        section = super().__new__(cls)
        object.__setattr__(section, "_given", given)
        return section

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self._given)

    @classmethod
    def read(cls, data: Mapping[str, Any], what: str) -> Self:
        """The section that JSON types describe; ``what`` is what errors call it.

        Raises:
            ArtifactError: a fact is missing, or of another kind or size; with its place.
        """
        section = described(data, cls, what)
        keep_given(section, data)
        return section

    def but(self, **facts: Any) -> Self:
        """The same with these facts; without those that are ``None``."""
        section = replace(self, **facts)
        given = {
            name: value for name, value in {**self._given, **facts}.items() if value is not None or name not in facts
        }
        object.__setattr__(section, "_given", given)
        return section

    def missing(self) -> list[str]:
        """Facts that are needed and were not given."""
        return [item.name for item in fields(self) if _NEEDED in item.metadata and item.name not in self._given]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {name: plain(value) for name, value in self._given.items()}


def plain(value: Any) -> Any:
    """Dataclasses, sections and what is in them as plain JSON types."""
    if isinstance(value, Section):
        return value.to_dict()
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def keep_given(value: object, data: Any) -> None:
    """Let every section in ``value`` keep the JSON object that it was read from."""
    if isinstance(value, Section):
        object.__setattr__(value, "_given", data)
    if is_dataclass(value):
        for item in fields(value):
            if item.name in data:
                keep_given(getattr(value, item.name), data[item.name])
    elif isinstance(value, tuple):
        for item, written in zip(value, data, strict=True):
            keep_given(item, written)
