"""An export's models: the slimmed one and what it is compared with, as exported or as calibrated."""

from __future__ import annotations

from lifedeploy.artifact import Artifact
from lifedeploy.errors import ArtifactError
from lifedeploy.spec import QUANTIZED


def members_of(export: Artifact, precision: str = "fp32") -> dict[str, Artifact]:
    """Method → artifact; for a precision that needs calibration, the calibrated graphs.

    Raises:
        ArtifactError: it is not calibrated for that precision, or was before it was exported anew.
    """
    members = {export.method: export}
    for method in export.manifest.siblings:
        sibling = export.sibling(method)
        if sibling is not None:
            members[method] = sibling
    if precision not in QUANTIZED:
        return members
    return {method: _calibrated(member, precision) for method, member in members.items()}


def _calibrated(member: Artifact, precision: str) -> Artifact:
    path = member.folder / precision / member.manifest_path.name
    command = f"lifedeploy calibrate {member.folder} --{precision} --data DIR"
    if not path.is_file():
        raise ArtifactError(f"{member.path} is not calibrated for {precision.upper()}", hint=command)
    found = Artifact.read(path)
    if found.manifest.kind != "calibrated" or found.method != member.method:
        raise ArtifactError(f"{path} is no calibrated graph of {member.method}", hint=command)
    if found.manifest.quantization.get("source_sha256") != member.manifest.sha256:
        raise ArtifactError(f"{path} was calibrated for another {member.path.name} than is there now", hint=command)
    return found
