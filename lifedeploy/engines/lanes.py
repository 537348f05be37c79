"""One request: fixed buffers, and an inference that does nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifedeploy.artifact import TensorSpec
from lifedeploy.errors import EngineInputError

Array = NDArray[np.generic]


class Lane(ABC):
    """Fixed buffers for one batch size. Fill ``inputs``, call ``infer``, read ``outputs``."""

    note: str = ""  # what an engine chose for it that nobody asked for, in words

    def __init__(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)

    @abstractmethod
    def infer(self) -> None:
        """Run once on the buffers; returns when ``outputs`` holds the result."""


class FreshLane(Lane):
    """A lane whose outputs are made anew by every inference, for runtimes that write into no buffers of others."""

    def __init__(self, run: Callable[[dict[str, Array]], dict[str, Array]], inputs: Mapping[str, Array]) -> None:
        super().__init__(inputs, {})
        self._run = run

    def infer(self) -> None:
        self.outputs = self._run(self.inputs)


class DeviceLane(Lane):
    """A lane whose buffers have twins on a device: ``infer`` copies there, computes, and copies back."""

    @abstractmethod
    def compute(self) -> None:
        """Run once on what is on the device, and leave the result there; returns when it is done."""

    @abstractmethod
    def device_ms(self, *, copies: bool) -> float:
        """Run once more, and say how long the device took by its own clock, with the copies or without, in ms."""


class WithoutCopies(DeviceLane):
    """Another lane, whose every inference is one without copies."""

    def __init__(self, lane: DeviceLane) -> None:
        super().__init__(lane.inputs, lane.outputs)
        self.lane, self.note = lane, lane.note
        lane.infer()  # puts on the device what is computed on from here on

    def infer(self) -> None:
        self.lane.compute()

    def compute(self) -> None:
        self.lane.compute()

    def device_ms(self, *, copies: bool) -> float:
        return self.lane.device_ms(copies=False)


def buffers(specs: tuple[TensorSpec, ...], batch: int) -> dict[str, Array]:
    """Zeroed arrays for ``specs`` at ``batch`` images.

    Raises:
        EngineInputError: one has another dynamic size than the batch.
    """
    return {spec.name: np.zeros(shape_at(batch, spec.name, spec.shape), np.dtype(spec.dtype)) for spec in specs}


def shape_at(batch: int, name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """The shape of a tensor at ``batch`` images, which are its first dimension where that is no number.

    Raises:
        EngineInputError: another dimension is no number either.
    """
    if not all(isinstance(size, int) for size in shape[1:]):
        raise EngineInputError(
            f"{name} has a dynamic size beyond the batch, {tuple(shape)}: no buffer can be made for it",
            hint="fix every size but the batch in the model",
        )
    return tuple(size if isinstance(size, int) else batch for size in shape)


def require_feeds(feeds: Mapping[str, Array], inputs: tuple[TensorSpec, ...]) -> None:
    """Make sure that ``feeds`` are what goes into an engine with these inputs.

    Raises:
        EngineInputError: a name, dtype or shape is another one.
    """
    specs = {spec.name: spec for spec in inputs}
    unknown = [name for name in feeds if name not in specs]
    missing = [name for name in specs if name not in feeds]
    if unknown or missing:
        raise EngineInputError(
            f"inputs given: {', '.join(feeds) or 'none'}; the engine takes {'; '.join(map(str, specs.values()))}"
        )
    for name, spec in specs.items():
        array = feeds[name]
        fits = array.ndim == len(spec.shape) and all(
            want in (None, have) for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != spec.dtype:
            raise EngineInputError(f"input {name} is {array.dtype} {array.shape}; the engine takes {spec}")
