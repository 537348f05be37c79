"""Training runs on disk: where they are, which was the last, and how one was started."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifedeploy import methods, reading
from lifedeploy.artifact import Workspace
from lifedeploy.data.images import Split, write_split
from lifedeploy.errors import TrainingError, UsageError
from lifedeploy.reading import require_regular
from lifedeploy.temporary import is_temporary, sweep
from lifedeploy.text import quoted
from lifedeploy.training.config import WITHOUT_EFFECT, TrainConfig
from lifedeploy.writing import atomic_file, require_folder, scratch_folder, sole_writer

CONFIG = "config.toml"
SPLIT = "split.csv"
_LONGEST_NAME = 200  # bytes


def run_folder(workspace: Workspace, name: str) -> Path:
    """Where the run of this name is, or will be.

    Raises:
        UsageError: the name is not that of one folder below ``checkpoints/``.
    """
    wrong = not name or name.startswith(".") or not name.isprintable() or set(name) & {"/", "\\"}
    if wrong or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise UsageError(
            f"--name {quoted(name)} cannot be a run's folder; expected one name of at most {_LONGEST_NAME} bytes, "
            "without a slash, and without a dot in front"
        )
    folder = workspace.root / "checkpoints" / name
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{folder}/ is no UTF-8, and the library that reads safetensors opens no such file",
            hint="-w names another workspace",
        ) from error
    return folder


def newest_run(workspace: Workspace) -> Path:
    """The run that wrote something last.

    Raises:
        TrainingError: there is none.
    """
    configs = (workspace.root / "checkpoints").glob(f"*/{CONFIG}")
    runs = [path.parent for path in configs if not is_temporary(path.parent.name)]
    if not runs:
        raise TrainingError(f"no training run in {workspace.root}/checkpoints/", hint="lifedeploy train --data DIR")
    return max(runs, key=_written)


def run_config(folder: Path) -> TrainConfig:
    """The configuration that a run was started with.

    Raises:
        UsageError: there is none.
        TrainingError: it is damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint="lifedeploy train --data DIR begins a run")
    settings = reading.read_toml(path, TrainingError)
    try:
        return TrainConfig.from_dict(settings, str(path))
    except UsageError as error:
        raise TrainingError(f"{path} is damaged: {error.message}", hint="--overwrite starts the run again") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the run's folder, and hold it against other processes that would write there.

    Raises:
        UsageError: another process does, or it cannot be made.
    """
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        yield


def claim(folder: Path, config: TrainConfig, split: Split, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run's folder, which is held, is ours to fill, continue or replace; and begin.

    Raises:
        UsageError: it holds something that the request does not cover.
        TrainingError: the run to resume is damaged, or the images are others than it began with.
    """
    for place in (folder, *filter(Path.is_dir, folder.iterdir())):
        sweep(place)
    if (folder / CONFIG).exists():
        if overwrite:
            _empty(folder)
        elif not resume:
            raise UsageError(
                f"{folder}/ holds a run already",
                hint="--resume continues it, --overwrite starts again, --name NAME gives the new one another folder",
            )
        else:
            _require_same(run_config(folder), config)
            _require_same_images(folder / SPLIT, split)
    elif any(not is_temporary(path.name) for path in folder.iterdir()):
        raise UsageError(f"{folder}/ holds something else than a training run", hint="--name gives it another folder")
    with atomic_file(folder / CONFIG) as temporary:
        temporary.write_text(config.to_toml(), encoding="utf-8")
    write_split(folder / SPLIT, split)


def _empty(folder: Path) -> None:
    """Remove a run and leave its folder, which is locked. Its configuration goes last: until then it is a run still, so
    that whoever was killed in between can do it again."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _require_same_images(path: Path, split: Split) -> None:
    """Make sure that a resumed run goes on with the images it began with, each in the same half."""
    if not path.exists():
        return
    require_regular(path, TrainingError)
    with scratch_folder("split") as scratch:
        write_split(scratch / SPLIT, split)
        same = filecmp.cmp(path, scratch / SPLIT, shallow=False)
    if not same:
        raise TrainingError(
            f"{path} lists other images than there are now, or is damaged: the run cannot go on as it began",
            hint="--overwrite starts it again; without that file it goes on with the images as they are now",
        )


def _require_same(before: TrainConfig, now: TrainConfig) -> None:
    old, new = _settings(before), _settings(now)
    changed = [name for name in old if name not in WITHOUT_EFFECT and (name not in new or old[name] != new[name])]
    if changed:
        name = changed[0]  # of another method the method itself: its options stand behind it
        raise UsageError(
            f"the run to resume has {name} {old[name]!r}, and {new[name]!r} was asked for",
            hint="--resume alone continues a run as it was; --overwrite starts it again",
        )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All of them, among them all options of the method: whether a usual one was given makes no other run."""
    settings = config.to_dict()
    del settings["options"]
    return settings | methods.get(config.method).plain_options(config.options)


def _written(run: Path) -> int:
    times = [0]
    for path in run.rglob("*"):
        try:
            times.append(path.lstat().st_mtime_ns)
        except FileNotFoundError:  # it was temporary, and its run goes on
            continue
    return max(times)
