"""Requests to ONNX Runtime on the CPU: buffers of ours, bound to a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from lifedeploy.engines.lanes import Array, Lane
from lifedeploy.engines.shares import Bounds, Crew, cut

if TYPE_CHECKING:  # a heavy library
    import onnx


class BoundLane(Lane):
    """Buffers bound once; ``infer`` is a single call into the runtime, or one in each thread that has a share.

    ``running`` surrounds an inference, and gives what to run with.
    """

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        *,
        begins: Bounds,
        crew: Crew,
        running: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__(inputs, outputs)
        self._session, self._crew, self._running = session, crew, running
        shares = zip(cut(inputs, begins), cut(outputs, begins), strict=True)
        self._bindings = [self._bound(*arrays) for arrays in shares]

    def _bound(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def infer(self) -> None:
        with self._running() as how:
            run = self._session.run_with_iobinding
            self._crew.do([partial(run, binding, how) for binding in self._bindings])


def has_free_batch(model: onnx.ModelProto) -> bool:
    """Whether the first size of everything that goes in and comes out is the batch's, and any."""
    shapes = [value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)]
    return all(len(shape) > 0 and not shape[0].HasField("dim_value") for shape in shapes)
