"""What is kept for the next time, in folders of this user that nobody else can write to: some of it is code."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from lifedeploy.errors import ArtifactError

# The variables that name the caches of PyTorch's compilers.
_COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def user_cache() -> Path:
    """Where this user keeps what can be made again: ``$XDG_CACHE_HOME/lifedeploy``, else ``~/.cache/lifedeploy``.

    A relative ``XDG_CACHE_HOME`` is passed over, as https://specifications.freedesktop.org/basedir says.

    Raises:
        OSError: there is none of them.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():
        return given / "lifedeploy"
    try:
        return Path.home() / ".cache" / "lifedeploy"
    except RuntimeError as error:  # in a container, as a user that it does not know
        raise FileNotFoundError(errno.ENOENT, "this user has no home; XDG_CACHE_HOME names a folder to use") from error


def compiler_caches() -> None:
    """Have PyTorch's compilers keep their kernels where nobody else writes, unless the user has chosen a place.

    Their own place has a name that anybody can be first to use, in the folder for temporary files of all. PyTorch may
    have made it, and set the variable to it, when it was imported.
    """
    shared = str(Path(tempfile.gettempdir()) / "torchinductor_")
    for variable, name in _COMPILERS.items():
        given = os.environ.get(variable, "")
        if given.startswith(shared):
            with suppress(OSError):
                Path(given).rmdir()  # if there is nothing in it
        elif given and given != _named_cache(name):
            continue
        try:
            folder = private_cache(name)
        except (OSError, ArtifactError):  # a home that cannot be written to, or another user's
            folder = Path(tempfile.mkdtemp(prefix=f"lifedeploy-{name}-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[variable] = str(folder)


def name_compiler_caches() -> None:
    """Tell PyTorch of these places before it is imported: it makes its own as it is. Nothing is made here."""
    for variable, name in _COMPILERS.items():
        place = _named_cache(name)
        above = next((folder for folder in Path(place).parents if folder.exists()), None) if place else None
        if above is not None and os.access(above, os.W_OK) and not os.environ.get(variable):
            os.environ[variable] = place


def _named_cache(name: str) -> str:
    try:
        return str(user_cache() / name)
    except OSError:  # no home
        return ""


def private_cache(name: str) -> Path:
    """A folder of :func:`user_cache`, made for nobody but this user: kernels in it are code that will be run.

    Raises:
        ArtifactError: it belongs to somebody else.
    """
    folder = user_cache() / name
    for place in (user_cache(), folder):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            raise ArtifactError(
                f"{place}/ belongs to another user, so what is kept in it is not trusted",
                hint="set XDG_CACHE_HOME to a folder of your own",
            )
        place.chmod(0o700)  # whatever it was made with
    return folder
