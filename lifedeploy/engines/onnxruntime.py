"""ONNX Runtime on the CPU, and what its engines on GPUs share with it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lifedeploy import graphs
from lifedeploy.artifact import TensorSpec
from lifedeploy.bounds import require_sound
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
from lifedeploy.engines.integer_products import integer_products, require_no_overflow
from lifedeploy.engines.lanes import Array, Lane, buffers
from lifedeploy.engines.onnxruntime_lane import BoundLane, has_free_batch
from lifedeploy.engines.onnxruntime_trace import WARM_UP, times
from lifedeploy.engines.shares import WHOLE, Bounds, Crew, bounds, cut, is_shared
from lifedeploy.errors import ArtifactError, EngineError
from lifedeploy.graph_outputs import asked_for, serialised, unneeded
from lifedeploy.machine import cores, fast_int8
from lifedeploy.optional import installed, pip_line, require
from lifedeploy.records import DetailsRecord
from lifedeploy.spec import ATTENTIONS, QUANTIZED, GraphForm
from lifedeploy.text import is_utf8, quoted
from lifedeploy.writing import saving, scratch_folder

if TYPE_CHECKING:  # a heavy library
    import onnx

_LOOP_S = 60.0  # for one inference of a graph with loops, which may have no end
_SILENT = 4  # of ONNX Runtime: it would print names as they are; what it has to say is in its exceptions too
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
    extra: ClassVar[str] = "onnxruntime"
    modules: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")  # graphs are read, and cut, before they are opened
    provider: ClassVar[str] = "CPUExecutionProvider"
    taps_change_plan: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ("attention",)
    attentions: ClassVar[tuple[str, ...]] = ATTENTIONS
    opens_onnx: ClassVar[bool] = True
    keeps_graph_precision: ClassVar[bool] = True
    triton_backend: ClassVar[str] = "onnxruntime"
    concurrent: ClassVar[bool] = True  # sessions are made to be shared
    quantized: ClassVar[tuple[str, ...]] = ("int8",)

    @classmethod
    def availability(cls) -> Availability:
        for module in cls.modules:
            if not installed(module):
                return Availability(False, f"{module} is not installed", pip_line(cls.extra))
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
        if precision not in QUANTIZED:
            # As fast as the operator on a CPU (benchmarks/cpu/ATTENTION.md), and every version reads it. Providers run
            # the precision of the graph.
            return GraphForm(precision=precision, attention=options.attention or "products")
        # What is not quantised stays FP32 on a CPU.
        if options.attention or not installed("onnx_ir"):  # which takes graphs apart
            return GraphForm(attention=options.attention or "products")  # ONNX Runtime fuses what it finds by itself
        # Beside integer products it shows what is moved around attention, whose own operator takes queries, keys and
        # values as these give them.
        return GraphForm(attention="contrib", integer="signed" if fast_int8() else "unsigned")

    @classmethod
    def build(cls, job: BuildJob) -> Built:
        ort = require("onnxruntime", extra=cls.extra)
        how = EngineOptions(precision=job.precision)
        options = cls._session_options(ort, how)
        target = job.folder / f"{job.stem}.onnx"
        with saving(target), scratch_folder("optimised") as folder:
            written = target if is_utf8(str(target)) else folder / target.name
            options.optimized_model_filepath = str(written)
            try:
                new_session(ort, job.graph, options, [cls.provider], disabled=cls.disabled_optimizers(how))
            except EngineError as error:
                if written.exists():  # it is opened last, when everything else went well
                    raise RuntimeError(error.message) from error
                raise
            if written != target:
                shutil.copyfile(written, target)
        with saving(target):
            graphs.read(target)  # a full disk is no reason for it to fail
        if job.precision not in QUANTIZED:
            return Built(target.name, (target.name,))
        products = integer_products(target)
        if not products:
            raise EngineError(f"ONNX Runtime computes none of the products of {target.name} in integers")
        return Built(target.name, (target.name,), DetailsRecord(integer_products=products))

    @staticmethod
    def _session_options(ort: Any, options: EngineOptions) -> Any:
        session_options = ort.SessionOptions()
        session_options.log_severity_level = _SILENT
        ort.set_default_logger_severity(_SILENT)
        if options.literal:
            session_options.add_session_config_entry("session.disable_quant_qdq", "1")
        if options.precision in QUANTIZED and not fast_int8():
            # Without VNNI its fast kernel adds pairs of products in 16 bits, which overflow in silence.
            session_options.add_session_config_entry("session.x64quantprecision", "1")
        if options.threads is not None or options.streams > 1:
            # Each lane computes on its own thread and the pool's; together they should not exceed the threads.
            session_options.intra_op_num_threads = max(1, (options.threads or cores()) // options.streams)
        return session_options

    @staticmethod
    def disabled_optimizers(options: EngineOptions) -> tuple[str, ...]:
        """Optimisers to do without.

        With a static batch MatMul and Add become a Gemm, which ONNX Runtime has no integer kernel for.
        """
        return ("MatMulAddFusion",) if options.precision in QUANTIZED else ()

    @property
    def eight_bits(self) -> int | None:
        """Products computed in integers, read off the optimised graph of an engine that was built."""
        return sum(integer_products(self.path).values())

    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        ort = require("onnxruntime", extra=self.extra)
        model = read_sound(self.path)
        if self.options.precision in QUANTIZED and not fast_int8():
            require_no_overflow(self.path, model)
        self._loops = graphs.has_loops(model)
        source: Path | bytes = self.path
        if self.options.taps or unneeded(model):
            source = asked_for(self.path, model, self.options.taps, EngineError)
        threads = max(1, (self.options.threads or cores()) // self.options.streams)
        # What was cut for a session is not kept, to be opened once more.
        self._threads = threads if isinstance(source, Path) and has_free_batch(model) else 1
        self._crew = Crew(self._threads)
        del model
        shared = is_shared(bounds(self.options.batch or 1, self._threads))
        session = self._cpu_session(ort, source, shared=shared)
        self._sessions = {shared: session}  # whether images are shared among threads, not operators → its session
        require_provider(session, self.provider)
        inputs, outputs = specs_of(session.get_inputs()), specs_of(session.get_outputs())
        try:
            require_askable(self.path, inputs, outputs)
        except EngineError:
            self._close()
            raise
        return inputs, outputs

    def _cpu_session(self, ort: Any, source: Path | bytes, *, shared: bool = False, profile: str = "") -> Any:
        options = self._session_options(ort, self.options)
        if shared:
            options.intra_op_num_threads = 1  # the others have images of their own
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return new_session(ort, source, options, [self.provider], disabled=self.disabled_optimizers(self.options))

    def _session_for(self, begins: Bounds) -> Any:
        """The session that computes these shares of a batch; opened where there is none yet."""
        shared = is_shared(begins)
        if shared not in self._sessions:
            ort = require("onnxruntime", extra=self.extra)
            self._sessions[shared] = self._cpu_session(ort, self.path, shared=shared)
        return self._sessions[shared]

    def _close(self) -> None:
        self._crew.leave()
        del self._sessions

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names, sizes = [spec.name for spec in self.outputs], {len(array) for array in feeds.values()}
        begins = bounds(min(sizes), self._threads) if True in self._sessions and len(sizes) == 1 else WHOLE
        session, parts = self._session_for(begins), cut(feeds, begins)
        results: list[list[Array]] = [[] for _ in parts]
        with self._running() as how:

            def ask(number: int) -> None:
                results[number] = session.run(names, parts[number], how)

            self._crew.do([partial(ask, number) for number in range(len(parts))])
        if len(parts) == 1:
            return dict(zip(names, results[0], strict=True))
        return {name: np.concatenate([result[index] for result in results]) for index, name in enumerate(names)}

    @contextmanager
    def _running(self) -> Iterator[Any]:
        """Around an inference: what it raises becomes ours, and loops get a time; what to run with."""
        how = require("onnxruntime", extra=self.extra).RunOptions() if self._loops else None
        clock = threading.Timer(_LOOP_S, setattr, (how, "terminate", True)) if self._loops else None
        if clock is not None:
            clock.daemon = True
            clock.start()
        try:
            yield how
        except Exception as error:  # the pybind exceptions of ONNX Runtime share no base class
            if how is not None and how.terminate:
                raise EngineError(f"{self.path} loops for more than {_LOOP_S:.0f} s") from error
            raise EngineError(f"ONNX Runtime failed: {_first_line(error)}") from error
        finally:
            if clock is not None:
                clock.cancel()

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        ort = require("onnxruntime", extra=self.extra)
        with scratch_folder("profile") as folder:
            session = self._cpu_session(ort, self.path, profile=str(folder / "profile"))
            for _ in range(WARM_UP + runs):
                with self._running() as how:
                    session.run(None, dict(feeds), how)
            return times(Path(session.end_profiling()), runs)

    def _lane(self, batch: int) -> Lane:
        begins = bounds(batch, self._threads)
        arrays = buffers(self.inputs, batch), buffers(self.outputs, batch)
        return BoundLane(self._session_for(begins), *arrays, begins=begins, crew=self._crew, running=self._running)


def new_session(
    ort: Any, source: Path | bytes, options: Any, providers: list[Any] | None, *, disabled: Sequence[str] = ()
) -> Any:
    """A session; ``providers`` is None where the options name devices, ``disabled`` names optimisers to do without.

    Raises:
        EngineError: ONNX Runtime refused.
    """
    if isinstance(source, Path) and not is_utf8(str(source)):  # C++ takes text
        source = serialised(source, read_sound(source), EngineError)
    try:
        what = source if isinstance(source, bytes) else str(source)
        # Without a fallback a provider that fails says why; with it another one takes over, and the reason is lost.
        more = {"disabled_optimizers": list(disabled)} if disabled else {}
        return ort.InferenceSession(what, options, providers=providers, enable_fallback=0, **more)
    except Exception as error:  # as above: no common base class
        name = "the model" if isinstance(source, bytes) else str(source)
        raise EngineError(f"ONNX Runtime cannot load {name}: {_first_line(error)}") from error


def require_provider(session: Any, provider: str) -> None:
    """Make sure that ``provider`` is what a session computes on.

    Raises:
        EngineError: ONNX Runtime fell back to another one.
    """
    running = session.get_providers()[0]
    if running != provider:
        raise EngineError(f"ONNX Runtime fell back from {provider} to {running}", hint="lifedeploy doctor says why")


def read_sound(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file.

    Raises:
        EngineError: it is none, or does not fit into memory.
    """
    try:
        return require_sound(path)
    except ArtifactError as error:
        raise EngineError(error.message, hint=error.hint) from error


def require_askable(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Make sure that there is something to ask, and something that answers.

    Raises:
        EngineError: nothing goes in or comes out, or it is a single number.
    """
    for name, specs in (("inputs", inputs), ("outputs", outputs)):
        if not specs:
            raise EngineError(f"{path} has no {name}; expected images in and logits out")
        if not specs[0].shape:
            raise EngineError(f"{path}: {quoted(specs[0].name)} is a single number; expected one axis for the batch")


def specs_of(arguments: Any) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a session.

    Raises:
        EngineError: one is of a type that no engine takes.
    """
    specs = []
    for argument in arguments:
        dtype = _DTYPES.get(argument.type)
        if dtype is None:
            raise EngineError(f"{quoted(argument.name)} is a {argument.type}, which lifedeploy does not handle")
        shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
        specs.append(TensorSpec(argument.name, dtype, shape))
    return tuple(specs)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
