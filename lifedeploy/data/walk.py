"""The files of a data set's folder: no hidden ones, every real folder once, and all that is passed over counted."""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy.data.formats import endings
from lifedeploy.data.left_out import LeftOutCounter
from lifedeploy.errors import DataError
from lifedeploy.text import is_utf8

Identity = tuple[int, int]  # device and inode: the same for all names of one file or folder


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder holds. Names are paths below it with forward slashes, in natural order."""

    root: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]  # those directly in it, whatever they hold, linked ones too
    links: dict[str, Identity]  # files that are links, and what they lead to
    passed: LeftOutCounter

    def below(self, folder: str) -> tuple[str, ...]:
        """The files below one folder, by their names there."""
        return tuple(name[len(folder) + 1 :] for name in self.files if name.startswith(folder + "/"))


def once(listing: Listing, prefer: Callable[[str], bool] = lambda name: False) -> Listing:
    """``listing`` with every real file once: a link to a file that is found too is passed over.

    Of several links to one file that is not, the first that ``prefer`` chooses stays, else the first. Hard links are
    copies here: nothing tells which of them is the file.
    """
    if not listing.links:
        return listing
    named: dict[Identity, str] = {}
    for name in listing.files:
        if name not in listing.links:
            named.setdefault(_identity(f"{listing.root}/{name}"), name)
    links = [name for name in listing.files if name in listing.links]
    for name in sorted(links, key=lambda name: not prefer(name)):  # stable: in natural order otherwise
        named.setdefault(listing.links[name], name)
    second = {name for name in links if named[listing.links[name]] != name}
    for name in (name for name in links if name in second):
        listing.passed.add("link to a file that is read under another name", name)
    return replace(listing, files=tuple(name for name in listing.files if name not in second))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts as timm does, without regard to case and numbers as numbers; what that leaves equal, by the exact name."""
    # Python makes numbers of 4,300 digits at most; of longer ones the first thousand decide.
    parts: list[str | int] = list(re.split(r"(\d{1,1000})", name.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def walk(
    root: Path,
    wanted: Collection[str] | None = None,
    *,
    word: str = "image",
    known: Collection[str] = (),
    first: Callable[[Sequence[str]], Collection[str]] = lambda folders: (),
) -> Listing:
    """All files below ``root`` with one of the ``wanted`` endings (lower case, with dot; images, unless told).

    Links are followed, to files and to folders. Each real folder is walked once: under its own name if it lies below
    ``root``, else under the link that is least deep; and never one that contains the folder with the link.
    ``first`` says which of the folders in ``root`` are walked before the others, with the links in them.
    ``known`` are names of files that are used for something else, and neither found nor passed over.

    Raises:
        DataError: ``root`` is no folder that can be opened.
    """
    return _Walk(root, endings() if wanted is None else wanted, word, known).result(first)


class _Walk:
    def __init__(self, root: Path, wanted: Collection[str], word: str, known: Collection[str]) -> None:
        self._root = str(root)
        self._wanted, self._known = wanted, known
        self._other = f"no {word} by ending"
        self._files: list[str] = []
        self._folders: list[str] = []
        self._links: dict[str, Identity] = {}
        self._passed = LeftOutCounter()
        # Links to folders, nearest to the root first: of two ways to a folder outside, the plainer one names it.
        self._waiting: list[tuple[int, tuple[list[str | int], str], Identity]] = []
        try:
            self._seen = {_identity(self._root)}
            os.scandir(self._root).close()
        except OSError as error:
            raise DataError(f"{root}/ cannot be opened: {error.strerror}") from error

    def result(self, first: Callable[[Sequence[str]], Collection[str]]) -> Listing:
        real = self._listed("")
        links, self._waiting = self._waiting, []
        before = set(first(sorted([*real, *(name for _, (_, name), _ in links)], key=natural_key)))
        for turn in (True, False):
            for link in links:
                if (link[1][1] in before) is turn:
                    heapq.heappush(self._waiting, link)
            for name in real:
                if (name in before) is turn:
                    self._tree(name)
            while self._waiting:
                self._follow()
        files = tuple(sorted(self._files, key=natural_key))
        folders = tuple(sorted(self._folders, key=natural_key))
        return Listing(root=Path(self._root), files=files, folders=folders, links=self._links, passed=self._passed)

    def _tree(self, top: str) -> None:
        """``top`` and the real folders below it."""
        stack = [top] if self._is_new(top) else []
        while stack:
            stack += reversed([inner for inner in self._listed(stack.pop()) if self._is_new(inner)])

    def _is_new(self, folder: str) -> bool:
        try:
            identity = _identity(self._at(folder))
        except OSError as error:
            self._passed.add(f"folder that cannot be opened ({error.strerror})", folder)
            return False
        if identity in self._seen:  # linked from where it is looked for before, or mounted twice
            self._passed.add("folder that is read under another name", folder)
            return False
        self._seen.add(identity)
        if "/" not in folder:
            self._folders.append(folder)
        return True

    def _listed(self, folder: str) -> list[str]:
        """Take or pass over what is in one folder; the real folders in it."""
        try:
            with os.scandir(self._at(folder)) as listing:
                entries = sorted(listing, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            self._passed.add(f"folder that cannot be opened ({error.strerror})", folder)
            return []
        inner = []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if self._entry(entry, name):
                    inner.append(name)
            except OSError as error:
                self._passed.add(f"neither file nor folder that can be told ({error.strerror})", name)
        return inner

    def _entry(self, entry: os.DirEntry[str], name: str) -> bool:
        """Take or pass over one entry; whether it is a real folder to walk."""
        reason = nameless(entry.name)
        real_folder = entry.is_dir(follow_symlinks=False)
        if reason and real_folder:
            self._pass_all(reason, name)
        elif reason:
            self._passed.add(reason, name)
        elif entry.is_symlink():
            self._link(entry, name)
        elif not real_folder:
            self._file(name, regular=entry.is_file(follow_symlinks=False))
        else:
            return True
        return False

    def _file(self, name: str, *, regular: bool, link: Identity | None = None) -> None:
        ending = Path(name).suffix.lower()
        if name in self._known and regular:
            return
        if ending not in self._wanted:
            self._passed.add(self._other, name, ending=ending)
        elif not regular:
            self._passed.add("no regular file", name)
        else:
            self._files.append(name)
            if link is not None:
                self._links[name] = link

    def _link(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            target = entry.stat()
        except OSError:
            self._passed.add("link that leads nowhere", name)
            return
        identity = target.st_dev, target.st_ino
        if not stat.S_ISDIR(target.st_mode):
            self._file(name, regular=stat.S_ISREG(target.st_mode), link=identity)
            return
        heapq.heappush(self._waiting, (name.count("/"), natural_key(name), identity))

    def _follow(self) -> None:
        _, (_, name), identity = heapq.heappop(self._waiting)
        if identity in self._above(name):
            self._passed.add("link to a folder that it lies in", name)
        elif identity in self._seen:
            self._passed.add("link to a folder that is read under another name", name)
        else:
            self._tree(name)

    def _above(self, name: str) -> set[Identity]:
        """The folders that hold the link ``name`` or the root, by their real places and as the root was named."""
        places = {Path(self._at(name)).parent.resolve(), Path(self._root).resolve(), Path(self._root).absolute()}
        return {_identity(str(folder)) for place in places for folder in (place, *place.parents)}

    def _pass_all(self, reason: str, folder: str) -> None:
        """Every file below a real folder, without following links."""
        count, first = 0, ""
        for path, folders, files in os.walk(self._at(folder)):
            links = [name for name in folders if Path(path, name).is_symlink()]
            names = sorted(files + links)
            if names and not count:
                first = Path(path, names[0]).relative_to(self._root).as_posix()
            count += len(names)
        if count:
            self._passed.add(reason, first, count=count)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def nameless(name: str) -> str:
    """Why a name is not looked at, if it is not."""
    if name.startswith("."):
        return "hidden"
    return "" if is_utf8(name) else "name that is not UTF-8"  # as reports and split files hold names


def _identity(path: str) -> Identity:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
