"""ONNX Runtime on NVIDIA GPUs: its CUDA kernels, and TensorRT and TensorRT for RTX behind it.

Every lane is a session of its own: fixed to its batch, so that no arithmetic on shapes is left over for the CPU, on a
stream of its own, and replayed as a CUDA graph that the provider captures.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lifedeploy import graphs
from lifedeploy.artifact import TensorSpec
from lifedeploy.caches import private_cache
from lifedeploy.engines import attention_kernels, cuda
from lifedeploy.engines.base import Availability, BuildJob, BuildOptions, Built, LayerTime
from lifedeploy.engines.device import CudaLane, DeviceEngine, DeviceTensor
from lifedeploy.engines.lanes import Array, shape_at
from lifedeploy.engines.onnxruntime import OnnxRuntime, new_session, read_sound, require_askable, require_provider
from lifedeploy.errors import EngineError, NotInstalledError
from lifedeploy.graph_outputs import asked_for
from lifedeploy.optional import installed, pip_line, require
from lifedeploy.reading import reason
from lifedeploy.records import DetailsRecord
from lifedeploy.spec import ATTENTIONS, QUANTIZED, STANDARD_ATTENTIONS, GraphForm
from lifedeploy.text import quoted
from lifedeploy.writing import saving

if TYPE_CHECKING:  # a heavy library
    import onnx

_WARM_UP = 3  # the first run sets up and captures; the others are replays
_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OnnxRuntimeCuda(DeviceEngine, OnnxRuntime):
    """ONNX Runtime's own CUDA kernels; refuses to fall back to the CPU."""

    name: ClassVar[str] = "onnxruntime-cuda"
    extra: ClassVar[str] = "gpu"
    provider: ClassVar[str] = "CUDAExecutionProvider"
    takes: ClassVar[tuple[str, ...]] = (*OnnxRuntime.takes, "allow_unfused")
    attentions: ClassVar[tuple[str, ...]] = ATTENTIONS
    # The first version whose com.microsoft.MultiHeadAttention has a fused kernel (flash attention) in a precision:
    # https://github.com/microsoft/onnxruntime/pull/17227, https://github.com/microsoft/onnxruntime/pull/26083. Since
    # https://github.com/microsoft/onnxruntime/pull/28849 it prefers cuDNN's from SM 90 on. FP32 has none for so few
    # tokens as a ViT's. With a bias that flash attention does not take see attention_kernels.ALIGNED.
    fused_since: ClassVar[Mapping[str, tuple[int, int]]] = {"fp16": (1, 16), "bf16": (1, 24)}
    least_queries: ClassVar[int] = 1  # in an attention that becomes an operator
    quantized: ClassVar[tuple[str, ...]] = ()  # its Q and DQ surround products in floating point
    eight_bits = None  # what TensorRT computes behind it, it does not tell
    memory: ClassVar[str] = "cuda"  # where ONNX Runtime is told that addresses point to

    @classmethod
    def availability(cls) -> Availability:
        status = super().availability()
        if not status.ok:
            return status
        return replace(cuda.availability(), version=status.version)

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        floating = (options.remainder or "fp16") if precision in QUANTIZED else precision
        attention = options.attention or cls._usual_attention(floating)
        return GraphForm(precision=floating, attention=attention, least_queries=cls.least_queries)

    @classmethod
    def _usual_attention(cls, precision: str) -> str:
        """ONNX Runtime's own operator, where this version has a fused kernel for it.

        ONNX's ``Attention``, fused since 1.25 (https://github.com/microsoft/onnxruntime/pull/27542), takes its heads
        apart and has to put them together for that kernel: it is to be had (``--attention operator``), not the default.
        """
        since = cls.fused_since.get(precision)
        return "contrib" if since is not None and _version_of(cls.extra) >= since else "products"

    @classmethod
    def processor(cls, options: BuildOptions) -> str:
        return cuda.connect().device()

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        # Nothing is compiled ahead: what a provider makes of the graph depends on the batch and the GPU.
        target = job.folder / f"{job.stem}.onnx"
        with saving(target):
            shutil.copyfile(job.graph, target)
        return Built(target.name, (target.name,), cls._told_of(target, job))

    @classmethod
    def _told_of(cls, graph: Path, job: BuildJob) -> DetailsRecord:
        """Which kernels compute attention, for the manifest.

        Raises:
            EngineError: an attention in half precision is computed in several kernels, and that is neither allowed nor
                asked for.
        """
        if not cls.fused_since:
            return DetailsRecord()  # another runtime computes, and does not tell
        layers = job.source.manifest.spec.schedule.depth
        fusion = attention_kernels.read_back(graph, cls.provider, layers)
        # FP32 has no fused kernel to ask for, and who asks for products gets them as they are.
        asked = job.options.allow_unfused or job.options.attention == "products"
        if job.precision in cls.fused_since and attention_kernels.has_unfused(fusion) and not asked:
            raise EngineError(
                f"{fusion.note}: {graph.name} in {job.precision.upper()} on {cls.processor(job.options)}",
                hint="--allow-unfused keeps it; --attention operator, contrib or products may be faster",
            )
        return DetailsRecord(fusion=fusion)

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self._ort: Any = require("onnxruntime", extra=self.extra)
        model = read_sound(self.path)
        self._model = asked_for(self.path, model, self.options.taps, EngineError)
        specs = self._read(model.graph)
        require_askable(self.path, *specs)
        self._prepare()
        self._connect()
        return specs

    def _prepare(self) -> None:
        """Load the provider's libraries."""
        self._ort.preload_dlls()

    def _read(self, graph: onnx.GraphProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What goes in and out; and ``_batch_names``, what the batch is called where it is not fixed."""
        weights = {tensor.name for tensor in graph.initializer}

        def spec(value: Any) -> TensorSpec:
            kind = value.type.tensor_type
            if not kind.elem_type:
                raise EngineError(f"{self.path} does not say of what type {quoted(value.name)} is")
            shape = tuple(size.dim_value or None for size in kind.shape.dim)
            return TensorSpec(value.name, graphs.dtype_name(kind.elem_type), shape)

        fed = [value for value in graph.input if value.name not in weights]
        first = [dim for value in fed for dim in value.type.tensor_type.shape.dim[:1]]
        self._batch_names = {size.dim_param for size in first if size.dim_param}
        return tuple(spec(value) for value in fed), tuple(spec(value) for value in graph.output)

    def _close(self) -> None:
        self._disconnect()
        del self._model

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        raise EngineError("ONNX Runtime times the launches of CUDA kernels, not the kernels: that is no profile")

    def _make_lane(self, batch: int) -> CudaLane:
        stream = self._cuda.stream()
        session = self._lane_session(batch, self._provider_options(self._cuda.handle(stream), batch))
        binding, run = session.io_binding(), self._ort.RunOptions()
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the lane waits for its stream
        tensors = [
            DeviceTensor(
                name=port.name,
                dtype=spec.dtype,
                shape=shape_at(batch, port.name, port.shape),
                goes_in=fed,
                comes_out=not fed,
            )
            for ports, specs, fed in (
                (session.get_inputs(), self.inputs, True),
                (session.get_outputs(), self.outputs, False),
            )
            for port, spec in zip(ports, specs, strict=True)
        ]

        def bind(tensor: DeviceTensor, pointer: int) -> None:
            place = binding.bind_input if tensor.goes_in else binding.bind_output
            place(tensor.name, self.memory, 0, np.dtype(tensor.dtype).type, tensor.shape, pointer)

        def enqueue() -> None:
            try:
                session.run_with_iobinding(binding, run)
            except Exception as error:  # the exceptions of ONNX Runtime share no base class
                raise EngineError(f"ONNX Runtime failed: {reason(error)}") from error

        return CudaLane(self._cuda, stream, tensors, bind=bind, enqueue=enqueue, capture=False, warm_up=_WARM_UP)

    def _lane_session(self, batch: int, provider_options: dict[str, str]) -> Any:
        options = self._session_options(self._ort, self.options)
        for name in self._batch_names:
            options.add_free_dimension_override_by_name(name, batch)
        options.add_session_config_entry(_ASSIGNMENT, "1")
        session = self._new_session(options, provider_options)
        self._require_alone(session)
        return session

    def _new_session(self, options: Any, provider_options: dict[str, str]) -> Any:
        providers = [(self.provider, provider_options)]
        return new_session(self._ort, self._model, options, providers, disabled=self.disabled_optimizers(self.options))

    def _provider_options(self, stream: int, batch: int) -> dict[str, str]:
        # https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
        return {"user_compute_stream": str(stream), "enable_cuda_graph": "1"}

    def _cache(self) -> str:
        """Where the provider keeps what it compiles: code, so it stays with this user. It makes no parents itself."""
        return str(private_cache(self.name))

    def _require_alone(self, session: Any) -> None:
        """Make sure that nothing runs elsewhere: ONNX Runtime falls back in silence.

        Raises:
            EngineError: something does.
        """
        require_provider(session, self.provider)
        if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
            return
        elsewhere = {
            f"{node.op_type} ({part.ep_name})"
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != self.provider
            for node in part.get_nodes()
        }
        if elsewhere:
            raise EngineError(f"{self.provider} left to others of {self.path.name}: {', '.join(sorted(elsewhere))}")


class OnnxRuntimeTensorRT(OnnxRuntimeCuda):
    """TensorRT behind ONNX Runtime. It builds its engine when a lane is made, and keeps it for the next time."""

    name: ClassVar[str] = "onnxruntime-tensorrt"
    triton_backend: ClassVar[str] = "python"  # Triton's own would have to be told of the provider
    takes: ClassVar[tuple[str, ...]] = (*OnnxRuntime.takes, "remainder")
    attentions: ClassVar[tuple[str, ...]] = STANDARD_ATTENTIONS  # what TensorRT cannot read, others would compute
    fused_since: ClassVar[Mapping[str, tuple[int, int]]] = {}
    quantized: ClassVar[tuple[str, ...]] = QUANTIZED
    least_queries: ClassVar[int] = 2  # as TensorRT itself
    provider: ClassVar[str] = "TensorrtExecutionProvider"

    @classmethod
    def availability(cls) -> Availability:
        status = super().availability()
        if not status.ok:
            return status
        if not installed("tensorrt"):
            return Availability(False, "tensorrt is not installed", pip_line("tensorrt"), status.version)
        needed, have = _tensorrt_of(cls.extra), str(require("tensorrt", extra="tensorrt").__version__)
        if needed and have.partition(".")[0] != needed:
            reason = f"this onnxruntime needs TensorRT {needed}, and {have} is installed"
            return Availability(False, reason, f"pip install 'tensorrt=={needed}.*'", status.version)
        return status

    def _prepare(self) -> None:
        require("tensorrt", extra="tensorrt")  # its wheels load the libraries that the provider looks for
        super()._prepare()

    def _provider_options(self, stream: int, batch: int) -> dict[str, str]:
        # https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
        return {
            "user_compute_stream": str(stream),
            "trt_cuda_graph_enable": "True",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": self._cache(),
            # The provider's own key knows neither weights nor shapes: another model would be given this one's engine.
            "trt_engine_cache_prefix": f"{hashlib.sha256(self._model).hexdigest()[:16]}-{batch}",
            # No trt_fp16_enable, nor its like: they turn strong typing off, and the graph's own types are meant.
        }


class OnnxRuntimeRtx(OnnxRuntimeCuda):
    """TensorRT for RTX behind ONNX Runtime, as NVIDIA's plug-in. It takes sm86, sm89, sm120 and later: no Hopper."""

    name: ClassVar[str] = "onnxruntime-tensorrt-rtx"
    triton_backend: ClassVar[str] = "python"
    takes: ClassVar[tuple[str, ...]] = OnnxRuntimeTensorRT.takes
    attentions: ClassVar[tuple[str, ...]] = STANDARD_ATTENTIONS
    fused_since: ClassVar[Mapping[str, tuple[int, int]]] = {}
    quantized: ClassVar[tuple[str, ...]] = QUANTIZED
    extra: ClassVar[str] = "onnxruntime-rtx"
    least_queries: ClassVar[int] = 2  # as TensorRT itself
    provider: ClassVar[str] = "NvTensorRTRTXExecutionProvider"
    plugin: ClassVar[str] = "onnxruntime_ep_nv_tensorrt_rtx"

    @classmethod
    def availability(cls) -> Availability:
        for module in (*cls.modules, cls.plugin):
            if not installed(module):
                return Availability(False, f"{module.replace('_', '-')} is not installed", pip_line(cls.extra))
        version = str(require("onnxruntime", extra=cls.extra).__version__)
        device = cuda.availability()
        if not device.ok:
            return replace(device, version=version)
        try:
            devices = cls._devices()
        except (EngineError, NotInstalledError) as error:
            return Availability(False, error.message, "", version)
        if not devices:
            return Availability(False, f"TensorRT for RTX does not run on {cuda.connect().device()}", "", version)
        return Availability(True, version=version)

    @classmethod
    def _devices(cls) -> list[Any]:
        """The GPUs that the plug-in takes, after it was registered.

        Raises:
            EngineError: ONNX Runtime could not load it.
        """
        ort, plugin = require("onnxruntime", extra=cls.extra), require(cls.plugin, extra=cls.extra)
        if not any(device.ep_name == cls.provider for device in ort.get_ep_devices()):
            try:
                ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
            except Exception as error:  # the exceptions of ONNX Runtime share no base class
                if "already registered" not in str(error).lower():
                    raise EngineError(f"ONNX Runtime cannot load {cls.plugin}: {reason(error)}") from error
        return [device for device in ort.get_ep_devices() if device.ep_name == cls.provider]

    def _prepare(self) -> None:
        pass  # the plug-in brings its libraries

    def _new_session(self, options: Any, provider_options: dict[str, str]) -> Any:
        options.add_provider_for_devices(self._devices()[:1], provider_options)
        return new_session(self._ort, self._model, options, None)

    def _provider_options(self, stream: int, batch: int) -> dict[str, str]:
        # https://nvidia.github.io/TensorRT-RTX-EP-ABI/_generated/provider-options.html
        return {
            "has_user_compute_stream": "1",
            "user_compute_stream": str(stream),
            "enable_cuda_graph": "1",
            "nv_runtime_cache_path": self._cache(),
        }


def _version_of(extra: str) -> tuple[int, ...]:
    """(major, minor) of ONNX Runtime; of a nightly build that of the release it leads to."""
    version = str(require("onnxruntime", extra=extra).__version__)
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _tensorrt_of(extra: str) -> str:
    """The major version of TensorRT that ONNX Runtime's provider is linked to; '' where that cannot be told."""
    package = Path(str(require("onnxruntime", extra=extra).__file__)).parent
    library = package / "capi" / "libonnxruntime_providers_tensorrt.so"
    match = re.search(rb"libnvinfer\.so\.(\d+)", library.read_bytes()) if library.is_file() else None
    return match[1].decode() if match else ""
