"""The CUDA layer where there is no CUDA: what it says, and that it is never asked for what it cannot do."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from lifedeploy.engines import cuda
from lifedeploy.errors import EngineError, EngineUnavailableError, UsageError


def runtime(error=0, count=1, driver=13000, needed=13000):
    """A ``cuda.bindings.runtime`` that gives these answers."""
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (error, count),
        cudaDriverGetVersion=lambda: (0, driver),
        cudaRuntimeGetVersion=lambda: (0, needed),
    )


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, ""),
        ({"error": 35, "count": None, "driver": 0}, "no CUDA driver"),
        ({"error": 35, "count": None, "driver": 12040}, "the CUDA driver knows CUDA 12.4, and 13.0 is needed"),
        ({"error": 100, "count": None}, "no NVIDIA GPU that this process may use"),
        ({"count": 0}, "no NVIDIA GPU that this process may use"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, answers, reason):
    monkeypatch.setattr(cuda, "_installed", lambda module: module == "cuda.bindings")
    monkeypatch.setattr(cuda, "require", lambda module, extra: runtime(**answers))
    found = cuda.availability()
    assert (found.ok, found.reason) == (not reason, reason)


def test_without_a_binding_the_pip_line_is_given(monkeypatch):
    monkeypatch.setattr(cuda, "_installed", lambda module: False)
    found = cuda.availability()
    assert not found.ok
    assert found.reason == "neither cuda-python nor pycuda is installed"
    assert found.hint == "pip install 'lifedeploy[tensorrt]'"
    with pytest.raises(EngineUnavailableError, match="neither cuda-python nor pycuda"):
        cuda.connect()


def test_an_unknown_binding():
    with pytest.raises(UsageError, match="CUDA binding 'cupy' is unknown; there are: cuda-python, pycuda"):
        cuda.connect("cupy")


def test_errors_of_cuda_have_its_text(monkeypatch):
    fake = SimpleNamespace(
        cudaSetDevice=lambda index: (0,),
        cudaMalloc=lambda size: (2, None),
        cudaGetErrorString=lambda error: (0, b"out of memory"),
    )
    monkeypatch.setattr(cuda, "require", lambda module, extra: fake)
    with pytest.raises(EngineError, match="CUDA: out of memory"):
        cuda.CudaPython().malloc(10)


class FakePyCuda(ModuleType):
    """``pycuda.driver`` as far as the layer uses it: it writes down what was done in which context."""

    class Error(Exception):
        pass

    def __init__(self, *, broken=""):
        super().__init__("pycuda.driver")
        self.done = []
        outer = self

        class Context:
            def push(self):
                outer.done.append("push")

            @staticmethod
            def pop():
                outer.done.append("pop")

        class Device:
            def __init__(self, index):
                pass

            @staticmethod
            def count():
                return 1

            def name(self):
                return "Fake GPU"

            def compute_capability(self):
                return 9, 0

            def retain_primary_context(self):
                outer.done.append("retain")
                return Context()

        self.Context, self.Device = Context, Device
        self.broken = broken

    def init(self):
        if self.broken == "init":
            raise self.Error("cuInit failed: no CUDA-capable device is detected")
        self.done.append("init")

    def mem_alloc(self, size):
        if self.broken == "memory":
            raise self.Error("cuMemAlloc failed: out of memory")
        self.done.append(f"alloc {size}")
        return 4096

    def pagelocked_zeros(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.fixture
def pycuda(monkeypatch):
    def install(**how):
        fake = FakePyCuda(**how)
        monkeypatch.setattr(cuda, "_installed", lambda module: module == "pycuda")
        monkeypatch.setattr(cuda, "require", lambda module, extra: fake)
        return fake

    return install


def test_pycuda_works_in_the_primary_context_and_leaves_none_behind(pycuda):
    fake = pycuda()
    layer = cuda.connect()
    assert layer.name == "pycuda"
    assert layer.device() == "Fake GPU (sm90)"
    assert layer.malloc(16) == 4096
    assert layer.pinned((2, 3), "float32").shape == (2, 3)
    assert fake.done.count("push") == fake.done.count("pop") == 2
    assert "retain" in fake.done
    assert "pycuda.autoinit" not in sys.modules
    assert not layer.captures
    with pytest.raises(EngineError, match="pycuda has no CUDA graphs"):
        layer.capture(None, lambda: None)


def test_a_failing_pycuda_leaves_no_context_behind_either(pycuda):
    fake = pycuda(broken="memory")
    layer = cuda.connect("pycuda")
    with pytest.raises(EngineError, match="CUDA: cuMemAlloc failed: out of memory"):
        layer.malloc(16)
    assert fake.done[-2:] == ["push", "pop"]


def test_pycuda_without_a_gpu(pycuda):
    pycuda(broken="init")
    found = cuda.availability()
    assert (found.ok, found.reason) == (False, "no CUDA driver: cuInit failed: no CUDA-capable device is detected")


def test_a_capture_that_fails_ends_and_the_first_reason_stands(monkeypatch):
    ended = []
    fake = SimpleNamespace(
        cudaSetDevice=lambda index: (0,),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        cudaStreamBeginCapture=lambda stream, mode: (0,),
        cudaStreamEndCapture=lambda stream: ended.append(stream) or (901, None),
    )
    monkeypatch.setattr(cuda, "require", lambda module, extra: fake)

    def work():
        raise EngineError("TensorRT did not take the work")

    with pytest.raises(EngineError, match="TensorRT did not take the work"):
        cuda.CudaPython().capture("stream", work)
    assert ended == ["stream"]


def test_a_graph_that_was_made_executable_is_given_back(monkeypatch):
    destroyed = []
    fake = SimpleNamespace(
        cudaSetDevice=lambda index: (0,),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        cudaStreamBeginCapture=lambda stream, mode: (0,),
        cudaStreamEndCapture=lambda stream: (0, "graph"),
        cudaGraphInstantiate=lambda graph, flags: (0, "executable"),
        cudaGraphDestroy=lambda graph: destroyed.append(graph) or (0,),
    )
    monkeypatch.setattr(cuda, "require", lambda module, extra: fake)
    assert cuda.CudaPython().capture("stream", lambda: None) == "executable"
    assert destroyed == ["graph"]
