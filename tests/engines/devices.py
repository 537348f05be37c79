"""A device made of numpy: what engines do with buffers, streams and CUDA graphs is seen without a GPU."""

from __future__ import annotations

import numpy as np

from lifedeploy.engines import cuda


class FakeCuda(cuda.Cuda):
    """Device memory is host memory, a stream does its work at once, and a graph is a list of what to do."""

    name, captures = "fake", True

    def __init__(self):
        self.memory, self.pins, self.log, self.events = {}, 0, [], 0
        self.capturing = None

    def device(self):
        return "numpy (sm00)"

    def malloc(self, size):
        memory = np.zeros(size, np.uint8)
        self.memory[memory.ctypes.data] = memory  # real addresses: other libraries may be told them
        return memory.ctypes.data

    def free(self, pointer):
        del self.memory[pointer]

    def pinned(self, shape, dtype):
        self.pins += 1
        return np.zeros(shape, dtype)

    def unpin(self, array):
        self.pins -= 1

    def stream(self):
        return []

    def handle(self, stream):
        return id(stream)

    def upload(self, pointer, array, stream):
        self._do(lambda: self.memory[pointer].__setitem__(slice(None), array.view(np.uint8).ravel()))

    def download(self, array, pointer, stream):
        self._do(lambda: array.view(np.uint8).reshape(-1).__setitem__(slice(None), self.memory[pointer]))

    def _do(self, work):
        (self.capturing.append(work) if self.capturing is not None else work())

    def wait(self, stream):
        self.log.append("wait")

    def event(self):
        self.events += 1
        return []

    def record(self, event, stream):
        event[:] = [len(self.log)]

    def elapsed_ms(self, start, end):
        return float(end[0] - start[0])

    def retire(self, stream, events, cuda_graphs):
        self.events -= len(events)
        self.log.append("retire")

    def capture(self, stream, work):
        self.capturing = graph = []
        work()
        self.capturing = None
        self.log.append("capture")
        return graph

    def launch(self, graph, stream):
        self.log.append("launch")
        for work in graph:
            work()
