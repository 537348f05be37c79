"""A model as a server is to have it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lifedeploy.artifact import Artifact, TensorSpec
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.serving.plan import USUAL_MAX_BATCH, Plan
from lifedeploy.targets.target import Target
from lifedeploy.text import quoted

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
)  # what folders, URLs and servers all take; other names are made of it


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as a server is to have it."""

    name: str
    target: Target
    artifact: Artifact  # the target's
    plan: Plan
    top: int = 0  # classes to name for each image; 0: none

    @property
    def input(self) -> TensorSpec:
        """The tensor that its images go in by."""
        return self.artifact.manifest.inputs[0]

    @property
    def logits(self) -> TensorSpec:
        """The tensor of its answers, the first of its outputs by contract."""
        return self.artifact.manifest.outputs[0]

    @property
    def smallest_batch(self) -> int:
        """Images that the engine has to be given at least."""
        return smallest_batch(self.artifact)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives; its kept tokens too, where asking for them leaves the engine as it is."""
        given = self.artifact.manifest.outputs
        if self.target.engine.taps_change_plan:
            return given
        kept = self.target.kept
        told = {spec.name for spec in given}
        counts = {name: kept.counts[layer] for layer, name in kept.names.items() if name not in told}
        return (*given, *(TensorSpec(name, "int64", (None, count)) for name, count in counts.items()))


def name_of(artifact: Artifact, name: str = "") -> str:
    """What the server calls a model: ``name``, or backbone and method.

    Raises:
        UsageError: no server takes that name.
    """
    spec = artifact.manifest.spec
    chosen = name or re.sub(r"[^A-Za-z0-9_.-]", "_", f"{spec.backbone}_{spec.method}")
    if not _NAME.fullmatch(chosen):
        raise UsageError(
            f"{quoted(chosen)} is no name that a server takes: expected at most 100 letters, digits, '_', '-' and '.', "
            "a letter or digit first",
            hint="--name gives another one",
        )
    return chosen


def require_servable(target: Target) -> None:
    """Make sure that an engine runs where a model server does.

    Raises:
        UsageError: it needs PyTorch.
    """
    if target.engine.extra == "export":
        raise UsageError(
            f"engine {target.engine.name} needs PyTorch, which no server of ours has",
            hint="package an engine of ONNX Runtime, OpenVINO or TensorRT",
        )


def largest_batch(artifact: Artifact, asked: int | None) -> int:
    """Images that a request may have at most: as many as asked for, as the profile of an engine or its batch allows.

    Raises:
        UsageError: more than the engine takes were asked for.
        ArtifactError: it has no input to ask.
    """
    manifest = artifact.manifest
    if not manifest.inputs or not manifest.outputs:
        raise ArtifactError(f"{artifact.manifest_path} tells no inputs and outputs", hint="export or build it again")
    shapes = _profile(artifact)
    built = shapes[-1][0] if shapes else manifest.graph.batch_size
    if asked is not None and built is not None and asked > built:
        raise UsageError(f"--max-batch {asked} is more than the {built} images that {artifact.path} was built for")
    return asked or built or USUAL_MAX_BATCH


def smallest_batch(artifact: Artifact) -> int:
    """Images that the engine has to be given at least: the smallest of its profile."""
    shapes = _profile(artifact)
    return shapes[0][0] if shapes else 1


def _profile(artifact: Artifact) -> tuple[tuple[int, ...], ...]:
    """The smallest, usual and largest shape of the images that an engine was built for; none: it was built for any."""
    manifest = artifact.manifest
    shapes = manifest.engine.details.profile.get(manifest.inputs[0].name, ()) if manifest.engine else ()
    return shapes if all(shapes) else ()
