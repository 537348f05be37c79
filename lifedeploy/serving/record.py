"""What stands in a package about itself, ``lifedeploy.json``: what it was made of, and a digest of every file in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from msgspec import Meta

from lifedeploy import __version__
from lifedeploy.artifact import Artifact
from lifedeploy.errors import ArtifactError
from lifedeploy.files import compact_json, now, sha256, write_json
from lifedeploy.reading import foreign, read_json, require_regular
from lifedeploy.serving.plan import Plan
from lifedeploy.text import quoted
from lifedeploy.typed import Digest, Name, Text

NAME = "lifedeploy.json"
Place = Annotated[str, Meta(min_length=1, max_length=1024)]
_MOST_FILES = 10_000


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """An export, a calibrated graph or an engine that a package was made of."""

    path: Text  # of its manifest, from the package on: what was made together may be moved together
    what: Text
    sha256: Digest  # of the digests of its files


@dataclass(frozen=True, kw_only=True)
class PackageRecord:
    """What a package is."""

    schema: Literal[1] = 1
    kind: Literal["package"] = "package"
    target: Literal["triton", "ovms", "kserve", "docker"]
    created: Text = field(default_factory=now)
    version: Text = __version__  # of lifedeploy
    # As the server calls them; the model itself first.
    models: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    method: Name
    engine: Name
    precision: Name
    backend: Name
    plan: Plan
    top: Annotated[int, Meta(ge=0)] = 0  # classes that are named for each image
    needs: dict[Name, Text] = field(default_factory=dict)  # what has to be on the server, and which version of it
    sources: tuple[SourceRecord, ...]
    files: Annotated[dict[Place, Digest], Meta(max_length=_MOST_FILES)] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def source_of(artifact: Artifact, folder: Path) -> SourceRecord:
    """What a package at ``folder`` says of an artifact that it is made of."""
    what = "export" if artifact.manifest.kind == "model" else artifact.manifest.kind
    path = os.path.relpath(artifact.manifest_path.resolve(), folder.resolve())
    return SourceRecord(path=path, what=what, sha256=_digest(artifact))


def _digest(artifact: Artifact) -> str:
    """Of the digests of all its files: the weights of an engine may be others where its main file is the same."""
    manifest = artifact.manifest
    digests = {**(manifest.engine.files if manifest.engine else {}), manifest.file: manifest.sha256}
    return hashlib.sha256(compact_json(sorted(digests.items())).encode()).hexdigest()


def write(folder: Path, record: PackageRecord) -> PackageRecord:
    """Write the record of what lies in ``folder`` by now."""
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)}
    whole = replace(record, files=dict(sorted(files.items())))
    write_json(folder / NAME, whole.to_dict())
    return whole


def is_package(path: Path) -> bool:
    """Whether a folder is a package of ours."""
    with foreign(quoted(str(path))):  # names that the system does not take
        return (path / NAME).is_file()


def read(folder: Path) -> PackageRecord:
    """The record of a package.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    record = read_json(folder / NAME, PackageRecord)
    for place in record.files:
        parts = place.split("/")
        if "\\" in place or "\0" in place or any(part in ("", ".", "..") for part in parts):
            raise ArtifactError(f"{folder / NAME} names the file {quoted(place)}, which is none below {folder}/")
    return record


def check(folder: Path, record: PackageRecord) -> None:
    """Make sure that a package holds what it says, and nothing else.

    Raises:
        ArtifactError: a file is missing, another one, not named, or leads out of the folder.
    """
    home = folder.resolve()
    for place, digest in record.files.items():
        path = folder / place
        require_regular(path, hint="package it again")
        if not path.resolve().is_relative_to(home):
            raise ArtifactError(f"{path} leads out of {folder}/", hint="package it again")
        if sha256(path) != digest:
            raise ArtifactError(
                f"{path} is not the file that was packaged: its SHA-256 differs", hint="package it again"
            )
    expected = {parent.as_posix() for place in record.files for parent in PurePosixPath(place).parents}
    strange = sorted(
        place
        for path in folder.rglob("*")
        if (place := path.relative_to(folder).as_posix()) not in {*record.files, NAME}
        and (place not in expected or not path.is_dir() or path.is_symlink())
    )
    if strange:
        more = f" and {len(strange) - 1} more" if strange[1:] else ""
        raise ArtifactError(
            f"{folder}/ holds {quoted(strange[0])}{more}, which was not packaged",
            hint="a server might run it: remove it",
        )


def outdated(folder: Path, record: PackageRecord) -> tuple[str, ...]:
    """What the package at ``folder`` was made of and is another one by now, in words; what is gone says nothing."""
    stale = []
    for source in record.sources:
        path = Path(os.path.normpath(folder.resolve() / source.path))
        if not path.is_file():
            continue
        try:
            current = _digest(Artifact.read(path))
        except ArtifactError:
            current = ""
        if current != source.sha256:
            stale.append(f"the {source.what} {path.parent} has changed since it was packaged")
    return tuple(stale)


def _files(folder: Path) -> Iterator[Path]:
    """All files and links below, but the record itself."""
    for path in sorted(folder.rglob("*")):
        if (path.is_file() or path.is_symlink()) and path != folder / NAME:
            yield path


def plain(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text, for parameters of a server; what is empty is left out."""
    return {name: str(value) for name, value in values.items() if value not in ("", None)}
