"""The little of CUDA that running a plan needs, behind one interface with two implementations.

Both work in the device's primary context, the one that torch and every other library of the process use: nothing here
makes a context of its own or leaves another one current.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from lifedeploy.engines.base import Availability
from lifedeploy.engines.lanes import Array
from lifedeploy.errors import EngineError, EngineUnavailableError, NotInstalledError, UsageError
from lifedeploy.optional import installed, pip_line, require


class Cuda(ABC):
    """One device. Pointers are integers; streams, events and CUDA graphs are what the binding makes of them."""

    name: ClassVar[str]
    captures: ClassVar[bool]  # whether work can be captured into a CUDA graph

    @abstractmethod
    def device(self) -> str:
        """The GPU's name and compute capability: ``NVIDIA H200 (sm90)``."""

    @abstractmethod
    def malloc(self, size: int) -> int:
        """``size`` bytes of device memory."""

    @abstractmethod
    def free(self, pointer: int) -> None:
        """Give device memory back."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A zeroed array in page-locked host memory, which copies at full speed and beside other work."""

    @abstractmethod
    def unpin(self, array: Array) -> None:
        """Give page-locked memory back; the array must not be used any more."""

    @abstractmethod
    def stream(self) -> Any:
        """A new stream."""

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """A stream as TensorRT takes it."""

    @abstractmethod
    def upload(self, pointer: int, array: Array, stream: Any) -> None:
        """Copy host → device, in the stream's order."""

    @abstractmethod
    def download(self, array: Array, pointer: int, stream: Any) -> None:
        """Copy device → host, in the stream's order."""

    @abstractmethod
    def wait(self, stream: Any) -> None:
        """Wait until everything in the stream is done."""

    @abstractmethod
    def event(self) -> Any:
        """A new event, for timing."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Put an event into the stream."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two recorded events."""

    @abstractmethod
    def retire(self, stream: Any, events: Sequence[Any], cuda_graphs: Sequence[Any]) -> None:
        """Give a stream back, and the events and CUDA graphs that were used in it."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """What ``work`` puts into the stream, as a CUDA graph; it is not executed.

        Raises:
            EngineError: this binding has no CUDA graphs.
        """
        raise EngineError(f"{self.name} has no CUDA graphs")

    def launch(self, cuda_graph: Any, stream: Any) -> None:
        """Execute a captured CUDA graph.

        Raises:
            EngineError: this binding has no CUDA graphs.
        """
        raise EngineError(f"{self.name} has no CUDA graphs")


class CudaPython(Cuda):
    """NVIDIA's own binding (``cuda-python``): wheels, CUDA graphs; the default."""

    name: ClassVar[str] = "cuda-python"
    captures: ClassVar[bool] = True

    def __init__(self) -> None:
        self._rt: Any = require("cuda.bindings.runtime", extra="tensorrt")
        self._call(self._rt.cudaSetDevice(0))

    def _call(self, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if int(error) != 0:
            text = self._rt.cudaGetErrorString(error)[1]
            raise EngineError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}")
        return values[0] if len(values) == 1 else tuple(values)

    def device(self) -> str:
        properties = self._call(self._rt.cudaGetDeviceProperties(0))
        return _device(properties.name, properties.major, properties.minor)

    def malloc(self, size: int) -> int:
        return int(self._call(self._rt.cudaMalloc(size)))

    def free(self, pointer: int) -> None:
        self._call(self._rt.cudaFree(pointer))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        import ctypes

        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = int(self._call(self._rt.cudaMallocHost(max(size, 1))))
        memory = np.ctypeslib.as_array((ctypes.c_byte * max(size, 1)).from_address(pointer))
        array: Array = memory[:size].view(np.dtype(dtype)).reshape(shape)
        array[...] = 0
        return array

    def unpin(self, array: Array) -> None:
        self._call(self._rt.cudaFreeHost(array.ctypes.data))

    def stream(self) -> Any:
        return self._call(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))

    def handle(self, stream: Any) -> int:
        return int(stream)

    def upload(self, pointer: int, array: Array, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._rt.cudaMemcpyAsync(pointer, array.ctypes.data, array.nbytes, kind, stream))

    def download(self, array: Array, pointer: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._rt.cudaMemcpyAsync(array.ctypes.data, pointer, array.nbytes, kind, stream))

    def wait(self, stream: Any) -> None:
        self._call(self._rt.cudaStreamSynchronize(stream))

    def event(self) -> Any:
        return self._call(self._rt.cudaEventCreate())

    def record(self, event: Any, stream: Any) -> None:
        self._call(self._rt.cudaEventRecord(event, stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call(self._rt.cudaEventElapsedTime(start, end)))

    def retire(self, stream: Any, events: Sequence[Any], cuda_graphs: Sequence[Any]) -> None:
        for cuda_graph in cuda_graphs:
            self._call(self._rt.cudaGraphExecDestroy(cuda_graph))
        for event in events:
            self._call(self._rt.cudaEventDestroy(event))
        self._call(self._rt.cudaStreamDestroy(stream))

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads go on undisturbed
        self._call(self._rt.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            # The capture has to end; that it then fails too is no news, and the first error is the reason.
            error, cuda_graph = self._rt.cudaStreamEndCapture(stream)
            if int(error) == 0:
                self._rt.cudaGraphDestroy(cuda_graph)
            raise
        cuda_graph = self._call(self._rt.cudaStreamEndCapture(stream))
        try:
            return self._call(self._rt.cudaGraphInstantiate(cuda_graph, 0))
        finally:
            self._rt.cudaGraphDestroy(cuda_graph)

    def launch(self, cuda_graph: Any, stream: Any) -> None:
        self._call(self._rt.cudaGraphLaunch(cuda_graph, stream))


class PyCuda(Cuda):
    """``pycuda``: for those who have it. It has no CUDA graphs.

    Its context is the primary one, retained and pushed around every call, never ``pycuda.autoinit``'s own.
    """

    name: ClassVar[str] = "pycuda"
    captures: ClassVar[bool] = False

    def __init__(self) -> None:
        self._driver: Any = require("pycuda.driver", extra="pycuda")
        self._driver.init()
        self._device = self._driver.Device(0)
        self._context = self._device.retain_primary_context()
        self._memory: dict[int, Any] = {}

    def _inside(self, work: Callable[[], Any]) -> Any:
        self._context.push()
        try:
            return work()
        except self._driver.Error as error:
            raise EngineError(f"CUDA: {error}") from error
        finally:
            self._driver.Context.pop()

    def device(self) -> str:
        return _device(self._device.name(), *self._device.compute_capability())

    def malloc(self, size: int) -> int:
        memory = self._inside(lambda: self._driver.mem_alloc(max(size, 1)))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        memory = self._memory.pop(pointer)
        self._inside(memory.free)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        array: Array = self._inside(lambda: self._driver.pagelocked_zeros(shape, np.dtype(dtype)))
        return array

    def unpin(self, array: Array) -> None:
        pass  # the array owns its memory and frees it

    def stream(self) -> Any:
        return self._inside(self._driver.Stream)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def upload(self, pointer: int, array: Array, stream: Any) -> None:
        self._inside(lambda: self._driver.memcpy_htod_async(pointer, array, stream))

    def download(self, array: Array, pointer: int, stream: Any) -> None:
        self._inside(lambda: self._driver.memcpy_dtoh_async(array, pointer, stream))

    def wait(self, stream: Any) -> None:
        self._inside(stream.synchronize)

    def event(self) -> Any:
        return self._inside(self._driver.Event)

    def record(self, event: Any, stream: Any) -> None:
        self._inside(lambda: event.record(stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._inside(lambda: start.time_till(end)))

    def retire(self, stream: Any, events: Sequence[Any], cuda_graphs: Sequence[Any]) -> None:
        pass  # they free themselves


BINDINGS: dict[str, tuple[str, type[Cuda]]] = {
    "cuda-python": ("cuda.bindings", CudaPython),
    "pycuda": ("pycuda", PyCuda),
}


def _installed(module: str) -> bool:
    try:
        return installed(module)
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def availability() -> Availability:
    """Whether there is a binding, a driver and a GPU."""
    names = [name for name, (module, _) in BINDINGS.items() if _installed(module)]
    if not names:
        return Availability(False, "neither cuda-python nor pycuda is installed", pip_line("tensorrt"))
    if "cuda-python" not in names:
        return _pycuda_availability()
    runtime: Any = require("cuda.bindings.runtime", extra="tensorrt")
    error, count = runtime.cudaGetDeviceCount()
    if int(error) == 0 and count:
        return Availability(True)
    driver = runtime.cudaDriverGetVersion()[1]
    if not driver:
        return Availability(False, "no CUDA driver", "install NVIDIA's driver, or run where there is a GPU")
    if int(error) == 35:  # cudaErrorInsufficientDriver
        have, want = _version(driver), _version(runtime.cudaRuntimeGetVersion()[1])
        return Availability(False, f"the CUDA driver knows CUDA {have}, and {want} is needed", "update NVIDIA's driver")
    return Availability(False, "no NVIDIA GPU that this process may use", "nvidia-smi, CUDA_VISIBLE_DEVICES")


def _pycuda_availability() -> Availability:
    try:
        driver: Any = require("pycuda.driver", extra="pycuda")
        driver.init()
    except NotInstalledError as error:
        return Availability(False, error.message, error.hint or "")
    except Exception as error:  # pycuda's own, whose class cannot be named before it imports
        return Availability(False, f"no CUDA driver: {error}")
    return Availability(True) if driver.Device.count() else Availability(False, "no NVIDIA GPU")


def connect(binding: str = "") -> Cuda:
    """The layer by that name; the first one installed where none is named.

    Raises:
        UsageError: there is no such binding.
        EngineUnavailableError: it is not installed, or there is no GPU.
    """
    if binding and binding not in BINDINGS:
        raise UsageError(f"CUDA binding {binding!r} is unknown; there are: {', '.join(BINDINGS)}")
    status = availability()
    if not status.ok:
        raise EngineUnavailableError(status.reason, hint=status.hint or None)
    name = binding or next(name for name, (module, _) in BINDINGS.items() if _installed(module))
    _, layer = BINDINGS[name]
    return layer()


def _device(name: str | bytes, major: int, minor: int) -> str:
    text = name.decode() if isinstance(name, bytes) else name
    return f"{text} (sm{major}{minor})"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
