"""The parity gate: a target asked, and compared with PyTorch's recorded answers; and what a manifest vouches for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lifedeploy.artifact import Artifact, EngineRecord, Manifest, TensorSpec
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines import registry
from lifedeploy.engines.base import Engine, EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.errors import ArtifactError, EngineError, ParityError
from lifedeploy.evaluation import parity
from lifedeploy.records import EightBitsRecord, ParityRecord
from lifedeploy.spec import QUANTIZED
from lifedeploy.targets.find import graphs_of
from lifedeploy.targets.session import Session
from lifedeploy.targets.target import Target, opened_by


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the gate tells of an engine."""

    parity: ParityRecord
    precision: str  # that runs
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    eight_bits: int | None  # products that run in 8 bits; None: of a float graph, or the runtime does not tell


def compiled(graph: Artifact, engine: type[Engine], path: Path, precision: str) -> Target:
    """What ``engine`` made of ``graph`` at ``path``, which may have no manifest yet."""
    return replace(opened_by(engine, graph), path=path, precision=precision)


def check(target: Target, graph: Artifact, *, trust: bool = False) -> Checked:
    """Ask ``target``, which was made of ``graph``, and compare.

    ``trust`` is for what this process has just built, and has no manifest yet. What was there before is opened like any
    other: after its manifest's hashes, version and processor were compared.
    """
    samples, inputs, reference = questions(graph)
    return compare(target, samples, inputs, reference, trust=trust)


def compare(
    target: Target,
    samples: Sequence[Sample],
    inputs: Sequence[Array],
    reference: Sequence[parity.Answer],
    *,
    trust: bool = False,
) -> Checked:
    """Ask ``target`` about ``inputs``, which are ``samples`` as they go into it, and compare with the ``reference``."""
    with Session(target, "drops", options=EngineOptions(trust=trust), proof=True) as session:
        answers = [session.answer(images) for images in inputs]
        engine = session.engine
        return Checked(
            parity=parity.compare(reference, answers, samples, engine.precision, merges=target.merges),
            precision=engine.precision,
            inputs=engine.inputs,
            outputs=engine.outputs,
            eight_bits=engine.eight_bits if target.precision in QUANTIZED else None,
        )


def samples_of(graph: Artifact) -> tuple[Sequence[Sample], list[Array]]:
    """The parity samples, and what of them goes into the graph."""
    manifest = graph.manifest
    preprocess, in_graph = manifest.spec.preprocess, manifest.graph.with_preprocess
    samples = parity_samples(preprocess, manifest.graph.batch_size)
    return samples, [model_input(sample.pixels, preprocess, in_graph=in_graph) for sample in samples]


def questions(graph: Artifact) -> tuple[Sequence[Sample], list[Array], list[parity.Answer]]:
    """The parity samples, and what PyTorch said; of a quantised graph, what it says when computed as it stands."""
    manifest = graph.manifest
    if not manifest.reference:
        raise ArtifactError(f"{graph.manifest_path} names no recorded answers to compare with", hint="export again")
    samples, inputs = samples_of(graph)
    return samples, inputs, parity.recorded(graph.file(manifest.reference), manifest.spec.method, inputs)


# What a manifest vouches for.


def proven(checked: Checked, graph: Artifact, manifest: Manifest) -> Manifest:
    """The manifest of an engine with the evidence that it computes what PyTorch does.

    Raises:
        ParityError, EngineError: it does not, or in another precision than it was built for.
    """
    record, stem = manifest.engine, graph.manifest_path.stem
    assert record is not None  # it is an engine's
    checked.parity.require(f"{stem} on {record.name} {checked.precision}")
    if checked.precision != record.precision:
        raise EngineError(f"{record.name} runs {stem} in {checked.precision}, though built for {record.precision}")
    details = record.details
    if checked.eight_bits is not None:
        products = EightBitsRecord(products=checked.eight_bits, of=len(graph.manifest.quantized_products))
        details = details.but(eight_bits=products)
    return replace(
        manifest,
        inputs=checked.inputs,
        outputs=checked.outputs,
        parity=checked.parity,
        engine=replace(record, pending="", details=details),
    )


def record_of(manifest: Manifest, path: Path) -> EngineRecord:
    """How an engine was built.

    Raises:
        ArtifactError: the manifest, which is at ``path``, is that of no engine.
    """
    if manifest.engine is None:
        raise ArtifactError(f"{path} describes no engine")
    return manifest.engine


def require_current(engine: Artifact) -> None:
    """Make sure that the graph which an engine was built of is still the one beside it, if there is one.

    Raises:
        ArtifactError: it has been calibrated or exported anew since.
    """
    record = engine.manifest.engine
    if record is None or not record.source:
        return
    source = (engine.folder / record.source).with_suffix(".json")
    if source.exists() and Artifact.read(source).manifest.sha256 != record.source_sha256:
        raise ArtifactError(
            f"{engine.path} was built of another {record.source} than is there now",
            hint=f"lifedeploy build-engine {engine.export.folder} --engine {record.name} --{record.requested}",
        )


def require_passed(engine: Artifact, refused: str = "no speed for") -> None:
    """Make sure that an engine passed its parity gate: without it, its speed is that of something else.

    Args:
        engine: what has to have passed.
        refused: what there is none of otherwise, as the message begins.

    Raises:
        ParityError: it failed, or never went through it.
        ArtifactError: its files are not those of its manifest, which lacks nothing that is shown.
    """
    registry.verify(engine)
    engine.require_complete()
    record_of(engine.manifest, engine.manifest_path)
    evidence = engine.manifest.parity
    if evidence is None or not evidence.passed:
        failures = (evidence.failures if evidence else ()) or ("it was never checked",)
        raise ParityError(
            f"{refused} {engine.path}: it did not pass its parity gate ({failures[0]})",
            hint="lifedeploy build-engine --force builds and checks it again",
        )


def prove(engine: Artifact) -> Artifact:
    """Complete the evidence of an engine that was built where it could not run; others are given back as they are.

    Raises:
        EngineUnavailableError: it cannot run here either.
        ArtifactError: what it was built of is no longer there to be compared with.
        ParityError, EngineError: it does not compute what PyTorch does.
    """
    record = engine.manifest.engine
    require_current(engine)
    if record is None or not record.pending:
        return engine
    registry.running(record.name, engine.path)
    graphs = graphs_of(engine.export, record.precision)
    engines = {method: Artifact.read(engine.folder / graph.manifest_path.name) for method, graph in graphs.items()}
    complete(engines, graphs)
    return Artifact.read(engine.manifest_path)


def complete(engines: dict[str, Artifact], graphs: dict[str, Artifact]) -> dict[str, Manifest]:
    """Hold against PyTorch what is still to be, and write it down. It was built somewhere else, or by somebody else:
    it is opened like any other engine, once its manifest's hashes, version and processor were compared.

    Raises:
        ArtifactError, EngineError: they are not those of its manifest, or not of this machine.
        ParityError: it does not compute what PyTorch does.
    """
    manifests = {method: engine.manifest for method, engine in engines.items()}
    for method, engine in engines.items():
        record, graph = engine.manifest.engine, graphs[method]
        if record is not None and record.pending:
            registry.verify(engine)
            checked = check(compiled(graph, registry.get(record.name), engine.path, record.precision), graph)
            manifests[method] = proven(checked, graph, engine.manifest)
            manifests[method].write(engine.manifest_path)
    return manifests
