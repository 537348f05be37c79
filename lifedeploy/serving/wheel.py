"""This lifedeploy as a wheel, made of the files that run: for containers, since no index has to have it.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import lifedeploy
from lifedeploy import __version__
from lifedeploy.errors import ArtifactError

NAME = "lifedeploy"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can name: the same files make the same wheel
_MODE = 0o100644 << 16  # a regular file that all may read
_ENDINGS = (".py", ".typed", ".jpg", ".md")  # what the package is made of; whatever else lies among it is not ours
_WHEEL = f"Wheel-Version: 1.0\nGenerator: {NAME} {__version__}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write(folder: Path) -> Path:
    """Write the wheel into ``folder``; two of the same files are the same to the byte.

    Raises:
        ArtifactError: lifedeploy is not installed, or another version than the one that runs.
    """
    path = folder / f"{NAME}-{__version__}-py3-none-any.whl"
    information = f"{NAME}-{__version__}.dist-info"
    contents = dict(sorted(_code())) | {f"{information}/{name}": data for name, data in _facts()}
    lines = [f"{name},{_digest(data)},{len(data)}" for name, data in contents.items()]
    record = f"{information}/RECORD"
    contents[record] = "".join(f"{line}\n" for line in [*lines, f"{record},,"]).encode()
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, _MODE, 3
            archive.writestr(entry, data)
    return path


def _code() -> Iterator[tuple[str, bytes]]:
    """The package's files, by their path in the wheel."""
    root = Path(lifedeploy.__file__).parent
    for path in root.rglob("*"):
        if path.suffix in _ENDINGS and path.is_file() and not path.is_symlink():
            yield f"{NAME}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _facts() -> Iterator[tuple[str, bytes]]:
    """What the installed distribution tells of itself: its metadata without the README, its command, its licence."""
    try:
        distribution = metadata.distribution(NAME)
    except metadata.PackageNotFoundError as error:
        raise ArtifactError(
            "lifedeploy runs from files that are not installed, so its dependencies are unknown", hint="pip install ."
        ) from error
    if distribution.version != __version__:
        raise ArtifactError(
            f"lifedeploy {__version__} runs, and the one installed is {distribution.version}", hint="pip install ."
        )
    headers, _, _ = (distribution.read_text("METADATA") or "").partition("\n\n")
    kept = [line for line in headers.splitlines() if not line.startswith("Description-Content-Type:")]
    yield "METADATA", ("\n".join(kept) + "\n").encode()
    yield "WHEEL", _WHEEL.encode()
    yield "entry_points.txt", (distribution.read_text("entry_points.txt") or "").encode()
    for file in distribution.metadata.get_all("License-File") or ():
        text = distribution.read_text(f"licenses/{file}")
        if text is not None:
            yield f"licenses/{file}", text.encode()


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
