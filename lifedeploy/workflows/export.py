"""``export``: a backbone and a schedule in; checked ONNX graphs, a checkpoint and their manifests out."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lifedeploy.artifact import Artifact, Manifest, Workspace
from lifedeploy.data.preprocess import model_input
from lifedeploy.data.samples import Sample, parity_samples
from lifedeploy.engines.base import EngineOptions
from lifedeploy.engines.lanes import Array
from lifedeploy.engines.onnxruntime import OnnxRuntime
from lifedeploy.errors import ArtifactError, EngineUnavailableError, UsageError
from lifedeploy.evaluation import parity
from lifedeploy.exporters import inspect
from lifedeploy.exporters import onnx as exporter
from lifedeploy.exporters.onnx import GraphOptions
from lifedeploy.files import sha256
from lifedeploy.manifest import LARGEST_BATCH
from lifedeploy.model import backbones, checkpoint
from lifedeploy.model.vit import build_model, count_cost
from lifedeploy.model.weights import LoadedModel, ModelRequest, load
from lifedeploy.optional import versions
from lifedeploy.records import GraphRecord, MacsRecord
from lifedeploy.schedule import Cost
from lifedeploy.spec import ModelSpec, model_name
from lifedeploy.temporary import is_temporary, sweep
from lifedeploy.text import shortened
from lifedeploy.typed import described
from lifedeploy.workflows.progress import Say, silent
from lifedeploy.writing import atomic_folder, require_folder, saving

CHECKPOINT = "weights.safetensors"
REFERENCE = "reference.npz"
# The slimmed model, the baseline its speed-up is over, and the bound on it: method → file name.
FILES = {"life": "model", "dense": "dense", "first-k": "first-k"}


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and where to."""

    model: ModelRequest = field(default_factory=lambda: ModelRequest("deit_s"))
    graph: GraphOptions = field(default_factory=GraphOptions)
    output: Path | None = None  # None: a folder of the workspace, named after the model
    check_parity: bool = True


@dataclass(frozen=True)
class ExportReport:
    """What was exported."""

    folder: Path
    manifests: dict[str, Manifest]  # method → manifest
    warning: str
    notes: tuple[str, ...] = ()  # about the weights' file: what was recognised, what was taken for granted

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        members = {method: manifest.to_dict() for method, manifest in self.manifests.items()}
        said = {"warning": self.warning, "notes": self.notes}
        return {"schema": 1, "folder": str(self.folder), **said, "models": members}


def export(request: ExportRequest, workspace: Workspace, say: Say = silent) -> ExportReport:
    """Export the slimmed model, its dense baseline and its first-k bound.

    The folder appears under its name only when everything in it has passed.

    Raises:
        LifedeployError: the request cannot be meant, weights are missing, the graph or its answers are not right.
    """
    if request.check_parity:
        _require_onnxruntime()
    # Known before any weight is made, read or fetched.
    exporter.require_one_file(backbones.weight_bytes(request.model.backbone, num_classes=request.model.num_classes))
    if request.output is not None:
        _require_usable(request.output)
    say("loading the model")
    loaded = load(request.model, workspace, graph=request.graph.form)
    spec, cost = loaded.spec, count_cost(loaded.model.backbone, loaded.spec.image_size)
    height, width = spec.image_size
    if (request.graph.batch_size or 1) * height * width > LARGEST_BATCH:
        raise UsageError(
            f"batch {request.graph.batch_size:,} of {height}x{width} px is not allowed; expected at most "
            f"{LARGEST_BATCH // (height * width):,} images of that size"
        )
    folder = request.output or workspace.root / _name(spec, request)
    _require_usable(folder)

    with atomic_folder(folder) as staging:
        samples = parity_samples(spec.preprocess, request.graph.batch_size)
        inputs = [
            model_input(sample.pixels, spec.preprocess, in_graph=request.graph.with_preprocess) for sample in samples
        ]
        say("asking PyTorch")
        answers = {method: _torch_answers(loaded, method, samples) for method in FILES}
        with saving(staging / REFERENCE):
            parity.record(staging / REFERENCE, answers, inputs)
        checkpoint.save(staging / CHECKPOINT, loaded.model, spec)

        say("tracing")
        _write_graphs(staging, loaded, cost, request.graph)
        del loaded.model.backbone  # the gate needs the memory more than we need the weights
        gc.collect()

        manifests = {}
        for method, stem in FILES.items():
            say(f"checking {stem}.onnx")
            member = replace(spec, method=method)
            path = staging / f"{stem}.onnx"
            facts = inspect.facts(inspect.load(path))
            inspect.check_form(
                facts,
                form=request.graph.form,
                drops=_drops(member) if method == "life" else (),
                batch_size=request.graph.batch_size,
            )
            evidence = _gate(path, member, answers[method], inputs, samples) if request.check_parity else None
            manifests[method] = Manifest(
                kind="model",
                file=path.name,
                sha256=sha256(path),
                spec=member,
                graph=described(
                    asdict(request.graph) | {"opset": facts.opset, "operators": facts.operators}, GraphRecord, path.name
                ),
                inputs=facts.inputs,
                outputs=facts.outputs,
                macs=macs(member, cost),
                parity=evidence.to_dict() if evidence else None,
                reference=REFERENCE,
                checkpoint=CHECKPOINT,
                siblings={other: f"{name}.json" for other, name in FILES.items()},
                versions=versions(),
            )
            manifests[method].write(staging / f"{stem}.json")
    return ExportReport(folder, manifests, loaded.warning, loaded.notes)


def _require_usable(folder: Path) -> None:
    """Found out before the work that is for nothing otherwise.

    Raises:
        UsageError: nothing can be written there, or what is there would be lost.
    """
    require_folder(folder, replaced=True)
    _require_replaceable(folder)


# What builds and calibrations left that version 0.1 had begun and somebody ended: ``.openvino-fp32.1a2b3c4d``.
_HALF_BUILT = re.compile(r"\.([a-z-]+-(fp32|fp16|bf16|int8|fp8)|int8|fp8)(\.old)?\.[a-z0-9_]{8}")


def _require_replaceable(folder: Path) -> None:
    """An export takes the place of what was in its folder: that may be nothing, or an export with its engines.

    Raises:
        UsageError: anything else is in it, and would be lost.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or Path.cwd().is_relative_to(folder.resolve()):
        what = "the current folder or above it" if folder.is_dir() else "a file"
        raise UsageError(f"{folder} cannot be written to: it is {what}")
    ours = {CHECKPOINT, REFERENCE, *(f"{stem}.{ending}" for stem in FILES.values() for ending in ("onnx", "json"))}
    sweep(folder)
    foreign = [
        path.name
        for path in folder.iterdir()
        if path.name not in ours
        and not is_temporary(path.name)
        and not _HALF_BUILT.fullmatch(path.name)
        and not _is_made_of_one(path)
    ]
    if foreign:
        name = shortened(min(foreign))
        raise UsageError(f"{folder}/ holds {name}, which no export made and which would be lost", hint="-o DIR")


def _is_made_of_one(folder: Path) -> bool:
    """Whether a folder holds what was made of an export: an engine, or a calibrated graph."""
    try:
        return Artifact.read(folder / "model.json").manifest.kind != "model"
    except (ArtifactError, OSError):
        return False


def macs(spec: ModelSpec, cost: Cost) -> MacsRecord:
    """Work per image, for the manifest."""
    schedule = spec.schedule
    if spec.method == "dense":
        schedule = replace(schedule, tokens=(schedule.patches,) * schedule.depth)
    predicts = spec.method == "life" and bool(spec.schedule.drop_layers)
    return {
        "total": cost.total(schedule, predictor=predicts),
        "dense": cost.total(replace(schedule, tokens=(schedule.patches,) * schedule.depth)),
        "per_layer": list(cost.per_layer(schedule)),
        "embed": cost.embed,
        "predictor": cost.predictor(schedule) if predicts else 0,
        "head": cost.head,
        "speedup_bound": cost.speedup_bound(schedule, predictor=predicts),
    }


def _name(spec: ModelSpec, request: ExportRequest) -> str:
    graph = request.graph
    asked = request.model.image_size
    if asked is None and spec.image_size != backbones.own_image_size(spec.timm_name):
        asked = spec.image_size  # the weights' own, which is not the backbone's
    name = model_name(
        spec.backbone,
        spec.method,
        spec.schedule,
        graph=graph.form,
        image_size=asked,
        batch_size=graph.batch_size,
    )
    return name + ("-uint8" if graph.with_preprocess else "") + ("-with-life" if graph.with_life else "")


def _drops(spec: ModelSpec) -> tuple[int, ...]:
    """Token counts after the drops that have a node in the graph."""
    schedule = spec.schedule
    if not schedule.prunes:
        return ()
    base = schedule.base_layer
    layers = [t for t in schedule.drop_layers if t == base or schedule.after(t) < schedule.tokens[t - 1]]
    return tuple(schedule.after(layer) for layer in layers)


def _write_graphs(folder: Path, loaded: LoadedModel, cost: Cost, options: GraphOptions) -> None:
    traced = exporter.trace(loaded.model, loaded.spec, options)
    # Derived before the first is saved, since saving renames the nodes they are found by.
    graphs = {method: exporter.derive(traced, loaded.spec, method) for method in FILES if method != loaded.spec.method}
    graphs[loaded.spec.method] = traced
    for method, graph in graphs.items():
        spec = replace(loaded.spec, method=method)
        exporter.save(graph, folder / f"{FILES[method]}.onnx", metadata=_metadata(spec, cost, options))


def _metadata(spec: ModelSpec, cost: Cost, options: GraphOptions) -> dict[str, object]:
    """What another tool may want to know, in the ONNX file itself."""
    preprocess = spec.preprocess
    return {
        "lifedeploy.version": versions(("lifedeploy",)).get("lifedeploy", ""),
        "lifedeploy.backbone": spec.timm_name,
        "lifedeploy.method": spec.method,
        "lifedeploy.graph": options.form,
        "lifedeploy.tokens": list(spec.schedule.tokens) if spec.method != "dense" else [spec.schedule.patches],
        "lifedeploy.drop_layers": list(spec.schedule.drop_layers) if spec.method != "dense" else [],
        "lifedeploy.prefix_tokens": spec.prefix_tokens,
        "lifedeploy.macs": macs(spec, cost)["total"],
        "lifedeploy.weights": spec.provenance.weights,
        "lifedeploy.predictor": spec.provenance.predictor,
        "preprocess": asdict(preprocess) | {"in_graph": options.with_preprocess, "layout": "NHWC uint8 RGB"}
        if options.with_preprocess
        else asdict(preprocess) | {"in_graph": False, "layout": "NCHW float32 RGB"},
        "classes": list(spec.classes),
    }


def _torch_answers(loaded: LoadedModel, method: str, samples: Sequence[Sample]) -> list[parity.Answer]:
    """What PyTorch says under ``method``: always on normalised images, whatever the graph takes."""
    spec = replace(loaded.spec, method=method)
    model = loaded.model if method == loaded.spec.method else build_model(loaded.model.backbone, spec)
    scored = bool(parity.taps_for(spec))

    def run(images: Array) -> parity.Answer:
        with torch.inference_mode():
            output = model(torch.from_numpy(images))
        kept = output.kept.numpy() if scored and output.kept is not None else None
        return parity.Answer(output.logits.numpy(), kept)

    return parity.ask(run, samples, spec, in_graph=False)


def _gate(
    path: Path,
    spec: ModelSpec,
    reference: Sequence[parity.Answer],
    inputs: Sequence[Array],
    samples: Sequence[Sample],
) -> parity.Parity:
    """ONNX Runtime against PyTorch.

    Raises:
        ParityError: they do not agree.
    """
    taps = parity.taps_for(spec)
    with ExitStack() as stack:
        # Logits from the file as it will be shipped; which tokens it keeps from a copy with the ranking exposed.
        engine = stack.enter_context(OnnxRuntime(path))
        probe = stack.enter_context(OnnxRuntime(path, EngineOptions(taps=taps))) if taps else None
        run = parity.asker(engine, probe, spec.schedule.tokens[-1])
        evidence = parity.compare(reference, [run(images) for images in inputs], samples, "fp32")
    evidence.require(f"{path.name} in ONNX Runtime")
    return evidence


def _require_onnxruntime() -> None:
    availability = OnnxRuntime.availability()
    if not availability.ok:
        raise EngineUnavailableError(
            f"the parity gate needs ONNX Runtime: {availability.reason}",
            hint="pip install 'lifedeploy[cpu]' or 'lifedeploy[gpu]', or export with --no-parity",
        )
