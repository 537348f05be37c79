"""Training runs on disk: which was the last, and how one was started."""

from __future__ import annotations

from pathlib import Path

from lifedeploy.artifact import Workspace
from lifedeploy.errors import TrainingError
from lifedeploy.training.config import TrainConfig, read_toml

CONFIG = "config.toml"


def newest_run(workspace: Workspace) -> Path:
    """The run that wrote something last.

    Raises:
        TrainingError: there is none.
    """
    runs = [path.parent for path in (workspace.root / "checkpoints").glob(f"*/{CONFIG}")]
    if not runs:
        raise TrainingError(f"no training run in {workspace.root}/checkpoints/", hint="lifedeploy train --data DIR")
    return max(runs, key=lambda run: max(path.stat().st_mtime_ns for path in run.rglob("*")))


def run_config(folder: Path) -> TrainConfig:
    """The configuration that a run was started with."""
    return TrainConfig.from_dict(read_toml(folder / CONFIG), str(folder / CONFIG))
