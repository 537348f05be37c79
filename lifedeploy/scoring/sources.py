"""What the input is: a folder, a pattern, a manifest, shards or files, here or at an address; and the images in it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lifedeploy.data.left_out import LeftOut, LeftOutCounter
from lifedeploy.data.sets import nothing_found
from lifedeploy.errors import DataError
from lifedeploy.scoring import manifests
from lifedeploy.scoring.listing import files_below, is_image, is_pattern, is_shard, split_pattern
from lifedeploy.scoring.manifests import Manifest, manifest_at
from lifedeploy.scoring.parts import Part
from lifedeploy.scoring.places import LocalPlace, Place, is_address, located, place_of
from lifedeploy.text import is_utf8

LISTING = "_input.csv"  # what a listing is called beside the rows that were made of it
_IMAGES, _SHARDS = ("image",), ("shard", "bytes")  # columns of listings
_Wanted = Callable[[str], bool]
_HINT = "expected a folder, a pattern, a .csv or .parquet manifest, .tar shards or images, here or at an address"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where images are: all that any process needs to read any part of them."""

    root: str  # address of the folder that names are below
    manifest: str = ""  # address of the table that has the names; '': of shards, whose parts say theirs
    column: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An input as it was named, looked up. It may still have to be listed."""

    shown: str
    root: Place
    manifest: Manifest | None = None  # None: what it holds is to be listed
    names: tuple[str, ...] = ()  # files that were named one by one
    pattern: str = ""  # of the names below the root; '': all


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An input in parts."""

    source: Source
    parts: tuple[Part, ...]
    images: int | None  # None: of shards
    digest: str  # of the names of all images; of a manifest's content
    left_out: tuple[LeftOut, ...] = ()
    listing: Path | None = None  # the table that was made of it, which is to be kept where the source says


def find(named: Sequence[str], *, column: str = "", root: str = "") -> Found:
    """What the input is that was ``named``.

    Args:
        named: one folder, pattern, manifest, shard or image, or ``wds/FOLDER``; or several shards or images.
        column: of a manifest, the column of the images.
        root: of a manifest, the folder that its paths are below; '': its own.

    Raises:
        DataError: it is not there, cannot be reached, or is nothing of all that.
        UsageError: it is an address of a kind that is not taken.
    """
    if len(named) > 1:
        return _files(named)
    text = named[0]
    place = place_of(text)
    kind = place.kind()
    if kind == "nothing" and text.startswith("wds/"):
        return find([text.removeprefix("wds/")], column=column, root=root)
    if kind == "nothing" and is_pattern(text):
        folder, pattern = split_pattern(text)
        return Found(shown=text, root=place_of(folder).real(), pattern=pattern)
    if kind == "nothing":
        raise DataError(f"{text} does not exist", hint=_HINT)
    if kind == "folder":
        return Found(shown=text, root=place.real())
    if place.name.lower().endswith(manifests.ENDINGS):
        manifest = manifest_at(place.absolute(), column).resolved()
        return Found(
            shown=text, root=(place_of(root) if root else place.absolute().folder).absolute(), manifest=manifest
        )
    return _files(named)


def _files(named: Sequence[str]) -> Found:
    odd_one = next((name for name in named if not is_utf8(name)), None)
    if odd_one is not None:
        raise DataError(f"{odd_one} has a name that is not UTF-8, which no table of rows holds", hint="rename it")
    shards = [is_shard(name) for name in named]
    other = next((name for name in named if not is_image(name) and not is_shard(name)), None)
    if other is not None or any(shards) != all(shards):
        odd = other or named[shards.index(not shards[0])]
        problem = "is neither an image nor a shard by its ending" if other else f"is no such file as {named[0]}"
        raise DataError(f"{odd} {problem}", hint=_HINT)
    shown = named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1:,} more"
    anywhere = all(is_address(name) or name.startswith("/") for name in named)
    return Found(shown=shown, root=LocalPlace(Path("/") if anywhere else Path.cwd()), names=tuple(named))


def listed(given: Found, images: int, folder: Path, output: Place) -> Listed:
    """The input in parts of ``images``; shards are a part each.

    A table of what was listed is made in ``folder``, and said to be at ``output``.

    Raises:
        DataError: it holds no images, cannot be read, or is damaged.
    """
    if given.manifest is not None:
        planned = given.manifest.planned(images)
        if not planned.images:
            raise DataError(f"{given.manifest.place} is empty: it names no images")
        source = Source(root=given.root.address, manifest=given.manifest.place.address, column=given.manifest.column)
        return Listed(source=source, parts=planned.parts, images=planned.images, digest=planned.digest)
    listing, left_out, is_of_shards = _written(given, folder)
    table = manifest_at(LocalPlace(listing), (_SHARDS if is_of_shards else _IMAGES)[0]).resolved()
    if is_of_shards:
        planned = table.planned(1)
        return Listed(
            source=Source(root=given.root.address),
            parts=tuple(_shard_parts(listing)),
            images=None,
            digest=planned.digest,
            left_out=left_out,
            listing=listing,
        )
    planned = table.planned(images)
    source = Source(root=given.root.address, manifest=output.child(LISTING).address, column=_IMAGES[0])
    return Listed(
        source=source,
        parts=planned.parts,
        images=planned.images,
        digest=planned.digest,
        left_out=left_out,
        listing=listing,
    )


def _written(given: Found, folder: Path) -> tuple[Path, tuple[LeftOut, ...], bool]:
    """A table of the images, or of the shards where there are no images."""
    listing = folder / LISTING
    left_out: tuple[LeftOut, ...] = ()
    for columns, wanted in ((_IMAGES, is_image), (_SHARDS, is_shard)):
        passed, count = LeftOutCounter(), 0
        names = _named(given, wanted) if given.names else _below(given, wanted, columns[0], passed)
        with listing.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(columns)
            for name, size in names:
                table.writerow((name, size)[: len(columns)])
                count += 1
        left = passed.but((), given.shown)
        if count:
            return listing, left, columns is _SHARDS
        left_out = left_out or left
    raise DataError(nothing_found(f"{given.shown} holds no images and no shards", left_out), hint=_HINT)


def _below(given: Found, wanted: _Wanted, what: str, passed: LeftOutCounter) -> Iterator[tuple[str, int]]:
    for name, size in files_below(given.root, wanted, passed, what=what, pattern=given.pattern):
        yield name, size or (_size(given.root.child(name)) if wanted is is_shard else 0)


def _named(given: Found, wanted: _Wanted) -> Iterator[tuple[str, int]]:
    for name in filter(wanted, given.names):
        yield name, _size(located(given.root, name)) if wanted is is_shard else 0


def _size(place: Place) -> int:
    kind = place.kind()
    if kind != "file":
        raise DataError(f"{place} {'is a folder; expected a shard' if kind == 'folder' else 'does not exist'}")
    return place.size()


def _shard_parts(listing: Path) -> Iterator[Part]:
    with listing.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            yield Part(number=number, shard=row["shard"], size=int(row["bytes"]))
