"""Files of weights that a method's authors published: whose they are, and what is in them under timm's names.

All that is known of them is in the rows of methods (``published.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifedeploy import methods
from lifedeploy.errors import UsageError, WeightsError
from lifedeploy.published import LAYER, Published, Renamed
from lifedeploy.text import quoted

_LEAF = r"(\.weight|\.bias)?"
_NUMBER = "([0-9]+)"


def author_of(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> methods.Method | None:
    """The method whose authors wrote a file, by names in it or else by arguments; None: of nobody known."""
    known = [(method, method.published) for method in _known()]
    for method, published in known:
        if any(name.startswith(published.parameters) for name in state):
            return method
    for method, published in known:
        renamed = {place[0] for name in state if (place := _place_of(name, published))}
        if renamed and len(renamed) == len(published.renamed):  # each of them, in part at least
            return method
    # Methods are built on each other's scripts: arguments say nothing of one whose names are not there.
    plain = [(method, published) for method, published in known if not (published.parameters or published.renamed)]
    return next((method for method, published in plain if any(name in given for name in published.arguments)), None)


def takers(name: str) -> list[str]:
    """The methods that take files of the method ``name``; itself first."""
    return [name, *(method.name for method in _known() if method.name != name and method.reads_files_of(name))]


def _known() -> Iterator[methods.Method]:
    for name in methods.names(methods.SLIMMED):
        try:
            yield methods.get(name)
        except UsageError:  # another package's, which cannot be used: it says so where it is asked for
            continue


def arguments_of(published: Published, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a file of its authors' that tell how it was trained."""
    return {name: given[name] for name in published.arguments if name in given}


def trained_with(arguments: Mapping[str, Any]) -> str:
    """Arguments as words; '' of none."""
    words = [f"{name} {quoted(value)}" for name, value in arguments.items()]
    return f"trained with {', '.join(words)}" if words else ""


def without_unused(state: Mapping[str, Tensor], published: Published) -> tuple[dict[str, Tensor], str]:
    """What inference uses of a file; and what was left out."""
    unused = [name for name in state if name.startswith(published.unused)]
    used = {name: tensor for name, tensor in state.items() if not name.startswith(published.unused)}
    return used, f"without {len(unused)} tensors that inference does not use ({unused[0]})" if unused else ""


def with_timms_names(state: Mapping[str, Tensor], published: Published, path: Path) -> dict[str, Tensor]:
    """A file's tensors under timm's names; what the authors split is joined, what they did not rename stays.

    Raises:
        WeightsError: a part is missing, or parts do not go together.
    """
    named: dict[str, Tensor] = {}
    joined: dict[str, tuple[Renamed, tuple[str, ...]]] = {}  # timm's name → module, names of the parts
    for name, tensor in state.items():
        place = _place_of(name, published)
        if place is None:
            named[name] = tensor
            continue
        module, numbers, leaf = place
        target = _filled(module.timm, numbers) + leaf
        parts = tuple(_filled(pattern, numbers) + leaf for pattern in module.theirs)
        missing = next((part for part in parts if part not in state), None)
        if missing is not None:
            raise WeightsError(f"{path} holds {name} and no {missing}: {target} is made of both")
        if target in state:
            raise WeightsError(f"{path} holds {name}, and {target} as well, which is made of it")
        joined[target] = module, parts
    for target, (module, parts) in joined.items():
        named[target] = _joined([state[part] for part in parts], module, parts, target, path)
    return named


def _joined(tensors: list[Tensor], module: Renamed, parts: tuple[str, ...], target: str, path: Path) -> Tensor:
    """The parts of a projection, (rows, …) each, below each other."""
    first, share = tensors[0], module.shares[0]
    if len(tensors) == 1:
        return first
    for tensor, rows, part in zip(tensors, module.shares, parts, strict=True):
        together = tensor.ndim and first.ndim and tensor.shape[1:] == first.shape[1:] and tensor.dtype == first.dtype
        if not together or tensor.shape[0] * share != first.shape[0] * rows:
            raise WeightsError(
                f"{path} holds {parts[0]} as {_kind(first)} and {part} as {_kind(tensor)}, which do not make {target}: "
                f"expected {share} rows of it to {rows}"
            )
    return torch.cat(tensors)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _place_of(name: str, published: Published) -> tuple[Renamed, tuple[str, ...], str] | None:
    """Of a tensor that the authors call otherwise: its module, the numbers in its name, and weight or bias."""
    for module in published.renamed:
        for pattern in module.theirs:
            if match := _pattern(pattern).fullmatch(name):
                *numbers, leaf = match.groups(default="")
                return module, tuple(numbers), leaf
    return None


@cache
def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(_NUMBER.join(map(re.escape, theirs.split(LAYER))) + _LEAF)


def _filled(pattern: str, numbers: tuple[str, ...]) -> str:
    """A name with the numbers of its layers."""
    words = pattern.split(LAYER)
    return "".join(word + number for word, number in zip(words, (*numbers, ""), strict=True))
