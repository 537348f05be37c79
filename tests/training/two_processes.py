"""Run by ``torch.distributed.run`` on two processes: a run of each method that trains, named after it.

    … -m tests.training.two_processes WORKSPACE CONFIG.toml …

Each file's stem is its run's name. One process group for all: starting one takes longer than a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lifedeploy.artifact import Workspace
from lifedeploy.training.recipes import settled
from lifedeploy.workflows.train import TrainRequest, train


def main() -> None:
    workspace, *files = map(Path, sys.argv[1:])
    for file in files:
        train(TrainRequest(config=settled({}, file), name=file.stem), Workspace(workspace))


if __name__ == "__main__":
    main()
