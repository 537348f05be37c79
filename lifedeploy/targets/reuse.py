"""An export that is what exporting would make now, so that it need not be made again."""

from __future__ import annotations

from pathlib import Path

from lifedeploy import methods
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.engines import registry
from lifedeploy.errors import ArtifactError
from lifedeploy.files import sha256
from lifedeploy.manifest import Manifest
from lifedeploy.model import backbones
from lifedeploy.model.weights import POLICIES, ModelRequest
from lifedeploy.optional import versions
from lifedeploy.spec import ModelSpec


def exported_as(wanted: ModelRequest, workspace: Workspace) -> Artifact | None:
    """The newest export of the workspace that is as ``wanted``, in the method's usual graph, proven and undamaged."""
    digest = sha256(Path(wanted.weights)) if wanted.weights not in POLICIES else ""
    for known in workspace.exports():
        if not _is_usual(known.manifest) or not _is_of(known.manifest.spec, wanted):
            continue
        if not _has_weights(known, wanted, digest, workspace):
            continue
        try:
            registry.verify(known)
        except ArtifactError:  # damaged, or somebody else's file by now
            continue
        return known
    return None


def _is_usual(manifest: Manifest) -> bool:
    """Whether an export is of this version, was proven, and has the graph that is exported unless told otherwise."""
    graph, parity = manifest.graph, manifest.parity
    method = methods.get(manifest.spec.method) if manifest.spec.method in methods.names() else None
    return (
        method is not None
        and (graph.form, graph.batch_size) == (method.orderings[0], None)
        and not (graph.with_life or graph.with_preprocess)
        and parity is not None
        and parity.passed
        and manifest.versions.get("lifedeploy") == versions().get("lifedeploy")
    )


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


def _has_weights(known: Artifact, wanted: ModelRequest, digest: str, workspace: Workspace) -> bool:
    """Whether exporting would find the weights that an export has; ``digest`` is that of a file asked for."""
    given = known.manifest.spec.provenance
    if digest:
        return given.sha256 == digest
    if wanted.weights != "auto":
        return given.weights == wanted.weights
    # Of what was trained since then, exporting would take the newest.
    written = known.manifest_path.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written for path in workspace.checkpoints())
