"""Requests on an NVIDIA GPU: a stream, buffers on both sides, and CUDA graphs where the binding has them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lifedeploy.engines import cuda
from lifedeploy.engines.base import Engine, PrecisionPlan
from lifedeploy.engines.cuda import Cuda
from lifedeploy.engines.lanes import Array, DeviceLane
from lifedeploy.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """A tensor at its final shape, and which way it travels."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    goes_in: bool
    comes_out: bool = False  # an output that is not wanted stays where it is

    @property
    def nbytes(self) -> int:
        """Size in bytes at its final shape."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class CudaLane(DeviceLane):
    """Buffers and a stream around whatever computes on addresses.

    Args:
        layer: CUDA.
        stream: the lane's own from here on.
        tensors: all that the runtime reads or writes.
        bind: tells the runtime a tensor's address, once.
        enqueue: puts the computation into the stream.
        warm_up: inferences before the first one that counts: runtimes set themselves up, and some capture, in them.
        capture: whether copies and computation are captured into one CUDA graph, which each inference then launches;
            not for runtimes that capture by themselves.
    """

    def __init__(
        self,
        layer: Cuda,
        stream: Any,
        tensors: Sequence[DeviceTensor],
        *,
        bind: Callable[[DeviceTensor, int], None],
        enqueue: Callable[[], None],
        capture: bool,
        warm_up: int = 1,
    ) -> None:
        super().__init__({}, {})
        self._layer, self._stream, self._enqueue = layer, stream, enqueue
        self._pointers: dict[str, int] = {}
        self._cuda_graphs: list[Any] = []
        self._starts: dict[bool, Callable[[], None]] = {}  # with copies or without → what starts an inference
        self._captures = capture and layer.captures
        self._events = layer.event(), layer.event()
        try:
            for tensor in tensors:
                self._pointers[tensor.name] = layer.malloc(tensor.nbytes)
                bind(tensor, self._pointers[tensor.name])
                if tensor.goes_in:
                    self.inputs[tensor.name] = layer.pinned(tensor.shape, tensor.dtype)
                elif tensor.comes_out:
                    self.outputs[tensor.name] = layer.pinned(tensor.shape, tensor.dtype)
            for _ in range(warm_up):  # at the final shapes, as a capture demands
                self._work()
            layer.wait(stream)
            self._ready(copies=True)
        except BaseException:
            self.close()
            raise

    def _work(self) -> None:
        for name, array in self.inputs.items():
            self._layer.upload(self._pointers[name], array, self._stream)
        self._enqueue()
        for name, array in self.outputs.items():
            self._layer.download(array, self._pointers[name], self._stream)

    def _ready(self, *, copies: bool) -> Callable[[], None]:
        """What starts an inference; captured when it is first asked for."""
        if copies not in self._starts:
            if self._enqueue is _closed:
                _closed()
            work = self._work if copies else self._enqueue
            if self._captures:
                cuda_graph = self._layer.capture(self._stream, work)
                self._cuda_graphs.append(cuda_graph)
                self._starts[copies] = partial(self._layer.launch, cuda_graph, self._stream)
            else:
                self._starts[copies] = work
        return self._starts[copies]

    def infer(self) -> None:
        self._ready(copies=True)()
        self._layer.wait(self._stream)

    def compute(self) -> None:
        self._ready(copies=False)()
        self._layer.wait(self._stream)

    def device_ms(self, *, copies: bool) -> float:
        start = self._ready(copies=copies)
        began, ended = self._events
        self._layer.record(began, self._stream)
        start()
        self._layer.record(ended, self._stream)
        self._layer.wait(self._stream)
        return self._layer.elapsed_ms(began, ended)

    def close(self) -> None:
        """Give everything back; the arrays must not be used any more."""
        # Whatever computes goes first: it may still hold on to the stream.
        self._starts, self._enqueue = {}, _closed
        for pointer in self._pointers.values():
            self._layer.free(pointer)
        arrays: list[Array] = [*self.inputs.values(), *self.outputs.values()]
        self._pointers, self.inputs, self.outputs = {}, {}, {}
        for array in arrays:
            self._layer.unpin(array)
        self._layer.retire(self._stream, self._events, self._cuda_graphs)
        self._cuda_graphs = []


def _closed() -> None:
    raise EngineError("this lane is closed: its engine is")


class DeviceEngine(Engine):
    """An engine on an NVIDIA GPU: each batch size that ``run`` is asked for has a lane, and all end with the engine."""

    on_gpu = True
    concurrent = False  # threads share those lanes' buffers, whatever the runtime itself would take

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        return PrecisionPlan(requested)  # the precision of the graph

    def _connect(self) -> None:
        self._cuda = cuda.connect(self.options.cuda_binding)
        self._lanes: list[CudaLane] = []
        self._run_lanes: dict[int, CudaLane] = {}  # batch → the lane that `run` uses

    def _disconnect(self) -> None:
        for lane in self._lanes:
            lane.close()
        del self._lanes, self._run_lanes

    def _keep(self, lane: CudaLane) -> CudaLane:
        self._lanes.append(lane)
        return lane

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        batch = len(next(iter(feeds.values())))
        if batch not in self._run_lanes:
            self._run_lanes[batch] = self._lane(batch)
        lane = self._run_lanes[batch]
        for name, array in feeds.items():
            lane.inputs[name][...] = array
        lane.infer()
        return {name: array.copy() for name, array in lane.outputs.items()}

    def _lane(self, batch: int) -> CudaLane:
        return self._keep(self._make_lane(batch))

    @abstractmethod
    def _make_lane(self, batch: int) -> CudaLane:
        """Make buffers on both sides; the batch has been checked against the inputs."""
