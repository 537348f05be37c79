"""The contract of an engine.

The base class checks, the subclass works. ``run`` checks the names, dtypes and shapes of what it is given, and suits
everyone, from any number of threads. ``lane`` gives buffers and an ``infer`` that only infers, for measuring and
serving; several may infer at once, from a thread each, if opened with as many ``streams``.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from lifedeploy.artifact import Artifact, TensorSpec
from lifedeploy.engines.external import onnx_files
from lifedeploy.engines.lanes import Array, FreshLane, Lane, buffers, require_feeds
from lifedeploy.errors import ArtifactError, EngineError, EngineInputError, EngineUnavailableError, UsageError
from lifedeploy.machine import identity
from lifedeploy.progress import Progress, unwatched
from lifedeploy.records import DetailsRecord
from lifedeploy.spec import ATTENTIONS, QUANTIZED, STANDARD_ATTENTIONS, GraphForm


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is opened."""

    precision: str = "fp32"
    threads: int | None = None  # None: all cores
    streams: int = 1  # lanes that may infer at the same time
    batch: int | None = None  # compile for this batch only; None: as the model says
    taps: tuple[str, ...] = ()  # inner tensors to give as further outputs, for verification
    literal: bool = False  # compute Q and DQ as they stand, in FP32: the reference of a quantised graph (ONNX Runtime)
    method: str = ""  # for engines that make the model from a checkpoint
    last_block: str = "full"  # of that model, of all tokens; or "prefix": of prefix tokens alone
    cuda_binding: str = ""  # cuda-python or pycuda; '': what is installed
    url: str = ""  # of a model that a server answers for; '': the file is opened here
    trust: bool = False  # open executable code that no manifest vouches for: the user says so, or it was built just now


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here; if not, why, and what to do."""

    ok: bool
    reason: str = ""
    hint: str = ""
    version: str = ""

    def require(self, refusal: str) -> None:
        """Make sure that it can; ``refusal`` says what cannot be done otherwise.

        Raises:
            EngineUnavailableError: it cannot; with the reason, and what to do.
        """
        if not self.ok:
            raise EngineUnavailableError(f"{refusal}: {self.reason}", hint=self.hint or None)


@dataclass(frozen=True)
class PrecisionPlan:
    """What precision a request comes to on this machine; ``note`` says why, where it is another one."""

    precision: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is compiled. Each runtime names those it has a use for (``Engine.takes``) and refuses the others.

    Units: GiB of workspace; ``batch`` is the smallest, the usual and the largest one.
    """

    attention: str = ""  # form of attention in the graph; '': what suits the runtime
    remainder: str = ""  # of a quantised graph, precision of what is not quantised; '': what suits the runtime
    batch: tuple[int, int, int] | None = None
    workspace_gib: float | None = None
    level: int | None = None  # how long the builder may look for kernels, 0…5
    target: tuple[str, ...] = ()  # GPUs to build for, as compute capabilities: sm89
    timing_cache: Path | None = None
    hardware_compatible: bool = False  # also for later GPUs than this one
    version_compatible: bool = False  # also for later versions of the runtime
    strip_weights: bool = False
    refittable: bool = False
    allow_unfused: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """What is not left to the runtime."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What an engine compiles.

    ``source`` is the export and what is known about it, ``graph`` its ONNX file in the form that the engine asked for:
    in ``folder`` under a name of its own, or the exported file itself.
    """

    source: Artifact
    graph: Path
    folder: Path
    stem: str
    precision: str
    options: BuildOptions = field(default_factory=BuildOptions)
    progress: Progress = unwatched  # told a builder's phase, and the share of it that is done


@dataclass(frozen=True)
class Built:
    """What a build left in its folder: the file to open, and all files it needs (the former among them)."""

    main: str
    files: tuple[str, ...]
    details: DetailsRecord = field(default_factory=DetailsRecord)  # what the runtime tells of it, for the manifest


@dataclass(frozen=True)
class LayerTime:
    """How long one layer of a compiled model takes per inference."""

    name: str
    kind: str  # its operator or kernel, where the runtime tells
    ms: float


class Engine(ABC):
    """One model on one runtime."""

    name: ClassVar[str]
    extra: ClassVar[str]  # what to pip install, as lifedeploy[extra]
    taps_change_plan: ClassVar[bool] = True  # whether the model with taps may be compiled to other arithmetic
    takes: ClassVar[tuple[str, ...]] = ()  # build options that mean something here
    attentions: ClassVar[tuple[str, ...]] = STANDARD_ATTENTIONS  # forms of attention that it reads
    usual: ClassVar[str] = "fp32"  # precision where none is asked for
    quantized: ClassVar[tuple[str, ...]] = ()  # precisions that need calibration, and that it computes in
    endings: ClassVar[tuple[str, ...]] = (".onnx",)  # of the files that it opens
    opens_onnx: ClassVar[bool] = False  # whether it opens any ONNX file as it is; others open what they have built
    keeps_graph_precision: ClassVar[bool] = False  # whether it computes in the graph's precision, whatever it is told
    prefers_fixed_batch: ClassVar[bool] = False  # whether a dynamic batch costs speed, so that each size is compiled
    triton_backend: ClassVar[str] = "python"  # of Triton, which opens its files; "python" is lifedeploy itself
    benchmark_tool: ClassVar[str] = ""  # the vendor's own program that measures what was built, if there is one
    on_gpu: ClassVar[bool] = False  # whether it computes on a GPU
    concurrent: ClassVar[bool] = False  # whether `_run` may be in several threads at once; else they take turns

    def __init__(self, path: Path, options: EngineOptions | None = None) -> None:
        self.path = path
        self.options = options or EngineOptions()
        self._specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None
        self._turn = nullcontext() if self.concurrent else threading.Lock()

    # What a runtime can do here, asked before anything is built.
    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Whether the runtime is installed and runs here."""

    @classmethod
    def can_build(cls) -> Availability:
        """Whether engines can be built here, which for some runtimes is elsewhere than where they run."""
        return cls.availability()

    @classmethod
    @abstractmethod
    def plan(cls, requested: str) -> PrecisionPlan:
        """The precision that ``requested`` comes to on this runtime and processor."""

    @classmethod
    def form(cls, precision: str, options: BuildOptions) -> GraphForm:
        """The form of the graph to compile.

        Raises:
            UsageError: the options ask for one that the runtime cannot compile.
        """
        return GraphForm()

    @classmethod
    def processor(cls, options: BuildOptions) -> str:
        """What the engine will depend on: the processor, or those it is built for."""
        return identity()

    @classmethod
    @abstractmethod
    def build(cls, job: BuildJob) -> Built:
        """Compile a graph and save what the runtime can save as ``folder/stem…``.

        Raises:
            EngineError: the runtime refused.
        """

    @classmethod
    def require_precision(cls, precision: str) -> None:
        """Make sure that a quantised graph would be computed in 8 bits here, not in something else.

        Raises:
            UsageError: it would not.
        """
        if precision in QUANTIZED and precision not in cls.quantized:
            offered = f"it computes in {', '.join(cls.quantized)}" if cls.quantized else "it takes no quantised graphs"
            raise UsageError(f"engine {cls.name} has no {precision.upper()}: {offered}")

    @classmethod
    def require_options(cls, options: BuildOptions) -> None:
        """Make sure that the runtime has a use for all options given.

        Raises:
            UsageError: it has none for one of them.
        """
        unknown = [option_name(name) for name in options.given if name not in cls.takes]
        if unknown:
            offered = f"; it takes: {', '.join(map(option_name, cls.takes))}" if cls.takes else ""
            raise UsageError(f"engine {cls.name} has no use for {', '.join(unknown)}{offered}")
        if options.attention in ATTENTIONS and options.attention not in cls.attentions:
            taken = ", ".join(cls.attentions)
            raise UsageError(f"engine {cls.name} cannot read attention as {options.attention!r}; it takes: {taken}")

    @classmethod
    def files(cls, path: Path) -> tuple[Path, ...]:
        """All files that are read when ``path`` is opened: a manifest has to vouch for each of them.

        Raises:
            ArtifactError: it is of a kind that this engine does not open, or cannot be read.
        """
        if not path.name.endswith(cls.endings):
            raise ArtifactError(f"{path} is nothing that {cls.name} opens; expected {' or '.join(cls.endings)}")
        return onnx_files(path) if path.suffix == ".onnx" else (path,)

    # The life of an engine.

    def open(self) -> Self:
        """Load the model into the runtime.

        Raises:
            EngineError: the runtime refused, or the file is damaged.
        """
        if self._specs is None:
            self._specs = self._open()
        return self

    def close(self) -> None:
        """Free the model, after what is inferring has ended. An engine can be opened again."""
        with self._turn:
            if self._specs is not None:
                self._specs = None
                self._close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors; a dynamic size is None."""
        return self._opened()[0]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors, taps last; a dynamic size is None."""
        return self._opened()[1]

    @property
    def precision(self) -> str:
        """The precision that runs, as far as the runtime tells; else the one asked for."""
        return self.options.precision

    @property
    def eight_bits(self) -> int | None:
        """How many products of a quantised graph run in 8 bits; None: the runtime does not tell."""
        return None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Infer once: input name → array to output name → array. Threads get the answers to their own inputs.

        Raises:
            EngineInputError: a name, dtype or shape is not what the engine takes.
        """
        require_feeds(feeds, self.inputs)
        with self._turn:
            self._opened()  # another thread may have closed it meanwhile
            try:
                return self._run(feeds)
            except AttributeError:
                self._opened()  # or does so now: then that is the reason
                raise

    def lane(self, batch: int) -> Lane:
        """Buffers for ``batch`` images.

        Raises:
            EngineInputError: the engine is fixed to another batch size.
        """
        for spec in self.inputs:
            if spec.shape and spec.shape[0] not in (None, batch):
                raise EngineInputError(
                    f"{self.path.name} is fixed to batch {spec.shape[0]}, and batch {batch} was asked for",
                    hint="export with a dynamic batch, or ask for that batch",
                )
        return self._lane(batch)

    def profile(self, feeds: Mapping[str, Array], runs: int = 20) -> tuple[LayerTime, ...]:
        """What the layers take, in the order of their execution, by the runtime's own profiler: means over ``runs``.

        A profiler slows inference down: these are shares, not speeds.

        Raises:
            EngineError: this runtime tells no times of layers.
            EngineInputError: a name, dtype or shape is not what the engine takes.
        """
        require_feeds(feeds, self.inputs)
        return self._profile(feeds, runs)

    # What a subclass does.

    @abstractmethod
    def _open(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Load; return what goes in and what comes out."""

    @abstractmethod
    def _close(self) -> None:
        """Free."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Infer; everything has been checked. What it gives is the caller's, and stays as it is."""

    def _lane(self, batch: int) -> Lane:
        """Make buffers; the batch has been checked."""
        return FreshLane(self._run, buffers(self.inputs, batch))

    def _profile(self, feeds: Mapping[str, Array], runs: int) -> tuple[LayerTime, ...]:
        """Time the layers; everything has been checked."""
        raise EngineError(f"engine {self.name} tells no times of its layers")

    def _opened(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if self._specs is None:
            raise EngineError(f"the {self.name} engine is not open", hint="use it in a with block, or call open()")
        return self._specs


def option_name(name: str) -> str:
    """A build option as the command line has it."""
    return f"--{name.replace('_', '-')}"
