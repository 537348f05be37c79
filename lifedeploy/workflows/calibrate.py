"""``calibrate``: an exported model and images in; its quantised graphs, and what that cost, out."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Manifest, Workspace
from lifedeploy.calibration import compare, policy, sensitivity
from lifedeploy.calibration.batches import Draw, ImageBatches, draw
from lifedeploy.calibration.collect import Count
from lifedeploy.calibration.compare import Check
from lifedeploy.calibration.outcome import PLOT, REPORT, CalibrateReport, warnings_of
from lifedeploy.calibration.quantize import SMOOTHING_IMAGES, Prepared, Recipe, Source, prepare, write
from lifedeploy.calibration.report import GraphReport
from lifedeploy.data.sets import ImageSet
from lifedeploy.data.unlabelled import read_unlabelled
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, DataError, UsageError
from lifedeploy.evaluation import parity
from lifedeploy.evaluation.accuracy import ClassMap, map_classes
from lifedeploy.files import finite, now, sha256, write_json
from lifedeploy.limits import MOST_IMAGES, MOST_IN_BATCH, require_within
from lifedeploy.optional import installed, versions
from lifedeploy.progress import Progress, Say, Step, silent, unwatched
from lifedeploy.records import QuantizationRecord
from lifedeploy.spec import ModelSpec
from lifedeploy.targets import literal
from lifedeploy.targets.evidence import samples_of
from lifedeploy.targets.find import export_of, graphs_of
from lifedeploy.targets.output import REFERENCE
from lifedeploy.text import quoted
from lifedeploy.typed import RANDOM_WEIGHTS
from lifedeploy.writing import atomic_folder, in_use, require_folder, saving, scratch_folder


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """What to calibrate, how, and on which images."""

    model: Path | None = None  # None: the newest export
    data: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    split: str = ""  # '': the training half, where there is one
    images: int = 512
    check_images: int = 64  # held against the float graph: others than those, if there are enough
    seed: int = 0
    batch: int = 8
    max_drop: float | None = None  # points of top-1; worst layers stay in floating point until it is kept
    force: bool = False
    cache: Path | None = None  # of statistics; None: the user's

    def __post_init__(self) -> None:
        require_within(self.images, MOST_IMAGES, "images")
        require_within(self.check_images, MOST_IMAGES, "images to check on")
        require_within(self.batch, MOST_IN_BATCH, "images per batch")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {quoted(self.seed)} is not allowed: it must be at least 0, and below 2^32")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"a drop of {self.max_drop:g} points is not allowed: it must be at least 0, at most 100")


def calibrate(
    request: CalibrateRequest,
    workspace: Workspace,
    say: Say = silent,
    progress: Progress = unwatched,
) -> CalibrateReport:
    """Quantise the slimmed model, its baseline and its bound into a folder of the export.

    Raises:
        ArtifactError: no model, or its files are not those of its manifest.
        DataError, ImageError: no images, or one that cannot be read.
        UsageError, ExportError: nothing of the model would be quantised.
        ParityError: ``max_drop`` cannot be kept.
    """
    with in_use(export_of(request.model, workspace).folder):
        return _calibrate(request, workspace, say, progress)


def _calibrate(request: CalibrateRequest, workspace: Workspace, say: Say, progress: Progress) -> CalibrateReport:
    export = export_of(request.model, workspace)
    folder = export.folder / request.recipe.precision
    require_folder(folder, replaced=True)
    graphs = graphs_of(export)
    for graph in graphs.values():
        registry.verify(graph)
    say(f"listing {request.data}")
    images = read_unlabelled(request.data, split=request.split)
    drawn = draw(images, request.images, request.check_images, request.seed)
    batches, check_batches = (_batches(chosen, export, request.batch) for chosen in (drawn.calibration, drawn.check))
    say(f"reading {len(batches)} images")
    data_digest, check_digest = batches.digest(), check_batches.digest()
    settings = _settings(request, images, drawn, data_digest, check_digest)
    left_out = tuple(map(str, images.left_out))
    known = None if request.force else _unchanged(folder, graphs, settings)
    if known:  # of the same images; what else lies beside them may have changed
        return replace(known, policy=tuple(_policy(request.recipe, export)), left_out=left_out)

    class_map = _classes(drawn.check, export.manifest.spec)  # the same for all graphs
    total = len(graphs) * (min(len(batches), SMOOTHING_IMAGES) + len(batches) + 3 * len(check_batches))
    seen = 0

    def count(done: int) -> None:
        nonlocal seen
        seen = min(seen + done, total)
        progress(Step("calibrating", seen / total, f"{seen:,} of {total:,} images"))

    reports: dict[str, GraphReport] = {}
    cached = True
    with atomic_folder(folder) as staging, scratch_folder("calibration") as work:
        answers: dict[str, list[parity.Answer]] = {}
        for method, graph in graphs.items():
            stem = graph.manifest_path.stem
            say(f"calibrating {stem}")
            source = Source(graph.path, graph.manifest.sha256, data_digest, request.cache)
            prepared = prepare(source, request.recipe, batches, work, count)
            cached = cached and prepared.cached
            say(f"checking {stem}")
            kept = graph.manifest.kept
            ask = partial(literal.ask, kept)
            check = Check(
                float_graph=graph.path,
                batches=check_batches,
                method=method,
                ask=ask,
                answers=ask(graph.path, check_batches, count),
                labels=class_map.indices[drawn.check.targets] if class_map else None,
            )
            path = staging / f"{stem}.onnx"
            reports[method] = _quantized(prepared, check, path, work, request, say, count)
            _, inputs = samples_of(graph)
            with literal.literal(path, kept, "drops") as session:  # what engines built of it are held against
                answers[method] = [session.answer(images) for images in inputs]
            prepared.graph.unlink()
        with saving(staging / REFERENCE):
            parity.record(staging / REFERENCE, answers, inputs)
        warnings = [class_map.warning] if class_map and class_map.warning else []
        report = CalibrateReport(
            folder=folder,
            settings=settings,
            policy=tuple(_policy(request.recipe, graphs[export.method])),
            members=reports,
            warnings=(
                *warnings,
                *warnings_of(
                    drawn,
                    reports,
                    images=request.images,
                    check_images=request.check_images,
                    max_drop=request.max_drop,
                ),
            ),
            created=now(),
            cached=cached,
            left_out=left_out,
        )
        for method, graph in graphs.items():
            _manifest(graph, reports[method], report, staging).write(staging / graph.manifest_path.name)
        about_the_run = ("cached", "reused")  # not about what it made, which is the same the next time
        write_json(
            staging / REPORT, {key: value for key, value in report.to_dict().items() if key not in about_the_run}
        )
        if installed("matplotlib"):  # the report has all that is in the picture
            say("drawing")
            from lifedeploy.viz.calibration import plot_calibration

            with saving(staging / PLOT):
                plot_calibration(report.members, staging / PLOT, precision=request.recipe.precision)
    return report


def show_policy(request: CalibrateRequest, workspace: Workspace) -> list[dict[str, Any]]:
    """Which products are quantised, and why; with their number in a model where there is one."""
    model = None
    if request.model is not None or workspace.exports():
        model = export_of(request.model, workspace)
    return _policy(request.recipe, model)


def _policy(recipe: Recipe, model: Artifact | None) -> list[dict[str, Any]]:
    products = policy.products_in(model.path) if model is not None else ()
    return policy.as_rows(recipe.precision, recipe.quantized_parts, products)


def _batches(images: ImageSet, export: Artifact, batch: int) -> ImageBatches:
    manifest = export.manifest
    fixed = manifest.graph.batch_size
    in_graph = manifest.graph.with_preprocess
    return ImageBatches(
        images=images,
        preprocess=manifest.spec.preprocess,
        in_graph=in_graph,
        batch=fixed or batch,
        fixed=fixed is not None,
    )


def _settings(
    request: CalibrateRequest, images: ImageSet, drawn: Draw, data_digest: str, check_digest: str
) -> dict[str, Any]:
    classes = [drawn.check.classes[target] if drawn.check.classes else "" for target in drawn.check.targets]
    # Manifests call the ranges' estimate its method.
    recipe = {"method" if name == "ranges" else name: value for name, value in asdict(request.recipe).items()}
    return recipe | {
        "parts": list(request.recipe.quantized_parts),
        "keep": list(request.recipe.keep),
        "max_drop": request.max_drop,
        "data": {
            "source": images.source,
            "split": request.split,
            "images": len(drawn.calibration),
            "of": len(images),
            "seed": request.seed,
            "sha256": data_digest,
            "check_images": len(drawn.check),
            "check_apart": not drawn.shared,
            "check_sha256": check_digest,
            "check_classes_sha256": hashlib.sha256(os.fsencode("\n".join(classes))).hexdigest(),
        },
    }


def _classes(images: ImageSet, spec: ModelSpec) -> ClassMap | None:
    """Where the images' classes are among the model's, if they have classes that it knows."""
    if not images.classes or spec.num_classes < 2 or spec.provenance.weights == RANDOM_WEIGHTS:
        return None
    try:
        return map_classes(images.classes, spec.classes, spec.num_classes, source=images.source, model="the model")
    except DataError:
        return None  # of other classes: only agreement with the float graph can be told


def _quantized(
    prepared: Prepared,
    check: Check,
    path: Path,
    work: Path,
    request: CalibrateRequest,
    say: Say,
    count: Count,
) -> GraphReport:
    """Write the quantised graph; with ``max_drop``, with as many layers in floating point as that takes.

    The bound on speed is no model to use: it gets what its schedule gets, whatever its accuracy.
    """
    write(prepared, path)
    report = compare.report(prepared, path, check, count=count)
    bound = methods.role_of(check.method) == methods.BOUND
    if request.max_drop is None or report.drop <= request.max_drop or bound:
        return report
    say(f"top-1 drops by {report.drop:.2f} points: looking for the layers that cause it")
    return sensitivity.restore(prepared, check, path, work, request.max_drop, say)


def _manifest(graph: Artifact, report: GraphReport, whole: CalibrateReport, staging: Path) -> Manifest:
    manifest = graph.manifest
    layers = [
        {"name": layer.name, "sqnr_db": layer.sqnr_db, "tensors": [asdict(tensor) for tensor in layer.tensors]}
        for layer in report.layers
    ]
    facts = {**whole.settings, "source_sha256": manifest.sha256, **report.summary(), "report": REPORT, "layers": layers}
    return replace(
        manifest,
        kind="calibrated",
        sha256=sha256(staging / manifest.file),
        parity=None,
        reference=REFERENCE,
        checkpoint=f"../{manifest.checkpoint}" if manifest.checkpoint else "",
        quantization=QuantizationRecord.read(facts, f"the calibration of {manifest.file}"),
        versions=versions(),
        created=whole.created,
    )


def _unchanged(folder: Path, graphs: dict[str, Artifact], settings: dict[str, Any]) -> CalibrateReport | None:
    """The calibration in ``folder``, if it is of the same files with the same settings by the same version."""
    wanted = finite(settings)  # as JSON has them
    try:
        _, inputs = samples_of(next(iter(graphs.values())))  # the same for all graphs
        for method, graph in graphs.items():
            known = Artifact.read(folder / graph.manifest_path.name)
            registry.verify(known)
            parity.recorded(folder / REFERENCE, method, inputs)
            written = known.manifest.quantization.to_dict()
            same_version = known.manifest.versions.get("lifedeploy") == versions().get("lifedeploy")
            if written.get("source_sha256") != graph.manifest.sha256 or not same_version:
                return None
            if any(written.get(name) != value for name, value in wanted.items()):
                return None
        report = CalibrateReport.read(folder)
        if report.settings != wanted or set(report.members) != set(graphs):
            return None
        return report
    except (ArtifactError, UsageError, OSError):
        return None  # not there, or damaged: calibrate again
