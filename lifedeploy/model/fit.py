"""Tensors of a file held against those that a model expects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lifedeploy.errors import WeightsError
from lifedeploy.model.layouts import REDUCER
from lifedeploy.schedule import Schedule

_WEIGHT_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LISTED = re.compile(rf"({re.escape(REDUCER)}\w+)\.(\d+)\.")  # a part of a module in a list of them


def first_mismatch(expected: dict[str, Tensor], given: dict[str, Tensor], whose: str = "timm's") -> str:
    """What the first tensor is that does not fit those that are expected; '' where all do."""
    missing = [name for name in expected if name not in given]
    if len(missing) == len(expected):
        return f"none of its {len(given)} tensors has a name of {whose}, the first is {next(iter(given), 'nothing')}"
    if missing:
        return f"{len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}"
    for name, tensor in expected.items():
        if given[name].shape != tensor.shape:
            return f"{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
    extra = [name for name in given if name not in expected]
    return f"{len(extra)} tensors are not part of it, the first is {extra[0]}" if extra else ""


def require_as_many(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], schedule: Schedule, path: Path
) -> None:
    """Make sure that a method which has a module for each drop layer has as many as there are drop layers.

    Raises:
        WeightsError: the weights are of more or fewer.
    """
    wanted, held = _counted(expected), _counted(given)
    wrong = next((n for n in sorted(wanted) if n in held and wanted[n] == len(schedule.drop_layers) != held[n]), None)
    if wrong is not None:
        raise WeightsError(
            f"{path} does not fit this method: it has {held[wrong]} of {wrong.removeprefix(REDUCER)}, one for each "
            f"drop layer, and {wanted[wrong]} {'are' if wanted[wrong] != 1 else 'is'} asked for (after "
            f"{', '.join(map(str, schedule.drop_layers))})",
            hint="--drop-layers with those that it was trained with",
        )


def _counted(names: Iterable[str]) -> Counter[str]:
    """How many modules the lists of a reducer have, by the list's name."""
    modules = {match.groups() for match in map(_LISTED.match, names) if match}
    return Counter(whose for whose, _ in modules)


def require_numbers(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that weights are what they are computed with as: other types would be converted in silence.

    Raises:
        WeightsError: a tensor is of another type, or has NaN or infinity in it.
    """
    for name, tensor in given.items():
        if not expected[name].is_floating_point():
            continue
        if tensor.dtype not in _WEIGHT_TYPES:
            raise WeightsError(
                f"{path} holds {name} as {str(tensor.dtype).removeprefix('torch.')}; expected floating point of 16 or "
                "more bits",
                hint="quantised weights have to be dequantised and saved again",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{path} holds NaN or infinity in {name}", hint="weights from before that are needed")
