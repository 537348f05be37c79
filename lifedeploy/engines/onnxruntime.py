"""ONNX Runtime on the CPU, and what its engines on GPUs share with it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lifedeploy.artifact import TensorSpec
from lifedeploy.engines.base import (
    Availability,
    BuildJob,
    BuildOptions,
    Built,
    Engine,
    EngineOptions,
    LayerTime,
    PrecisionPlan,
)
from lifedeploy.engines.lanes import Array, Lane, buffers
from lifedeploy.errors import EngineError
from lifedeploy.machine import cores, fast_int8
from lifedeploy.optional import installed, pip_line, require
from lifedeploy.spec import ATTENTIONS, QUANTIZED, GraphForm

_KERNEL = "_kernel_time"  # how the trace names a node's own time
_WARM_UP = 3  # runs that a profile leaves out
_INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Engine):
    """ONNX Runtime's own CPU kernels. Takes any ONNX file; a build is the offline-optimised one."""

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "cpu"
    provider: ClassVar[str] = "CPUExecutionProvider"
    taps_change_plan: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ("attention",)
    attentions: ClassVar[tuple[str, ...]] = ATTENTIONS
    opens_onnx: ClassVar[bool] = True
    concurrent: ClassVar[bool] = True  # sessions are made to be shared
    quantized: ClassVar[tuple[str, ...]] = ("int8",)

    @classmethod
    def availability(cls) -> Availability:
        if not installed("onnxruntime"):
            return Availability(False, "onnxruntime is not installed", pip_line(cls.extra))
        ort = require("onnxruntime", extra=cls.extra)
        if cls.provider not in ort.get_available_providers():
            return Availability(False, f"this onnxruntime has no {cls.provider}", pip_line(cls.extra))
        return Availability(True, version=ort.__version__)

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        if requested in ("fp32", *cls.quantized):
            return PrecisionPlan(requested)
        return PrecisionPlan(
            "fp32",
            f"ONNX Runtime's CPU kernels have no fast {requested.upper()} (they convert to FP32 and back): "
            "building FP32 instead",
        )

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        # As fast as the operator on a CPU (benchmarks/cpu/ATTENTION.md), and every version reads it. Providers run the
        # precision of the graph; what is not quantised of a quantised one stays FP32 on a CPU.
        floating = "fp32" if precision in QUANTIZED else precision
        return GraphForm(floating, options.attention or "products")

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        ort = require("onnxruntime", extra=cls.extra)
        how = EngineOptions(precision=job.precision)
        options = cls._session_options(ort, how)
        options.optimized_model_filepath = str(job.folder / f"{job.stem}.onnx")
        new_session(ort, job.graph, options, [cls.provider], disabled=_harmful(how))
        target = job.folder / f"{job.stem}.onnx"
        if job.precision not in QUANTIZED:
            return Built(target.name, (target.name,))
        found = _integer_products(target)
        if not found:
            raise EngineError(f"ONNX Runtime computes none of the products of {target.name} in integers")
        return Built(target.name, (target.name,), {"integer_products": found})

    @staticmethod
    def _session_options(ort: Any, options: EngineOptions) -> Any:
        made = ort.SessionOptions()
        made.log_severity_level = 3  # errors; warnings go to stderr behind the progress bar
        if options.literal:
            made.add_session_config_entry("session.disable_quant_qdq", "1")
        if options.precision in QUANTIZED and not fast_int8():
            # Without VNNI its fast kernel adds pairs of products in 16 bits, which overflow in silence.
            made.add_session_config_entry("session.x64quantprecision", "1")
        if options.threads is not None or options.streams > 1:
            # Each lane computes on its own thread and the pool's; together they should not exceed the threads.
            made.intra_op_num_threads = max(1, (options.threads or cores()) // options.streams)
        return made

    @property
    def eight_bits(self) -> int | None:
        """Of an engine that was built: read off its optimised graph."""
        return sum(_integer_products(self.path).values())

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        ort = require("onnxruntime", extra=self.extra)
        source: Path | bytes = graph_bytes(self.path, self.options.taps) if self.options.taps else self.path
        options = self._session_options(ort, self.options)
        self._session = new_session(ort, source, options, self._providers(), disabled=_harmful(self.options))
        running = self._session.get_providers()[0]
        if running != self.provider:
            raise EngineError(
                f"ONNX Runtime fell back from {self.provider} to {running}", hint="lifedeploy doctor says why"
            )
        return _specs(self._session.get_inputs()), _specs(self._session.get_outputs())

    def _providers(self) -> list[str]:
        return [self.provider]

    def _close(self) -> None:
        del self._session

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.outputs]
        try:
            results = self._session.run(names, dict(feeds))
        except Exception as error:  # the pybind exceptions of ONNX Runtime share no base class
            raise EngineError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return dict(zip(names, results, strict=True))

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        ort = require("onnxruntime", extra=self.extra)
        with tempfile.TemporaryDirectory() as folder:
            options = self._session_options(ort, self.options)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = new_session(ort, self.path, options, self._providers(), disabled=_harmful(self.options))
            for _ in range(_WARM_UP + runs):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _times(events, runs)

    def _lane(self, batch: int) -> Lane:
        return _BoundLane(self._session, buffers(self.inputs, batch), buffers(self.outputs, batch))


class _BoundLane(Lane):
    """Buffers bound once; ``infer`` is a single call into the runtime."""

    def __init__(self, session: Any, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        super().__init__(inputs, outputs)
        self._session = session
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def infer(self) -> None:
        self._session.run_with_iobinding(self._binding)


def _integer_products(optimized: Path) -> dict[str, int]:
    """How many products ONNX Runtime really computes in integers, by the graph it optimised; others keep Q and DQ."""
    onnx = require("onnx", extra=OnnxRuntime.extra)
    kinds = Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)
    return {kind: kinds[kind] for kind in _INTEGER_PRODUCTS if kinds[kind]}


def _harmful(options: EngineOptions) -> tuple[str, ...]:
    """Optimisers to do without.

    With a static batch MatMul and Add become a Gemm, which ONNX Runtime has no integer kernel for.
    """
    return ("MatMulAddFusion",) if options.precision in QUANTIZED else ()


def new_session(
    ort: Any,
    source: Path | bytes,
    options: Any,
    providers: list[Any] | None,
    *,
    disabled: Sequence[str] = (),
) -> Any:
    """A session; ``providers`` is None where the options name devices, ``disabled`` names optimisers to do without.

    Raises:
        EngineError: ONNX Runtime refused.
    """
    try:
        what = source if isinstance(source, bytes) else str(source)
        # Without a fallback a provider that fails says why; with it another one takes over, and the reason is lost.
        more = {"disabled_optimizers": list(disabled)} if disabled else {}
        return ort.InferenceSession(what, options, providers=providers, enable_fallback=0, **more)
    except Exception as error:  # as above: no common base class
        name = "the model" if isinstance(source, bytes) else source
        raise EngineError(f"ONNX Runtime cannot load {name}: {_first_line(error)}") from error


def graph_bytes(path: Path, taps: tuple[str, ...]) -> bytes:
    """The model, with inner tensors as further outputs.

    Raises:
        EngineError: there is no such tensor.
    """
    if not taps:
        return path.read_bytes()
    onnx = require("onnx", extra=OnnxRuntime.extra)
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    typed = {value.name: value for value in model.graph.value_info}
    for tap in taps:
        if tap not in made:
            raise EngineError(f"{path} has no tensor {tap}")
        if tap not in {output.name for output in model.graph.output}:
            model.graph.output.append(typed.get(tap) or onnx.ValueInfoProto(name=tap))
    return bytes(model.SerializeToString())


def _specs(arguments: Any) -> tuple[TensorSpec, ...]:
    made = []
    for argument in arguments:
        dtype = _DTYPES.get(argument.type)
        if dtype is None:
            raise EngineError(f"{argument.name} is a {argument.type}, which lifedeploy does not handle")
        shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
        made.append(TensorSpec(argument.name, dtype, shape))
    return tuple(made)


def _times(events: list[dict[str, Any]], runs: int) -> tuple[LayerTime, ...]:
    """From ONNX Runtime's trace; microseconds, one event per node and run."""
    spent: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = event["name"].removesuffix(_KERNEL), str(event["args"].get("op_name", ""))
            spent.setdefault(key, []).append(event["dur"] / 1000)
    return tuple(LayerTime(name, kind, sum(times[_WARM_UP:]) / runs) for (name, kind), times in spent.items())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
