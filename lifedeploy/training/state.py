"""The state of a run on disk: enough to continue it to the same result, in one file that appears whole or not at all.

One safetensors file holds the model, the averaged weights, the optimiser and the loss scaler; its header holds where
the run was. Nothing in it is code. Equal runs give equal files but for the seconds that they took.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor

from lifedeploy.errors import TrainingError, WeightsError
from lifedeploy.model.raw import read_header, read_tensors, write_tensors
from lifedeploy.reading import decode_json
from lifedeploy.typed import Count

FOLDER = "state"
KEPT = 2
_KEY = "lifedeploy.training"
_NAME = re.compile(r"[0-9]{8,12}\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is: the next step to make."""

    stage: Count  # index into the plan
    epoch: Count  # of the stage
    step: Count  # of the epoch
    run_epoch: Count  # epochs over all stages
    run_step: Count  # steps over all stages
    log_rows: Count
    best: Annotated[float, Meta(ge=-1, le=1)]  # best validation accuracy so far; -1 before the first
    seconds: Annotated[float, Meta(ge=0, le=1e12)]  # that the run has taken, in all the processes it took


START = Position(stage=0, epoch=0, step=0, run_epoch=0, run_step=0, log_rows=0, best=-1.0, seconds=0.0)


class _Header(Struct):
    """What is beside the tensors."""

    position: Position
    fingerprint: str
    scaler: dict[str, int | float] = {}


@dataclass(frozen=True, kw_only=True)
class State:
    """All that a run is continued from."""

    position: Position
    fingerprint: str  # of configuration and starting weights: a state continues the run it came from only
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()  # where it was read from


def save(folder: Path, state: State) -> None:
    """Write ``state`` into ``folder`` and forget all but the last two.

    Raises:
        OSError, ArtifactError: it cannot be written; with the name of the file.
    """
    parts = {"model": state.model, "ema": state.ema, "optimizer": state.optimizer}
    tensors = {f"{part}/{name}": tensor for part, content in parts.items() for name, tensor in content.items()}
    header = {"position": asdict(state.position), "fingerprint": state.fingerprint, "scaler": dict(state.scaler)}
    write_tensors(folder / f"{state.position.run_step:08d}.safetensors", tensors, {_KEY: json.dumps(header)})
    for old in _files(folder)[KEPT:]:
        old.unlink()


def latest(folder: Path, fingerprint: str) -> State | None:
    """The newest state in ``folder`` that can be read; None if there is none.

    Raises:
        TrainingError: it belongs to another run.
    """
    for path in _files(folder):
        try:
            text = read_header(path).get(_KEY, "")
            header = decode_json(text, _Header, str(path), WeightsError)
            tensors = read_tensors(path)
        except WeightsError:
            continue  # a disk that failed: the one before it is as good, only older
        if header.fingerprint != fingerprint:
            raise TrainingError(
                f"{path} was left by a run with other settings or other starting weights",
                hint="--overwrite starts again, --name gives the new run another folder",
            )
        parts = {part: _part(tensors, part) for part in _PARTS}
        return State(position=header.position, fingerprint=fingerprint, **parts, scaler=header.scaler, path=path)
    return None


_PARTS = ("model", "ema", "optimizer")


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}


def _files(folder: Path) -> list[Path]:
    """The newest first; temporary files have other names."""
    paths = [path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.stem), reverse=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, by parameter number."""
    saved = optimizer.state_dict()["state"]
    return {f"{number}/{name}": value for number, entry in saved.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """The inverse of :func:`optimizer_tensors`; learning rates are their curve's business and stay as they are.

    Raises:
        TrainingError: the tensors are not those of this optimiser's parameters; ``path`` is what errors call the file.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = {
        f"{number}/{name}": shape
        for number, parameter in enumerate(parameters)
        for name, shape in (("step", ()), ("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape))
    }
    require_tensors(tensors, shapes, f"the optimiser in {path}")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def require_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, Any], what: str) -> None:
    """Make sure that ``tensors`` are those of ``shapes``, by name, of finite real numbers.

    Raises:
        TrainingError: one is missing, left over, of another shape or kind; ``what`` is what it is a part of.
    """
    hint = "--overwrite starts the run again; without this file it goes on from an older state"
    odd = next(iter(sorted(shapes.keys() ^ tensors.keys())), None)
    if odd is not None:
        raise TrainingError(f"{what} is damaged: {odd} is {'missing' if odd in shapes else 'no part of it'}", hint=hint)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]) or tensor.is_complex():
            raise TrainingError(
                f"{what} is damaged: {name} is {tuple(tensor.shape)}, expected {tuple(shapes[name])}", hint=hint
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise TrainingError(f"{what} is damaged: {name} has NaN or infinity in it", hint=hint)
