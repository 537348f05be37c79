"""The files below a folder, one after the other: never all of them in memory, and always in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lifedeploy.data.formats import endings
from lifedeploy.data.left_out import LeftOutCounter
from lifedeploy.data.walk import nameless
from lifedeploy.errors import DataError
from lifedeploy.reading import reason
from lifedeploy.scoring.places import Entry, LocalPlace, Place

SHARD = ".tar"
_WILD = frozenset("*?[")
_ANY = "**"  # any number of folders, none too


def is_pattern(text: str) -> bool:
    """Whether it has a wildcard in it."""
    return not _WILD.isdisjoint(text)


def split_pattern(text: str) -> tuple[str, str]:
    """The folder that a pattern is about, and the pattern below it: ``photos/a*/*.jpg`` → ``photos``, ``a*/*.jpg``."""
    parts = text.split("/")
    first = next(number for number, part in enumerate(parts) if is_pattern(part))
    folder = "/".join(parts[:first])
    return folder or ("/" if text.startswith("/") else "."), "/".join(parts[first:])


def matches(name: str, pattern: str) -> bool:
    """Whether a path is one of a pattern: ``*`` and ``?`` stay within a folder, ``**`` is any number of them."""
    return _fits(name.split("/"), pattern.split("/"))


def may_hold(folder: str, pattern: str) -> bool:
    """Whether something below a folder may be like a pattern."""
    parts, patterns = folder.split("/"), pattern.split("/")
    plain = patterns[: patterns.index(_ANY)] if _ANY in patterns else patterns
    if _ANY not in patterns and len(parts) >= len(patterns):
        return False
    return all(map(fnmatchcase, parts, plain))


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == _ANY:
        return any(_fits(parts[number:], patterns[1:]) for number in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def is_image(name: str) -> bool:
    """Whether a name ends as an image's does."""
    return Path(name).suffix.lower() in endings()


def is_shard(name: str) -> bool:
    """Whether a name ends as a shard's does."""
    return Path(name).suffix.lower() == SHARD


def files_below(
    root: Place,
    wanted: Callable[[str], bool],
    passed: LeftOutCounter,
    *,
    what: str = "image",
    pattern: str = "",
) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files below ``root`` that are ``wanted``, by their paths there; what is not is counted.

    Links are followed, but into no folder that they lie in; what lies under two names is there twice. ``pattern`` is
    what paths are to be like; what is not is not meant, and not counted.
    """
    if root.kind() != "folder":
        return
    around = _folders_around(root)
    stack: list[tuple[str, object, Iterator[Entry]]] = [("", root.identity(), iter(root.entries()))]
    while stack:
        prefix, _, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        name = prefix + entry.name
        hidden = nameless(entry.name)
        if pattern and not (may_hold(name, pattern) if entry.kind == "folder" else matches(name, pattern)):
            continue
        if hidden:
            passed.add(hidden, name)
        elif entry.kind == "folder":
            identity, inside = _opened(root.child(name), name, passed)
            if identity is not None and identity in (*around, *(above for _, above, _ in stack)):
                passed.add("link to a folder that it lies in", name)
            else:
                stack.append((name + "/", identity, inside))
        elif not wanted(name):
            passed.add(f"no {what} by name", name, ending=Path(name).suffix.lower())
        elif entry.kind != "file":
            passed.add("no regular file", name)
        else:
            yield name, entry.size


def _folders_around(root: Place) -> tuple[object, ...]:
    if not isinstance(root, LocalPlace):
        return ()
    return tuple(LocalPlace(folder).identity() for folder in root.path.resolve().parents)


def _opened(folder: Place, name: str, passed: LeftOutCounter) -> tuple[object, Iterator[Entry]]:
    """A folder's identity, and what lies in it: nothing, and counted, where it cannot be opened."""
    try:
        return folder.identity(), iter(folder.entries())
    except DataError as error:
        if not isinstance(folder, LocalPlace):
            raise  # a store that is not reached now may be reached later
        passed.add(f"folder that cannot be opened ({reason(error.__cause__ or error)})", name)
        return None, iter(())
