"""TensorRT for RTX: the same plans and contexts, kernels finished on the GPU that runs them."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from lifedeploy.artifact import EngineRecord, TensorSpec
from lifedeploy.caches import private_cache
from lifedeploy.engines import cuda
from lifedeploy.engines.base import Availability, BuildJob, Built, option_name
from lifedeploy.engines.tensorrt.engine import SHARED, TensorRT
from lifedeploy.engines.tensorrt.library import capabilities, named
from lifedeploy.engines.tensorrt.loading import require_valid
from lifedeploy.errors import EngineError
from lifedeploy.files import sha256
from lifedeploy.writing import atomic_file


class TensorRTRtx(TensorRT):
    """TensorRT for RTX: builds ahead of time, with no GPU; kernels are finished on the GPU that runs them."""

    name: ClassVar[str] = "tensorrt-rtx"
    triton_backend: ClassVar[str] = "python"  # Triton has TensorRT, and not this one
    extra: ClassVar[str] = "tensorrt-rtx"
    takes: ClassVar[tuple[str, ...]] = (*SHARED, "target")
    benchmark_tool: ClassVar[str] = "tensorrt_rtx"
    module: ClassVar[str] = "tensorrt_rtx"
    ahead_of_time: ClassVar[bool] = True
    captures: ClassVar[bool] = False

    @classmethod
    def availability(cls) -> Availability:
        status = super().availability()
        if not status.ok:
            return status
        device = cuda.connect().device()
        offered = capabilities(cls.library())
        generation = re.search(r"\(sm(\d+)\d\)", device)
        # Of a generation that it knows it may take other members too; of Hopper, which it does not, no plan loads.
        if generation is None or not offered or generation[1] in {name[2:-1] for name in offered}:
            return status
        known = ", ".join(offered).lower()
        return Availability(False, f"it has no kernels for {device}, only for {known}", "", status.version)

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        needing = [option_name(name) for name in ("strip_weights", "refittable") if name in job.options.given]
        if needing:  # the library would say: MyelinCheckException
            cuda.availability().require(f"{cls.name} builds with {' and '.join(needing)} only where there is a GPU")
        return super().build(job)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        specs = super()._open()
        self._config = self._configured(cuda_graphs=True)
        self._cache = self._config.create_runtime_cache()
        # Kernels that were finished on this machine. They are code too, so they stay with this user, not the plan.
        device = re.sub(r"\W+", "-", self._cuda.device())
        self._cache_file = private_cache(self.name) / f"{sha256(self.path)[:16]}-{device}.cache"
        if self._cache_file.is_file():
            self._cache.deserialize(self._cache_file.read_bytes())  # of another version: it is then made anew
        if not self._config.set_runtime_cache(self._cache):
            raise EngineError(f"{self.name} did not take its cache of kernels: {self._messages.reason()}")
        return specs

    def _require_machine(self, record: EngineRecord | None, data: bytes) -> None:
        require_valid(self._trt, self._runtime, self.path, data)

    def _configured(self, *, cuda_graphs: bool) -> Any:
        config = self._engine.create_runtime_config()
        # Kernels for the shapes at hand before the first answer, not behind it: what is measured is what is served.
        strategy = named(self._trt, "DynamicShapesKernelSpecializationStrategy", "EAGER")
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        # A capture of ours would not see the kernels that it exchanges.
        config.cuda_graph_strategy = named(
            self._trt, "CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE" if cuda_graphs else "DISABLED"
        )
        return config

    def _context(self, *, cuda_graphs: bool) -> Any:
        config = self._config if cuda_graphs else self._configured(cuda_graphs=False)
        return self._engine.create_execution_context(config)

    def _close(self) -> None:
        try:
            kernels = self._cache.serialize()
            if kernels is not None:
                with atomic_file(self._cache_file) as temporary:
                    temporary.write_bytes(bytes(kernels))
        finally:
            super()._close()
            del self._config
            del self._cache  # last: contexts use it, and nothing else keeps it
