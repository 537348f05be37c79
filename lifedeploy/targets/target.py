"""A model on an engine, not open yet: which file, by which runtime, in which precision, under which method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine
from lifedeploy.errors import ArtifactError
from lifedeploy.exporters import inspect
from lifedeploy.kept import NOTHING_KEPT, KeptTokens
from lifedeploy.reading import foreign
from lifedeploy.spec import QUANTIZED, ModelSpec
from lifedeploy.targets.find import ModelFile, find, unchanged
from lifedeploy.text import quoted, shortened
from lifedeploy.typed import LastBlock

RUNTIME = "onnxruntime"  # of ONNX files, unless told


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model and all that is needed to open it."""

    name: str  # short, for tables
    path: Path
    engine: type[Engine]
    precision: str
    method: str = ""  # '': of a graph of another tool
    spec: ModelSpec | None = None  # None: of a graph of another tool
    last_block: LastBlock = "full"  # of an artifact; weights alone are run as they were trained
    takes_pixels: bool = False  # it takes uint8 pixels and normalises them itself
    batch_size: int | None = None  # fixed by the export; None: dynamic
    kept: KeptTokens = NOTHING_KEPT  # where it says what it kept, if it chooses anything
    predicts_lives: bool = False
    tells_groups: bool = False  # which tokens its method merged
    artifact: Artifact | None = None
    note: str = ""  # why it is in another precision than was asked for
    alias: str = ""  # what tells it from others of its method, where several are compared
    url: str = ""  # where a server answers for it; '': it is opened here

    @property
    def place(self) -> str:
        """Where it is: a file, or a server's address."""
        return self.url or str(self.path)

    @property
    def shown_method(self) -> str:
        """Its method, as reports name it; among others of its method what tells it apart."""
        return self.alias or self.method or "unknown"

    @property
    def weights(self) -> str:
        """Where its weights are from: "pretrained", "file", "random" …"""
        return self.spec.provenance.weights if self.spec else "unknown"

    @property
    def merges(self) -> bool:
        """Whether its method merges tokens."""
        return methods.fate_of(self.method) == "merged"

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is weights, which run under any method."""
        return self.spec is not None and self.artifact is None and not self.url

    def under(self, method: str) -> Target:
        """The same checkpoint under another method."""
        assert self.spec is not None
        return self._of(self.spec.under(method))

    def _of(self, spec: ModelSpec) -> Target:
        """Of weights that are run as ``spec`` says, and can be asked for what its method chooses."""
        method, schedule = methods.get(spec.method), spec.schedule
        kept = KeptTokens.of_method(schedule, method.selection, parks=method.parks)
        lives, groups = method.gives_lives(schedule), method.fate == "merged" and schedule.prunes
        return replace(self, spec=spec, method=spec.method, kept=kept, predicts_lives=lives, tells_groups=groups)


def target_of(file: ModelFile, *, runtime: str = RUNTIME) -> Target:
    """How ``file`` is opened; an ONNX file by ``runtime``.

    Raises:
        ArtifactError, WeightsError: it is damaged, or nothing that can be run.
        UsageError, EngineUnavailableError: the runtime opens no ONNX files, or does not run here.
    """
    if file.path.suffix == ".safetensors" and not file.is_engine:
        engine = registry.resolve("torch")
        from lifedeploy.model import checkpoint

        spec = checkpoint.read_spec(file.path)
        if spec is None:
            raise ArtifactError(
                f"{file.path} carries no description of its model, so it cannot be run",
                hint="lifedeploy export --backbone NAME --weights FILE makes a checkpoint that does",
            )
        weights = Target(name=file.name, path=file.path, engine=engine, precision="fp32")
        return weights._of(spec)
    if file.artifact is None:
        if file.path.suffix != ".onnx":
            raise ArtifactError(
                f"{file.path} is neither an export, an engine, an ONNX file nor a checkpoint of ours",
                hint="lifedeploy export --backbone NAME --weights FILE makes one of weights",
            )
        engine = registry.resolve(runtime, opens_onnx=True)
        precision = graph_precision(file.path, check=True)
        return Target(
            name=file.name, path=file.path, engine=engine, precision=precision if precision in QUANTIZED else "fp32"
        )
    registry.verify(file.artifact)
    return of_artifact(file.artifact, runtime=runtime)


def of_artifact(artifact: Artifact, *, runtime: str = RUNTIME) -> Target:
    """How a verified artifact is opened; a graph by ``runtime``.

    Raises:
        EngineUnavailableError, UsageError: as :func:`target_of`.
    """
    record = artifact.manifest.engine
    if record is None:
        return opened_by(registry.resolve(runtime, opens_onnx=True), artifact)
    return replace(opened_by(registry.running(record.name, artifact.path), artifact), note=record.note)


def opened_by(engine: type[Engine], artifact: Artifact) -> Target:
    """How an artifact is opened by ``engine``."""
    manifest = artifact.manifest
    return Target(
        name=artifact.name,
        path=artifact.path,
        engine=engine,
        precision=artifact.precision,
        method=manifest.spec.method,
        spec=manifest.spec,
        last_block=manifest.last_block,
        takes_pixels=manifest.graph.with_preprocess,
        batch_size=manifest.graph.batch_size,
        kept=manifest.kept,
        predicts_lives=manifest.predicts_lives,
        tells_groups=manifest.graph.groups,
        artifact=artifact,
    )


def named(model: Path, *, runtime: str = RUNTIME) -> Target:
    """What ``PATH`` or ``PATH:METHOD`` means: with a method, the same weights under that method.

    Raises:
        UsageError: the method does not exist.
        ArtifactError: nothing is there, or it was not exported under that method. And as :func:`target_of`.
    """
    text, _, method = str(model).rpartition(":")
    with foreign(quoted(str(model))):  # names that the system does not take
        as_it_stands = not text or model.exists() or not Path(text).exists()
    with unchanged(model if as_it_stands else Path(text)):
        return target_of(find(model), runtime=runtime) if as_it_stands else _under(text, method, runtime)


def graph_precision(path: Path, *, check: bool = False) -> str:
    """The precision of an ONNX file's tensors, after it was checked against the standard, if that is wanted.

    Raises:
        ArtifactError: it is no ONNX file.
    """
    return inspect.facts(inspect.load(path, check=check)).precision


def _under(text: str, method: str, runtime: str) -> Target:
    file = find(Path(text))
    if file.artifact is None:
        methods.get(method)
        target = target_of(file, runtime=runtime)
        if not target.is_checkpoint:
            raise ArtifactError(f"{text} runs under the method it was exported with: it has no manifest beside it")
        return target.under(method)
    variant = file.artifact.sibling(method)
    if variant is None:
        methods.get(method)  # says so where it is none at all
        offered = ", ".join(sorted({file.artifact.method, *file.artifact.manifest.siblings}))
        raise ArtifactError(f"{text} was not exported under {shortened(method)}; there are: {offered}")
    return target_of(ModelFile.of(variant), runtime=runtime)
