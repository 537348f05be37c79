"""How a target is opened: by which engine, in which precision, under which method. One answer for every verb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.errors import ArtifactError
from lifedeploy.exporters import inspect
from lifedeploy.kept import NOTHING_KEPT, KeptTokens
from lifedeploy.reading import foreign
from lifedeploy.spec import QUANTIZED, ModelSpec
from lifedeploy.text import quoted, shortened
from lifedeploy.workflows.find import Target, find, unchanged


@dataclass(frozen=True)
class Openable:
    """A model and all that is needed to open it."""

    name: str  # short, for tables
    label: str  # the path
    engine: type[Engine]
    path: Path
    precision: str
    method: str
    spec: ModelSpec | None  # None: a graph of another tool
    in_graph: bool  # whether it normalises pixels itself
    batch_size: int | None  # fixed by the export
    kept: KeptTokens  # where it says what it kept, if it chooses anything
    predicts_lives: bool = False

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is weights, which run under any method."""
        return self.engine.name == "torch" and self.spec is not None

    def under(self, method: str) -> Openable:
        """The same checkpoint under another method."""
        assert self.spec is not None
        spec = self.spec.under(method)
        return replace(self, spec=spec, method=method, **_choices_of(spec))

    def open(self, *, taps: tuple[str, ...] = (), threads: int | None = None, batch: int | None = None) -> Engine:
        """An engine of it, to be entered; with ``taps``, such as ``kept.last_tap``, as further outputs."""
        return self.engine(
            self.path,
            EngineOptions(precision=self.precision, threads=threads, batch=batch, taps=taps, method=self.method),
        )


def openable(target: Target, *, runtime: str = "onnxruntime") -> Openable:
    """How ``target`` is opened; an ONNX file by ``runtime``.

    Raises:
        ArtifactError, WeightsError: it is damaged, or nothing that can be run.
        UsageError, EngineUnavailableError: the runtime opens no ONNX files, or does not run here.
    """
    if target.path.suffix == ".safetensors" and not target.is_engine:
        from lifedeploy.model import checkpoint

        spec = checkpoint.read_spec(target.path)
        if spec is None:
            raise ArtifactError(
                f"{target.path} carries no description of its model, so it cannot be run",
                hint="lifedeploy export --backbone NAME --weights FILE makes a checkpoint that does",
            )
        cls, label = registry.resolve("torch"), str(target.path)
        side = Openable(target.name, label, cls, target.path, "fp32", spec.method, spec, False, None, NOTHING_KEPT)
        return replace(side, **_choices_of(spec))
    if target.artifact is None:
        if target.path.suffix != ".onnx":
            raise ArtifactError(
                f"{target.path} is neither an export, an engine, an ONNX file nor a checkpoint of ours",
                hint="lifedeploy export --backbone NAME --weights FILE makes one of weights",
            )
        cls = registry.resolve(runtime, opens_onnx=True)
        found = inspect.facts(inspect.load(target.path)).precision
        precision = found if found in QUANTIZED else "fp32"
        label = str(target.path)
        return Openable(target.name, label, cls, target.path, precision, "", None, False, None, NOTHING_KEPT)
    registry.verify(target.artifact)
    manifest = target.artifact.manifest
    record = manifest.engine
    return Openable(
        name=target.name,
        label=str(target.path),
        engine=registry.running(record.name, target.path) if record else registry.resolve(runtime, opens_onnx=True),
        path=target.path,
        precision=target.artifact.precision,
        method=manifest.spec.method,
        spec=manifest.spec,
        in_graph=bool(manifest.graph.get("with_preprocess")),
        batch_size=manifest.graph.get("batch_size"),
        kept=manifest.kept,
        predicts_lives=manifest.predicts_lives,
    )


def _choices_of(spec: ModelSpec) -> dict[str, Any]:
    """What can be asked of weights, which PyTorch runs."""
    method, schedule = methods.get(spec.method), spec.schedule
    kept = KeptTokens.of_method(schedule, method.choice)
    return {"kept": kept, "predicts_lives": method.predicts_lives and schedule.prunes}


def named(model: Path, *, runtime: str = "onnxruntime") -> Openable:
    """What ``PATH`` or ``PATH:METHOD`` means: with a method, the same weights under that method.

    Raises:
        UsageError: the method does not exist.
        ArtifactError: nothing is there, or it was not exported under that method. And as :func:`openable`.
    """
    text, _, method = str(model).rpartition(":")
    with foreign(quoted(str(model))):  # names that the system does not take
        as_it_stands = not text or model.exists() or not Path(text).exists()
    with unchanged(model if as_it_stands else Path(text)):
        return openable(find(model), runtime=runtime) if as_it_stands else _under(model, text, method, runtime)


def _under(model: Path, text: str, method: str, runtime: str) -> Openable:
    target = find(Path(text))
    if target.artifact is None:
        methods.get(method)
        side = openable(target, runtime=runtime)
        if not side.is_checkpoint:
            raise ArtifactError(f"{text} runs under the method it was exported with: it has no manifest beside it")
        return side.under(method)
    sibling = target.artifact.sibling(method)
    if sibling is None:
        methods.get(method)  # says so where it is none at all
        offered = ", ".join(sorted({target.artifact.method, *target.artifact.manifest.siblings}))
        raise ArtifactError(f"{text} was not exported under {shortened(method)}; there are: {offered}")
    return openable(Target(sibling.path, sibling), runtime=runtime)
