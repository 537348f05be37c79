"""A model under schedules that it was not exported with, on one engine: made of its graphs, built, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.bench.measure import Contender, Samples, Stop, measure
from lifedeploy.bench.stats import Interval
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildJob, BuildOptions, Engine, EngineOptions
from lifedeploy.errors import ArtifactError
from lifedeploy.exporters import forms
from lifedeploy.exporters.reschedule import Reschedulable
from lifedeploy.machine import cores
from lifedeploy.progress import Progress
from lifedeploy.schedule import Schedule
from lifedeploy.targets.evidence import compiled
from lifedeploy.targets.find import graphs_of
from lifedeploy.targets.session import Session
from lifedeploy.tuned import architecture
from lifedeploy.writing import scratch_folder

ANSWERED = 16  # images at a time that are asked about, where the export leaves that open
Write = Callable[[Path], None]  # writes an ONNX graph


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How the engine is asked: the setting that a schedule is tuned for."""

    mode: str  # "latency" (one request at a time) or "throughput" (requests in flight)
    batch: int
    streams: int  # requests in flight; 1 in latency mode
    threads: int | None = None  # None: the runtime decides


class Workbench:
    """Models of one export on one engine in one precision.

    Args:
        export: what they are made of.
        engine: that they run on.
        precision: that it computes in; for a quantised one the export is calibrated.
        asked: how they are asked.

    Raises:
        ArtifactError: the export is damaged, lacks a model, or is not calibrated for that precision.
    """

    def __init__(self, export: Artifact, engine: type[Engine], precision: str, asked: Asked) -> None:
        graphs = graphs_of(export, precision)
        for method in (methods.baseline(), methods.bound()):
            if method.name not in graphs:
                raise ArtifactError(
                    f"{export.folder}/ holds no {method.name} to measure beside it", hint="export again"
                )
        for graph in graphs.values():
            registry.verify(graph)
            graph.require_complete()
        self.engine, self.precision, self.asked = engine, precision, asked
        self.slimmed, self.baseline = graphs[export.method], graphs[methods.baseline().name]
        self.bound = graphs[methods.bound().name]
        self._how = BuildOptions()
        if "batch" in engine.takes and export.manifest.graph.batch_size is None:  # answers are asked for too
            self._how = BuildOptions(batch=(1, asked.batch, max(asked.batch, ANSWERED)))
        self._slimmed = Reschedulable(self.slimmed.path, self.slimmed.manifest.spec)
        self._baseline = Reschedulable(self.baseline.path, self.baseline.manifest.spec)
        self._form = engine.form(precision, self._how)

    @property
    def conditions(self) -> dict[str, Any]:
        """What a time holds for, beside the machine: the engine, how it is asked, and all of the model but weights."""
        manifest = self.baseline.manifest
        return {
            "engine": f"{self.engine.name} {self.precision}",
            "asked": {**asdict(self.asked), "threads": self.asked.threads or cores()},
            "backbone": architecture(manifest.spec.timm_name),
            "image_size": list(manifest.spec.image_size),
            "classes": manifest.spec.num_classes,
            "graph": [manifest.last_block, manifest.graph.with_preprocess, manifest.graph.batch_size],
            "quantized": list(manifest.quantized_products),
        }

    @contextmanager
    def opened(self, graph: Artifact, write: Write | None = None, *, batch: int | None = None) -> Iterator[Session]:
        """An open engine of what ``write`` made of ``graph``; of the graph as it is where that is None.

        ``batch`` is for answers; to be measured it is opened as it is :class:`Asked`.

        Raises:
            EngineError: the runtime refused.
            ExportError: the graph has a form that is not known.
        """
        with scratch_folder("tune") as folder:
            path = graph.path
            if write is not None:
                path = folder / "written.onnx"
                write(path)
            if not self._form.as_exported:
                forms.prepare(path, self._form, folder / "formed.onnx")
                path = folder / "formed.onnx"
            job = BuildJob(
                source=graph, graph=path, folder=folder, stem="model", precision=self.precision, options=self._how
            )
            built = self.engine.build(job)
            for name in {"written.onnx", "formed.onnx"} - {*built.files}:
                (folder / name).unlink(missing_ok=True)
            target = compiled(graph, self.engine, folder / built.main, self.precision)
            with Session(target, options=self._options(batch)) as session:
                yield session

    def _options(self, batch: int | None) -> EngineOptions:
        # Trusted, since this very process has just built it, in a folder of its own.
        if batch is not None:
            return EngineOptions(batch=batch, threads=self.asked.threads, trust=True)
        asked = self.asked
        return EngineOptions(batch=asked.batch, streams=asked.streams, threads=asked.threads, trust=True)

    def dense(self, *, batch: int | None = None) -> AbstractContextManager[Session]:
        """The baseline, every token of it."""
        return self.opened(self.baseline, batch=batch)

    def shortened(self, tokens: int) -> AbstractContextManager[Session]:
        """The baseline with so many patch tokens in every layer."""
        return self.opened(self.baseline, lambda path: self._baseline.shortened(tokens, path))

    def under(self, schedule: Schedule, *, batch: int | None = None) -> AbstractContextManager[Session]:
        """The slimmed model under a schedule."""
        manifest = self.slimmed.manifest
        base = schedule.base_layer
        spec = replace(manifest.spec, schedule=schedule)
        moved = replace(manifest, spec=spec, graph=manifest.graph.but(kept=(base,)))
        graph = replace(self.slimmed, manifest=moved)
        return self.opened(graph, lambda path: self._slimmed.rescheduled(schedule, path), batch=batch)

    def compare(self, sessions: Mapping[str, Session], stop: Stop, what: str, progress: Progress) -> Samples:
        """Let open models take turns; the first is what the others are held against.

        Turns are of equal length, not of equal numbers of requests: one model may be ten times another.
        """
        asked = self.asked
        contenders = [
            Contender(
                name=name,
                team=name,
                batch=asked.batch,
                lanes=tuple(session.lane(asked.batch, number) for number in range(asked.streams)),
            )
            for name, session in sessions.items()
        ]
        return measure(contenders, stop, progress=lambda step: progress(replace(step, what=what)))


def times(samples: Samples, first: str) -> dict[str, Interval]:
    """How long each took, over the time of ``first``: medians of the rounds, with their intervals."""
    return {name: samples.ratio(first, name) for name in samples.turns}
