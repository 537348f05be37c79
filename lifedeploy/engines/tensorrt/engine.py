"""TensorRT behind the contract of an engine. Nothing here needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lifedeploy import graphs
from lifedeploy.artifact import EngineRecord, TensorSpec
from lifedeploy.engines import cuda
from lifedeploy.engines.attention_nodes import attention_nodes
from lifedeploy.engines.base import Availability, BuildJob, BuildOptions, Built, EngineOptions, LayerTime
from lifedeploy.engines.device import CudaLane, DeviceEngine, DeviceTensor
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.tensorrt import fusion
from lifedeploy.engines.tensorrt.builder import build_plan
from lifedeploy.engines.tensorrt.library import Messages
from lifedeploy.engines.tensorrt.loading import files_of, refit, require_device, require_version, vouched
from lifedeploy.engines.tensorrt.profiler import Recorder
from lifedeploy.errors import EngineError, EngineInputError, UsageError
from lifedeploy.kept import is_kept_name
from lifedeploy.optional import installed, pip_line, require
from lifedeploy.reading import foreign
from lifedeploy.records import DetailsRecord
from lifedeploy.spec import QUANTIZED, GraphForm
from lifedeploy.writing import saving

if TYPE_CHECKING:  # a heavy library
    import onnx

SHARED = ("attention", "remainder", "batch", "workspace_gib", "level", "strip_weights", "refittable", "allow_unfused")


class TensorRT(DeviceEngine):
    """TensorRT 10 or 11. A plan is built for the GPU at hand, in the precision of its graph."""

    name: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "tensorrt"
    triton_backend: ClassVar[str] = "tensorrt"
    taps_change_plan: ClassVar[bool] = False  # kept tokens are outputs of every plan
    takes: ClassVar[tuple[str, ...]] = (*SHARED, "timing_cache", "hardware_compatible", "version_compatible")
    usual: ClassVar[str] = "fp16"  # in FP32 nothing fuses attention, and a plan without is refused
    quantized: ClassVar[tuple[str, ...]] = QUANTIZED
    endings: ClassVar[tuple[str, ...]] = (".plan",)
    benchmark_tool: ClassVar[str] = "trtexec"
    module: ClassVar[str] = "tensorrt"
    ahead_of_time: ClassVar[bool] = False  # whether it builds where there is no GPU
    captures: ClassVar[bool] = True  # whether the work of a lane is captured into a CUDA graph

    @classmethod
    def availability(cls) -> Availability:
        status = cls._installed()
        if not status.ok:
            return status
        return replace(cuda.availability(), version=status.version)

    @classmethod
    def can_build(cls) -> Availability:
        return cls._installed() if cls.ahead_of_time else cls.availability()

    @classmethod
    def _installed(cls) -> Availability:
        if not installed(cls.module):
            return Availability(False, f"{cls.module} is not installed", pip_line(cls.extra))
        return Availability(True, version=str(cls.library().__version__))

    @classmethod
    def library(cls) -> ModuleType:
        """The vendor's module.

        Raises:
            NotInstalledError: it is not installed, or does not import.
        """
        return require(cls.module, extra=cls.extra)

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        # The operator gives fewer kernels than the products do (benchmarks/tensorrt/RESULTS.md), and there is none
        # for FP32: TensorRT would refuse the graph.
        floating = (options.remainder or "fp16") if precision in QUANTIZED else precision
        # In FP8 attention is quantised too, which the operator has no place for.
        attention = options.attention or ("products" if precision in ("fp32", "fp8") else "operator")
        if precision == "fp32" and attention == "operator":
            raise UsageError(
                "TensorRT has no kernel for FP32 attention as one operator",
                hint="--fp16 or --bf16, or --attention products (which is not fused in FP32)",
            )
        # There is no kernel for the operator of one query and a dynamic batch, and TensorRT refuses to build it; the
        # products it fuses itself (TensorRT for RTX 1.7.1; two queries build in either form).
        return GraphForm(precision=floating, attention=attention, with_order=True, least_queries=2)

    @classmethod
    def processor(cls, options: BuildOptions) -> str:
        if options.target:
            return ", ".join(options.target)
        if cls.ahead_of_time:
            return "all GPUs of TensorRT for RTX"
        return cuda.connect().device()

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        options = job.options
        plan = build_plan(cls.library(), job.graph, options, job.progress)
        path = job.folder / f"{job.stem}.plan"
        with saving(path):
            path.write_bytes(plan.data)
        graph = graphs.read(job.graph)
        report = cls._fusion(path, plan.data).of_nodes(attention_nodes(graph))
        _require(report, job, graph, cls.form(job.precision, options).precision)
        details = DetailsRecord(fusion=report.record, profile=plan.profile, warnings=plan.warnings)
        files = (path.name, job.graph.name) if job.graph.parent == job.folder else (path.name,)
        return Built(path.name, files, details)

    @classmethod
    def files(cls, path: Path) -> tuple[Path, ...]:
        return (*super().files(path), *files_of(path)[1:])

    @classmethod
    def _fusion(cls, path: Path, data: bytes) -> fusion.FusionReport:
        if cls.ahead_of_time:
            return fusion.of_plan(data)
        with cls(path, EngineOptions(trust=True)) as engine:
            return engine.inspect()

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        # A plan is executable code: one that nothing vouches for is loaded only if the user does, or has just built it.
        # All that can be compared is, before a byte of it reaches the runtime.
        record = None if self.options.trust else vouched(self.path, self.name)
        status = self._installed()
        if status.ok and record is not None:
            require_version(self.path, record, status.version)
        self.availability().require(f"{self.path.name} is built, and cannot run here")
        self._trt = self.library()
        self._messages = Messages(self._trt)
        self._connect()
        self._runtime = self._trt.Runtime(self._messages.logger)
        # Plans for later versions carry the part of the runtime that they need, as host code.
        self._runtime.engine_host_code_allowed = True
        with foreign(str(self.path), EngineError):
            data = self.path.read_bytes()
        self._require_machine(record, data)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(f"{self.name} cannot load {self.path}: {self._messages.reason()}")
        refit(self._trt, self._engine, self.path, self._messages)
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            specs = inputs if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT else outputs
            specs.append(self._spec(name))
        shown = [spec for spec in outputs if not is_kept_name(spec.name) or spec.name in self.options.taps]
        return tuple(inputs), tuple(shown)

    def _require_machine(self, record: EngineRecord | None, data: bytes) -> None:
        """Make sure that the plan is one for this GPU.

        Raises:
            EngineError: it is not.
        """
        if record is not None:
            require_device(self.path, record, self._cuda.device())

    def _spec(self, name: str) -> TensorSpec:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, dtype, shape)

    def inspect(self) -> fusion.FusionReport:
        """What the engine inspector says of the open plan."""
        self._opened()
        return fusion.of_inspector(self._information())

    def _information(self) -> str:
        layout = self._trt.LayerInformationFormat.JSON
        return str(self._engine.create_engine_inspector().get_engine_information(layout))

    def _close(self) -> None:
        self._disconnect()
        del self._engine, self._runtime

    @property
    def precision(self) -> str:
        """The precision that products are computed in, read back from the plan."""
        self._opened()
        report = fusion.of_plan(self.path.read_bytes()) if self.ahead_of_time else self.inspect()
        return report.record.precision or self.options.precision

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        recorder = Recorder(self._trt)
        lane = self._keep(self._make_lane(len(next(iter(feeds.values()))), recorder.profiler))
        for name, array in feeds.items():
            lane.inputs[name][...] = array
        lane.infer()
        recorder.forget()
        for _ in range(runs):
            lane.infer()
        return recorder.layers(runs, fusion.origins(self._information()))

    def _make_lane(self, batch: int, profiler: Any = None) -> CudaLane:
        context = self._context(cuda_graphs=profiler is None)
        if context is None:
            raise EngineError(f"{self.name} gave no execution context for {self.path.name}: {self._messages.reason()}")
        if profiler is not None:
            context.profiler = profiler
        for spec in self.inputs:
            shape = (batch, *spec.shape[1:])
            if not context.set_input_shape(spec.name, shape):
                raise EngineInputError(
                    f"{self.path.name} does not take batch {batch}: {self._range(spec.name)}",
                    hint="build it again with --batch SMALLEST,USUAL,LARGEST",
                )
        stream = self._cuda.stream()
        handle = self._cuda.handle(stream)

        def bind(tensor: DeviceTensor, pointer: int) -> None:
            if not context.set_tensor_address(tensor.name, pointer):
                raise EngineError(f"{self.name} did not take {tensor.name}: {self._messages.reason()}")

        def enqueue() -> None:
            if not context.execute_async_v3(handle):
                raise EngineError(f"{self.name} did not take the work: {self._messages.reason()}")

        capture = self.captures and profiler is None
        return CudaLane(self._cuda, stream, self._tensors(context), bind=bind, enqueue=enqueue, capture=capture)

    def _context(self, *, cuda_graphs: bool) -> Any:
        """An execution context; ``cuda_graphs`` is for runtimes that make CUDA graphs of their own."""
        return self._engine.create_execution_context()

    def _tensors(self, context: Any) -> list[DeviceTensor]:
        """All that goes in or comes out, at the context's batch."""
        wanted = {spec.name for spec in self.outputs}
        tensors = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            goes_in = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            shape = tuple(context.get_tensor_shape(name))
            tensors.append(
                DeviceTensor(
                    name=name, dtype=self._spec(name).dtype, shape=shape, goes_in=goes_in, comes_out=name in wanted
                )
            )
        return tensors

    def _range(self, name: str) -> str:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return f"it was built for batches {smallest[0]} to {largest[0]}"


def _require(report: fusion.FusionReport, job: BuildJob, graph: onnx.ModelProto, floating: str) -> None:
    """Hold the plan against what was asked for: precision, fused attention, sorts."""
    spec = job.source.manifest.spec
    what = f"{job.stem} ({spec.method})"
    if report.floating and report.floating != floating:
        raise EngineError(f"{what} was built in {report.floating}, though its graph is in {floating}")
    if job.precision in QUANTIZED:
        report.require_eight_bits(what, job.source.manifest.quantized_products, job.precision)
    kinds = Counter(node.op_type for node in graph.graph.node)
    # It may sort where the graph asks for the place of the largest; a method that counts its sorts has none of these.
    sorts = min(max(report.record.topk, kinds["TopK"]), kinds["TopK"] + kinds["ArgMax"] + kinds["ArgMin"])
    report.require(what, attentions=spec.schedule.depth, sorts=sorts, allow_unfused=job.options.allow_unfused)
