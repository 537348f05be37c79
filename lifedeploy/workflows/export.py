"""``export``: a backbone and a schedule in; checked ONNX graphs, a checkpoint and their manifests out."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lifedeploy import methods
from lifedeploy.artifact import Manifest, Workspace
from lifedeploy.cost import Cost
from lifedeploy.data.preprocess import model_input, normalise
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import EngineUnavailableError, UsageError
from lifedeploy.evaluation import parity
from lifedeploy.exporters import inspect
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.metadata import macs, metadata
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.files import sha256
from lifedeploy.kept import KeptTokens, kept_name
from lifedeploy.last_block import last_block_of
from lifedeploy.manifest import MOST_BATCH_PIXELS
from lifedeploy.method import Method
from lifedeploy.model import backbones, checkpoint
from lifedeploy.model.vit import SlimViT, build_model
from lifedeploy.model.weights import LoadedModel, ModelRequest, load
from lifedeploy.optional import versions
from lifedeploy.progress import Say, silent
from lifedeploy.records import GraphRecord, ParityRecord
from lifedeploy.schedule import Schedule
from lifedeploy.spec import GROUPS_NAME, SCORES_NAME, ModelSpec, model_name
from lifedeploy.targets.evidence import compare
from lifedeploy.targets.output import CHECKPOINT, REFERENCE, require_usable
from lifedeploy.targets.target import Target
from lifedeploy.targets.tunable import unlike_here
from lifedeploy.typed import LastBlock
from lifedeploy.writing import atomic_folder, saving

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and where to."""

    model: ModelRequest = field(default_factory=lambda: ModelRequest(backbone="deit_s"))
    graph: GraphOptions = field(default_factory=GraphOptions)
    output: Path | None = None  # None: a folder of the workspace, named after the model
    check_parity: bool = True


@dataclass(frozen=True)
class _Variant:
    """One of an export's models, with its weights."""

    method: Method
    spec: ModelSpec
    model: SlimViT  # as it was trained: the reference
    last_block: LastBlock  # of its graph

    @property
    def traced(self) -> SlimViT:
        """The model as its graph is to be."""
        return self.model.with_prefix_block() if self.last_block == "prefix" else self.model

    @property
    def schedule(self) -> Schedule:
        """Tokens per layer, as far as its graph counts them."""
        return self.spec.schedule.under(self.last_block)


@dataclass(frozen=True)
class ExportReport:
    """What was exported."""

    folder: Path
    manifests: dict[str, Manifest]  # method → manifest
    warning: str
    notes: tuple[str, ...] = ()  # about the weights' file: what was recognised, what was taken for granted

    @property
    def unlike_tuned(self) -> str:
        """What is another here than where its schedule was tuned, in a sentence; '' where nothing is."""
        tuned = next(iter(self.manifests.values())).tuned
        return unlike_here(tuned) if tuned is not None else ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        models = {method: manifest.to_dict() for method, manifest in self.manifests.items()}
        said = {"warning": self.warning, "notes": self.notes, "unlike_tuned": self.unlike_tuned}
        return {"schema": 1, "folder": str(self.folder), **said, "models": models}


def export(request: ExportRequest, workspace: Workspace, say: Say = silent) -> ExportReport:
    """Export the slimmed model, the baseline that its speed-up is over, and the bound on it.

    The folder appears under its name only when everything in it has passed.

    Raises:
        LifedeployError: the request cannot be meant, weights are missing, the graph or its answers are not right.
    """
    method = methods.get(request.model.method, methods.SLIMMED)
    options = replace(request.graph, ordering=request.graph.ordering or method.orderings[0])
    method.require_ordering(options.ordering)
    if options.with_life and not method.predicts_lives:
        raise UsageError(f"{method.name} predicts no lives, so its graph can give none", hint="without --with-life")
    if request.check_parity:
        _require_onnxruntime()
    # Known before any weight is made, read or fetched.
    exporter.require_one_file(backbones.weight_bytes(request.model.backbone, num_classes=request.model.num_classes))
    if request.output is not None:
        require_usable(request.output)
    tuned = request.model.tuned
    if tuned is not None:
        size = request.model.image_size or tuned.image_size  # else the weights' own, which is not known yet
        tuned.require_of(backbones.timm_name(request.model.backbone), size, request.model.method)
    say("loading the model")
    loaded = load(request.model, workspace, ordering=options.ordering)
    spec, cost = loaded.spec, loaded.model.adapted.cost(loaded.spec.image_size)
    obstacle = loaded.model.adapted.no_prefix_block
    variants = _variants(loaded, obstacle, options)
    of_dense = last_block_of(methods.baseline(), spec.backbone, obstacle, options.last_block)
    macs(spec, cost)  # refused before anything is written
    height, width = spec.image_size
    if (request.graph.batch_size or 1) * height * width > MOST_BATCH_PIXELS:
        raise UsageError(
            f"batch {request.graph.batch_size:,} of {height}x{width} px is not allowed; expected at most "
            f"{MOST_BATCH_PIXELS // (height * width):,} images of that size"
        )
    folder = request.output or workspace.root / _name(spec, request, variants[method.name].last_block, obstacle)
    require_usable(folder)

    with atomic_folder(folder) as staging:
        samples = parity_samples(spec.preprocess, request.graph.batch_size)
        inputs = [
            model_input(sample.pixels, spec.preprocess, in_graph=request.graph.with_preprocess) for sample in samples
        ]
        say("asking PyTorch")
        answers = {name: _torch_answers(variant, samples) for name, variant in variants.items()}
        with saving(staging / REFERENCE):
            parity.record(staging / REFERENCE, answers, inputs)
        checkpoint.save(staging / CHECKPOINT, loaded.model, spec)

        say("tracing")
        _write_graphs(staging, variants, cost, options)
        sorts = {name: variant.traced.reducer.sorts for name, variant in variants.items()}
        for variant in variants.values():
            del variant.model.backbone  # the gate needs the memory more than we need the weights
        gc.collect()

        manifests = {}
        for name, variant in variants.items():
            path = staging / f"{variant.method.stem}.onnx"
            say(f"checking {path.name}")
            graph = inspect.load(path)
            facts = inspect.facts(graph)
            inspect.check_structure(facts, sorts=sorts[name], batch_size=options.batch_size)
            kept = KeptTokens.of(variant.schedule, inspect.kept_layers(graph), parks=variant.method.parks)
            target = Target(
                name=folder.name,
                path=path,
                engine=OnnxRuntime,
                precision="fp32",
                method=name,
                spec=variant.spec,
                takes_pixels=options.with_preprocess,
                kept=kept,
            )
            evidence = _gate(target, answers[name], inputs, samples) if request.check_parity else None
            manifests[name] = Manifest(
                kind="model",
                file=path.name,
                sha256=sha256(path),
                spec=variant.spec,
                graph=GraphRecord(
                    form=options.ordering,
                    batch_size=options.batch_size,
                    with_life=options.with_life,
                    with_preprocess=options.with_preprocess,
                    opset=facts.opset,
                    operators=facts.operators,
                    kept=tuple(kept.names),
                    scores=inspect.names_tensor(graph, SCORES_NAME),
                    parks=variant.method.parks,
                    groups=inspect.names_tensor(graph, GROUPS_NAME),
                    last_block=variant.last_block,
                ),
                inputs=facts.inputs,
                outputs=facts.outputs,
                macs=macs(variant.spec, cost, variant.last_block, of_dense),
                parity=evidence,
                reference=REFERENCE,
                checkpoint=CHECKPOINT,
                tuned=tuned.tuned_for if tuned is not None else None,
                siblings={other: f"{variant.method.stem}.json" for other, variant in variants.items()},
                versions=versions(),
            )
            manifests[name].write(path.with_suffix(".json"))
    return ExportReport(folder, manifests, loaded.warning, loaded.notes)


def _name(spec: ModelSpec, request: ExportRequest, last_block: LastBlock, obstacle: str) -> str:
    graph, method = request.graph, methods.get(spec.method)
    asked = request.model.image_size
    if asked is None and spec.image_size != backbones.native_image_size(spec.timm_name):
        asked = spec.image_size  # the weights' own, which is not the backbone's
    name = model_name(
        spec.backbone,
        method,
        spec.schedule,
        options=spec.options,
        ordering=graph.ordering,
        image_size=asked,
        batch_size=graph.batch_size,
    )
    if last_block != last_block_of(method, spec.backbone, obstacle):
        name += f"-{last_block}-block"
    return name + ("-uint8" if graph.with_preprocess else "") + ("-with-life" if graph.with_life else "")


def _variants(loaded: LoadedModel, obstacle: str, options: GraphOptions) -> dict[str, _Variant]:
    """What the export holds, the slimmed model first.

    Raises:
        UnsupportedModelError: a last block of prefix tokens alone is asked for, and they are not enough.
    """
    slimmed = methods.get(loaded.spec.method)
    variants = {}
    for method in methods.variants(slimmed):
        spec = loaded.spec.under(method.name)
        model = loaded.model if spec is loaded.spec else build_model(loaded.model.backbone, spec)
        # A bound does what the method does that it is a bound of; the baseline is as fast as it can be.
        like = slimmed if method.role == methods.BOUND else method
        last_block = last_block_of(like, loaded.spec.backbone, obstacle, options.last_block)
        variants[method.name] = _Variant(method, spec, model, last_block)
    return variants


def _write_graphs(folder: Path, variants: Mapping[str, _Variant], cost: Cost, options: GraphOptions) -> None:
    """The graphs of all variants; those of baseline and bound out of the slimmed model's, where that is possible."""
    first, *others = variants.values()
    graphs = {first.method.name: _traced(first, options)}
    for variant in others:
        # Before the first is saved, since saving renames the nodes that others are made of.
        graphs[variant.method.name] = (
            exporter.derive(graphs[first.method.name], first.spec, variant.method)
            if first.method.derives and variant.last_block == first.last_block
            else _traced(variant, options)
        )
    for name, graph in graphs.items():
        variant = variants[name]
        facts = metadata(variant.spec, cost, options, variant.last_block)
        exporter.save(graph, folder / f"{variant.method.stem}.onnx", metadata=facts)


def _traced(variant: _Variant, options: GraphOptions) -> ir.Model:
    model = variant.traced
    graph = exporter.trace(model, variant.spec, options)
    if model is not variant.model:
        del model.backbone  # torch remembers what it traced, and the gate needs the memory
    return graph


def _torch_answers(variant: _Variant, samples: Sequence[Sample]) -> list[parity.Answer]:
    """What PyTorch says: always on normalised images, whatever the graph takes."""
    # What leaves in the last block is read by nobody behind it.
    kept = KeptTokens.of_method(variant.schedule, variant.method.selection, parks=variant.method.parks)

    def run(images: Array) -> parity.Answer:
        with torch.inference_mode(), variant.method.blamed("its reducer"):
            output = variant.model(torch.from_numpy(images))
        told = {kept_name(layer): positions.numpy() for layer, positions in output.kept.items()}
        return parity.Answer(output.logits.numpy(), kept.whole(told) if kept else None)

    return [run(normalise(sample.pixels, variant.spec.preprocess)) for sample in samples]


def _gate(
    target: Target, reference: Sequence[parity.Answer], inputs: Sequence[Array], samples: Sequence[Sample]
) -> ParityRecord:
    """ONNX Runtime against PyTorch.

    Raises:
        ParityError: they do not agree.
    """
    evidence = compare(target, samples, inputs, reference).parity
    evidence.require(f"{target.path.name} in ONNX Runtime")
    return evidence


def _require_onnxruntime() -> None:
    availability = OnnxRuntime.availability()
    if not availability.ok:
        raise EngineUnavailableError(
            f"the parity gate needs ONNX Runtime: {availability.reason}",
            hint="pip install 'lifedeploy[cpu]' or 'lifedeploy[gpu]', or export with --no-parity",
        )
