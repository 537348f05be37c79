"""From an ONNX file to a plan: the part of the API that TensorRT 10, 11 and RTX share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lifedeploy.engines.base import BuildOptions
from lifedeploy.engines.tensorrt.library import Messages, capabilities, concise, named
from lifedeploy.errors import EngineError, UsageError
from lifedeploy.progress import Progress, Step, unwatched
from lifedeploy.reading import read_bytes
from lifedeploy.writing import atomic_file, saving

DEFAULT_BATCH = (1, 8, 128)
_LARGEST_CACHE = 1024**3  # bytes of timings


@dataclass(frozen=True)
class Plan:
    """A compiled engine."""

    data: bytes
    profile: dict[str, tuple[tuple[int, ...], ...]]  # input → its smallest, usual, largest shape; none: static
    warnings: tuple[str, ...]


def build_plan(trt: ModuleType, graph: Path, options: BuildOptions, progress: Progress = unwatched) -> Plan:
    """Compile ``graph``. Precision is the graph's: there are no precision flags, and none would be believed.

    Raises:
        EngineError: the parser or the builder refused; with the node and the reason.
        EngineUnavailableError: this version lacks what an option needs, or there is no GPU and one is needed.
        UsageError: the options do not fit the graph.
    """
    messages = Messages(trt)
    with _vendor_errors(trt, messages):
        builder = trt.Builder(messages.logger)
        network = builder.create_network(1 << int(named(trt, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED")))
        _parse(trt, network, graph, messages)
        config = builder.create_builder_config()
        _configure(trt, config, options)
        profile = _profile(builder, config, network, options.batch, graph)
        monitor = _monitor(trt, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        cache = _load_cache(config, options.timing_cache)
        data = builder.build_serialized_network(network, config)
    if data is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot build {graph.name}: {messages.reason()}")
    if cache is not None and options.timing_cache is not None:
        with saving(options.timing_cache), atomic_file(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return Plan(bytes(data), profile, tuple(concise(warning) for warning in messages.warnings))


@contextmanager
def _vendor_errors(trt: ModuleType, messages: Messages) -> Iterator[None]:
    """The binding turns a null pointer of the library into a TypeError that says nothing: the log says it."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        reason = messages.reason() if messages.errors else str(error)
        raise EngineError(f"{trt.__name__} {trt.__version__} failed: {reason}") from error


def _parse(trt: ModuleType, network: Any, graph: Path, messages: Messages) -> None:
    parser = trt.OnnxParser(network, messages.logger)
    if parser.parse_from_file(str(graph)):
        return
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name() or error.node_operator()
        reasons.append(f"{node}: {concise(error.desc())}" if node else concise(error.desc()))
    raise EngineError(f"{trt.__name__} cannot read {graph.name}: {'; '.join(reasons) or messages.reason()}")


def _configure(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    config.profiling_verbosity = named(trt, "ProfilingVerbosity", "DETAILED")  # for the inspector
    if options.workspace_gib is not None:
        limit = int(options.workspace_gib * 1024**3)
        config.set_memory_pool_limit(named(trt, "MemoryPoolType", "WORKSPACE"), limit)
    if options.level is not None:
        if not 0 <= options.level <= 5:
            raise UsageError(f"optimisation level {options.level} is not allowed: it must be 0 to 5")
        config.builder_optimization_level = options.level
    if options.hardware_compatible:
        config.hardware_compatibility_level = named(trt, "HardwareCompatibilityLevel", "AMPERE_PLUS")
    for wanted, flag in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.strip_weights, "STRIP_PLAN"),
        (options.refittable, "REFIT"),
    ):
        if wanted:
            config.set_flag(named(trt, "BuilderFlag", flag))
    if options.target:
        config.num_compute_capabilities = len(options.target)
        for index, target in enumerate(options.target):
            config.set_compute_capability(_capability(trt, target), index)


def _capability(trt: ModuleType, target: str) -> Any:
    offered = capabilities(trt)
    if target.upper() not in offered:
        raise UsageError(f"{trt.__name__} does not build for {target}; it builds for: {', '.join(offered).lower()}")
    return offered[target.upper()]


def _profile(
    builder: Any, config: Any, network: Any, batch: tuple[int, int, int] | None, graph: Path
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """One optimisation profile over the batch, where it is dynamic."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if not dynamic:
        if batch is not None and {tensor.shape[0] for tensor in inputs} != set(batch):
            raise UsageError(
                f"{graph.name} is fixed to batch {inputs[0].shape[0]}, and {','.join(map(str, batch))} was asked for",
                hint="export with a dynamic batch",
            )
        return {}
    smallest, usual, largest = batch or DEFAULT_BATCH
    if not 1 <= smallest <= usual <= largest:
        raise UsageError(
            f"batch sizes {smallest},{usual},{largest} are not allowed: smallest, usual, largest, from 1 on"
        )
    profile, shapes = builder.create_optimization_profile(), {}
    for tensor in dynamic:
        rest = tuple(tensor.shape)[1:]
        if -1 in rest:
            raise UsageError(
                f"{tensor.name} of {graph.name} has a dynamic size beyond the batch: {tuple(tensor.shape)}"
            )
        shapes[tensor.name] = tuple((size, *rest) for size in (smallest, usual, largest))
        profile.set_shape(tensor.name, *shapes[tensor.name])
    config.add_optimization_profile(profile)
    return shapes


def _load_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    cache = config.create_timing_cache(read_bytes(path, EngineError, limit=_LARGEST_CACHE) if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"{path} is no timing cache of this version and GPU", hint="delete it, or name another one")
    return cache


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    """Steps done in the outermost phase that is running, as a share."""
    base: Any = getattr(trt, "IProgressMonitor", None)
    if base is None:
        return None

    class _Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = max(steps, 1)
            progress(Step(name, 0.0))

        def step_complete(self, name: str, step: int) -> bool:
            progress(Step(name, min(1.0, (step + 1) / self.steps.get(name, 1))))
            return True  # False would cancel the build

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return _Monitor()
