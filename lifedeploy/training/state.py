"""The state of a run on disk: enough to continue it to the same result, in one file that appears whole or not at all.

One safetensors file holds the model, the averaged weights, the optimiser and the loss scaler; its header holds where
the run was. Nothing in it is code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lifedeploy.errors import TrainingError
from lifedeploy.files import atomic_file

FOLDER = "state"
KEPT = 2
_KEY = "lifedeploy.training"


@dataclass(frozen=True)
class Position:
    """Where a run is: the next step to make."""

    stage: int = 0  # index into the plan
    epoch: int = 0  # of the stage
    step: int = 0  # of the epoch
    run_epoch: int = 0  # epochs over all stages
    run_step: int = 0  # steps over all stages
    log_rows: int = 0
    best: float = -1.0  # best validation accuracy so far
    seconds: float = 0.0  # that the run has taken, in all the processes it took


@dataclass(frozen=True)
class State:
    """What was saved."""

    position: Position
    fingerprint: str  # of configuration and starting weights: a state continues the run it came from only
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)


def save(folder: Path, state: State) -> None:
    """Write ``state`` into ``folder`` and forget all but the last two."""
    parts = {"model": state.model, "ema": state.ema, "optimizer": state.optimizer}
    # Tensors that share memory (tied weights) cannot be stored twice: each gets its own.
    tensors = {
        f"{part}/{name}": tensor.detach().clone().contiguous().cpu()
        for part, content in parts.items()
        for name, tensor in content.items()
    }
    header = {"position": asdict(state.position), "fingerprint": state.fingerprint, "scaler": dict(state.scaler)}
    with atomic_file(folder / f"{state.position.run_step:08d}.safetensors") as temporary:
        try:
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})
        except SafetensorError as error:  # how it reports a full disk
            raise TrainingError(f"the state of the run cannot be written to {folder}/: {error}") from error
    for old in _files(folder)[KEPT:]:
        old.unlink()


def latest(folder: Path, fingerprint: str) -> State | None:
    """The newest state in ``folder`` that can be read; None if there is none.

    Raises:
        TrainingError: it belongs to another run.
    """
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            position = Position(**header["position"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
            continue  # a disk that failed: the one before it is as good, only older
        if header["fingerprint"] != fingerprint:
            raise TrainingError(
                f"{path} was left by a run with other settings or other starting weights",
                hint="--overwrite starts again, --name gives the new run another folder",
            )
        return State(position, fingerprint, **{part: _part(tensors, part) for part in _PARTS}, scaler=header["scaler"])
    return None


_PARTS = ("model", "ema", "optimizer")


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.safetensors"), reverse=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, by parameter number."""
    saved = optimizer.state_dict()["state"]
    return {f"{number}/{name}": value for number, entry in saved.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`; rates are the schedule's business and stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
