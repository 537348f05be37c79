"""OpenVINO on CPUs. Its bf16 on AVX-512 BF16 and AMX processors is by far the fastest way to run a ViT there."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lifedeploy import graphs
from lifedeploy.artifact import TensorSpec
from lifedeploy.bounds import require_sound
from lifedeploy.engines.base import Availability, BuildJob, BuildOptions, Built, Engine, LayerTime, PrecisionPlan
from lifedeploy.engines.lanes import Array, Lane, buffers
from lifedeploy.engines.openvino_lane import RequestLane, infer_all, joined
from lifedeploy.engines.shares import WHOLE, Bounds, bounds, cut, is_shared
from lifedeploy.errors import EngineError
from lifedeploy.graph_outputs import asked_for
from lifedeploy.kept import is_kept_name
from lifedeploy.machine import cores, fast_int8, memory_limit
from lifedeploy.optional import installed, pip_line, require
from lifedeploy.reading import read_text
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME, GraphForm
from lifedeploy.text import quoted
from lifedeploy.writing import saving

_DEVICE = "CPU"
_LOOP = re.compile(r"\btype=\"(Loop|TensorIterator)\"")
_WARM_UP = 3  # runs that a profile leaves out
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
ELEMENT_TYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
# Kinds of executed nodes that carry the model's products, as they begin: what they run in is what the engine runs in.
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention")
# A product of our exports among the names that a node was fused from: blocks.0.mlp.fc1/MatMul/DequantizationMultiply.
_PRODUCT_NAME = re.compile(r"(.+/(?:MatMul|Gemm|Conv)(?:_\d+)?)(?:/|$)")


@dataclass(frozen=True)
class _Executed:
    """A node of the compiled graph."""

    kind: str
    precision: str
    origins: tuple[str, ...]  # nodes of the ONNX graph that it was fused from


class OpenVino(Engine):
    """OpenVINO's CPU plug-in. A build is an IR (``.xml`` and ``.bin``); it is compiled when opened."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    takes: ClassVar[tuple[str, ...]] = ("attention",)
    endings: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    opens_onnx: ClassVar[bool] = True
    concurrent: ClassVar[bool] = True
    prefers_fixed_batch: ClassVar[bool] = True
    quantized: ClassVar[tuple[str, ...]] = ("int8",)

    @classmethod
    def availability(cls) -> Availability:
        if not installed("openvino"):
            return Availability(False, "openvino is not installed", pip_line(cls.extra))
        ov = require("openvino", extra=cls.extra)
        if _DEVICE not in ov.Core().available_devices:
            return Availability(False, "this openvino has no CPU plug-in", pip_line(cls.extra))
        return Availability(True, version=ov.__version__.split("-")[0])

    @classmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        ov = require("openvino", extra=cls.extra)
        if requested in cls.quantized:
            slow = (
                "" if fast_int8() else "this CPU has neither VNNI nor AMX: 8-bit integers are smaller here, not faster"
            )
            return PrecisionPlan(requested, slow)
        fast = ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return choose_precision(requested, bf16="BF16" in fast)

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        # Precision is a hint to the compiler. The form makes no difference to speed (benchmarks/cpu/ATTENTION.md).
        return GraphForm(attention=options.attention or "products")

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        ov = require("openvino", extra=cls.extra)
        # It converts what outputs need, and nothing of a graph that only says what was kept: that becomes an output,
        # which is shown to those alone who ask for it.
        manifest = job.source.manifest
        told = {SCORES_NAME: manifest.predicts_lives, GROUPS_NAME: manifest.graph.groups}
        names = (*manifest.kept.taps, *(name for name, tells in told.items() if tells))
        model = _read(ov.Core(), job.graph, names)
        main = job.folder / f"{job.stem}.xml"
        with saving(main.with_suffix(".bin")):
            # FP32 weights in the file: the precision of the arithmetic is chosen when it is compiled.
            ov.save_model(model, main, compress_to_fp16=False)
        return Built(main.name, (main.name, f"{job.stem}.bin"))

    @classmethod
    def files(cls, path: Path) -> tuple[Path, ...]:
        read = super().files(path)
        return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else read

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        self._ov = require("openvino", extra=self.extra)
        self._require_bounded()
        self._begins: Bounds = WHOLE
        self._compiled = self._compile()
        # A request holds one inference's inputs and outputs. `run` borrows some for itself, or makes more.
        self._idle: deque[Any] = deque([self._compiled.create_infer_request()])
        self._shown = self._name_outputs()
        batch = self.options.batch if is_shared(self._begins) else None  # then what is compiled is of a share
        outputs = tuple(_spec(self._compiled.outputs[index], name, batch) for index, name in self._shown.items())
        return tuple(_spec(port, port.any_name, batch) for port in self._compiled.inputs), outputs

    def _compile(self, *, profile: bool = False) -> Any:
        """The model; unless it is to be profiled, for shares of a batch where it can be shared."""
        core = self._ov.Core()
        try:
            model = _read(core, self.path, self.options.taps)
            self._require_memory(model)
            _forget_told(model, self.options.taps)
            if self.options.taps:
                model.add_outputs(list(self.options.taps))
            batch, config = self.options.batch, self._config()
            if batch is not None:
                if not profile:
                    self._begins = self._shares(model, batch)
                    if is_shared(self._begins):
                        config |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": len(self._begins) - 1}
                        batch //= len(self._begins) - 1
                # A static batch is a quarter faster than a dynamic one (docs/architecture.md), so one model per batch.
                # A batch that the export fixed stays fixed: the graph's own constants depend on it.
                dynamic = filter(_is_free, model.inputs)
                model.reshape({port: [batch, *list(port.get_partial_shape())[1:]] for port in dynamic})
            return core.compile_model(model, _DEVICE, config | ({"PERF_COUNT": True} if profile else {}))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {self.path}: {_reason(error)}") from error

    def _shares(self, model: Any, batch: int) -> Bounds:
        """Shares of a batch for one compiled shape: equal ones, where the batch is free on both sides."""
        free = all(_is_free(port) for port in (*model.inputs, *model.outputs))
        threads = (self.options.threads or cores()) // self.options.streams
        return bounds(batch, threads, equal=True) if free else WHOLE

    def _require_bounded(self) -> None:
        """Refuse what OpenVINO might compute for ever: it hears neither a clock nor a signal meanwhile.

        Raises:
            EngineError: there is a loop in it.
            ArtifactError: it does not fit into memory, or is damaged.
        """
        if self.path.suffix == ".onnx":
            loops = graphs.has_loops(require_sound(self.path))
        else:
            loops = _LOOP.search(read_text(self.path, EngineError)) is not None
        if loops:
            raise EngineError(f"{self.path} holds a loop, which OpenVINO is not given: it could not be stopped")

    def _require_memory(self, model: Any) -> None:
        """Hold what the graph declares against memory, before constants are computed."""
        limit = memory_limit()
        for node in model.get_ordered_ops():
            for port in node.outputs():
                shape = port.get_partial_shape()
                sizes = [size.get_length() if size.is_static else 1 for size in shape] if shape.rank.is_static else []
                size_bytes = math.prod(sizes) * max(port.get_element_type().size, 1)
                if size_bytes > limit:
                    raise EngineError(
                        f"{self.path}: {quoted(node.get_friendly_name())} declares the shape {quoted(sizes)}, "
                        f"{size_bytes / 1024**3:,.0f} GiB, and this machine has {limit / 1024**3:,.0f}"
                    )

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._hint(),
            "PERFORMANCE_HINT": "LATENCY" if self.options.streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.options.streams,
        }
        if self.options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.options.threads
            if self.options.threads < cores():
                # Threads would be bound to the first cores, and so would those of the process beside this one.
                config["ENABLE_CPU_PINNING"] = False
        return config

    def _hint(self) -> str:
        """The precision of floating-point arithmetic; of a quantised graph, of what is not quantised."""
        if self.options.precision in _HINTS:
            return _HINTS[self.options.precision]
        fast = self._ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return _HINTS["bf16" if "BF16" in fast else "fp32"]

    def _name_outputs(self) -> dict[int, str]:
        """Place → name of what is shown: not the kept tokens that nobody asked for.

        A tap may be one of several names of its tensor: prefer the name it was asked for by.
        """
        shown = {}
        for index, port in enumerate(self._compiled.outputs):
            tap = next((tap for tap in self.options.taps if tap in port.names), None)
            if tap is not None or not any(map(is_kept_name, port.names)):
                shown[index] = tap or port.any_name
        return shown

    def _close(self) -> None:
        del self._idle, self._compiled

    @property
    def precision(self) -> str:
        """Read back from the compiled graph: INT8 if products are executed in it, else what most of them are in."""
        if self.eight_bits:
            return "int8"
        ran = Counter(node.precision for node in self._executed() if node.kind.startswith(_PRODUCTS))
        return ran.most_common(1)[0][0] if ran else self.options.precision

    @property
    def eight_bits(self) -> int:
        """Products of the ONNX graph in nodes that are executed in 8 bits, by the names that they were fused from."""
        names = [name for node in self._executed() if node.precision == "int8" for name in node.origins]
        return len({match[1] for match in map(_PRODUCT_NAME.match, names) if match})

    def _executed(self) -> Iterator[_Executed]:
        self._opened()
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            precision = ELEMENT_TYPES.get(str(rt_value(facts, "runtimePrecision")))
            if precision is not None:
                origins = str(rt_value(facts, "originalLayersNames")).split(",")
                yield _Executed(str(rt_value(facts, "layerType")), precision, tuple(origins))

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        parts = cut({name: np.ascontiguousarray(array) for name, array in feeds.items()}, self._begins)
        requests = [self._borrowed() for _ in parts]
        try:
            infer_all(requests, parts)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {_reason(error)}") from error
        answer = joined(requests, self._shown)
        self._idle.extend(requests)  # after their outputs were copied
        return answer

    def _borrowed(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:  # all are busy
            return self._compiled.create_infer_request()

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        request = self._compile(profile=True).create_infer_request()
        spent: dict[tuple[str, str], float] = {}
        for run in range(_WARM_UP + runs):
            request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
            for node in request.get_profiling_info() if run >= _WARM_UP else ():
                if str(node.status).endswith("EXECUTED"):
                    key = node.node_name, node.node_type
                    spent[key] = spent.get(key, 0.0) + node.real_time.total_seconds() * 1000
        return tuple(LayerTime(name, kind, total / runs) for (name, kind), total in spent.items())

    def _lane(self, batch: int) -> Lane:
        inputs = buffers(self.inputs, batch)
        parts = cut(inputs, self._begins)
        requests = [self._compiled.create_infer_request() for _ in parts]
        # Where the batch is dynamic, OpenVINO (2026.4) goes on to read and write a buffer that it was lent for one
        # request in the inferences of all others: their answers are wrong, and the buffer may be gone.
        lent = all(spec.shape and spec.shape[0] is not None for spec in self.inputs)
        if lent:
            for request, part in zip(requests, parts, strict=True):
                for name, array in part.items():
                    request.set_tensor(name, self._ov.Tensor(array, shared_memory=True))
        return RequestLane(requests, inputs, self._shown, feeds=None if lent else parts)


def _read(core: Any, path: Path, names: Sequence[str]) -> Any:
    """The model at ``path``, tensors called ``names`` among the others.

    Raises:
        EngineError: OpenVINO cannot convert it, or there is no such tensor.
    """
    try:
        model = core.read_model(path)
        if not names:
            return model
        there = {name for node in model.get_ops() for port in node.outputs() for name in port.names}
        missing = tuple(name for name in names if name not in there)
        if not missing:
            return model
        if path.suffix != ".onnx":
            raise EngineError(
                f"{path} has no tensor {missing[0]}: OpenVINO keeps what outputs need",
                hint="the ONNX model that it was built of has it",
            )
        # Of an ONNX graph it converts what outputs need, and nothing else.
        return core.read_model(asked_for(path, require_sound(path), missing, EngineError))
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot read {path}: {_reason(error)}") from error


def _forget_told(model: Any, taps: Sequence[str]) -> None:
    """Take out what a model tells of its patches, unless it is asked for: it would be computed for nobody."""
    for port, result in zip(model.outputs, model.get_results(), strict=True):
        tells = any(name in (SCORES_NAME, GROUPS_NAME) or is_kept_name(name) for name in port.names)
        if tells and not port.names & set(taps):
            model.remove_result(result)


def choose_precision(requested: str, *, bf16: bool) -> PrecisionPlan:
    """What ``requested`` comes to on a CPU with or without fast BF16.

    OpenVINO takes FP16 on every CPU, and is slower in it than in FP32 on those we measured: never chosen.
    """
    if requested == "fp32" or (requested == "bf16" and bf16):
        return PrecisionPlan(requested)
    if bf16:
        return PrecisionPlan("bf16", "this CPU has no fast FP16, but fast BF16 (AVX-512 BF16 or AMX): building BF16")
    return PrecisionPlan(
        "fp32",
        f"this CPU has neither fast FP16 nor BF16 (AVX-512 BF16 or AMX): building FP32 instead of {requested.upper()}",
    )


def _is_free(port: Any) -> bool:
    """Whether the first size of a tensor, that of the batch, is any."""
    shape = port.get_partial_shape()
    return bool(shape.rank.is_static and len(shape) and shape[0].is_dynamic)


def _spec(port: Any, name: str, batch: int | None) -> TensorSpec:
    dims = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    whole = dims if batch is None else (batch, *dims[1:])
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, whole)


def rt_value(facts: Any, key: str) -> Any:
    """An entry of OpenVINO's RTMap; '' where it has none."""
    value = facts[key] if key in facts else ""  # noqa: SIM401  OpenVINO's RTMap has no get
    return getattr(value, "value", value)


def _reason(error: RuntimeError) -> str:
    """OpenVINO's errors open with the source line that threw; the reason is the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
