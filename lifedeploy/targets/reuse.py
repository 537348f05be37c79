"""An export that is what exporting would make now, so that it need not be made again."""

from __future__ import annotations

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError, WeightsError
from lifedeploy.files import sha256
from lifedeploy.last_block import last_block_of
from lifedeploy.manifest import Manifest
from lifedeploy.method import Method
from lifedeploy.model import backbones
from lifedeploy.model.weights import ModelRequest, source_of
from lifedeploy.optional import versions
from lifedeploy.reading import require_regular
from lifedeploy.spec import ModelSpec


def exported_as(wanted: ModelRequest, workspace: Workspace) -> Artifact | None:
    """The newest export of the workspace that is what exporting ``wanted`` would make, proven and undamaged.

    Raises:
        WeightsError: its weights are a file that cannot be read.
    """
    for known in exports_like(wanted, workspace):
        if not _has_weights(known, weights_of(wanted, workspace)):
            continue
        try:
            registry.verify(known)
        except ArtifactError:  # damaged, or somebody else's file by now
            continue
        return known
    return None


def exports_like(wanted: ModelRequest, workspace: Workspace) -> list[Artifact]:
    """Exports of what is asked for, in the method's usual graph, whatever their weights; newest first."""
    return [
        known
        for known in workspace.exports()
        if _is_of(known.manifest.spec, wanted) and _is_usual(known.manifest, methods.get(wanted.method))
    ]


def weights_of(wanted: ModelRequest, workspace: Workspace) -> str:
    """Which weights exporting would take: ``pretrained``, ``random``, or the SHA-256 of a file.

    Raises:
        WeightsError: there is no such file.
    """
    source = source_of(wanted, workspace)
    if isinstance(source, str):
        return source
    require_regular(source, WeightsError)
    return sha256(source)


def _has_weights(known: Artifact, weights: str) -> bool:
    provenance = known.manifest.spec.provenance
    return weights in (provenance.sha256, provenance.weights)


def _is_usual(manifest: Manifest, method: Method) -> bool:
    """Whether an export is of this version, was proven, and has the graph that is exported unless told otherwise."""
    graph, parity = manifest.graph, manifest.parity
    return (
        (graph.form, graph.batch_size) == (method.orderings[0], None)
        and graph.last_block == _usual_last_block(manifest.spec, method)
        and not (graph.with_life or graph.with_preprocess)
        and parity is not None
        and parity.passed
        and manifest.versions.get("lifedeploy") == versions().get("lifedeploy")
    )


def _usual_last_block(spec: ModelSpec, method: Method) -> str:
    """What the last block of an export computes unless told otherwise."""
    return last_block_of(method, spec.backbone, backbones.sized(spec.timm_name).no_prefix_block)


def _is_of(spec: ModelSpec, wanted: ModelRequest) -> bool:
    """Whether it is the backbone, method, schedule, options, input and head asked for."""
    if spec.method != wanted.method or spec.timm_name != backbones.timm_name(wanted.backbone):
        return False
    options = wanted.all_options()
    decisive = methods.get(wanted.method).option_fields(training=False)
    # Weights that somebody trained have an image size and a head of their own; others have the backbone's.
    trained = spec.provenance.weights in ("trained", "file")
    size = wanted.image_size or (spec.image_size if trained else backbones.native_image_size(spec.timm_name))
    usual_classes = spec.num_classes if trained else backbones.native_classes(spec.timm_name)
    return (
        all(spec.options.get(name) == options[name] for name in decisive)
        and spec.image_size == size
        and spec.num_classes == (usual_classes if wanted.num_classes is None else wanted.num_classes)
        and spec.schedule == wanted.schedule(spec.schedule.patches, spec.schedule.depth, options=options)
    )
