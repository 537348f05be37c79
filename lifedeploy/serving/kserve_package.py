"""A package for KServe: the engine, and an InferenceService whose container runs :mod:`lifedeploy.serving.kserve`.

https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/custom-predictor/custom-predictor
"""

from __future__ import annotations

import re
from pathlib import Path

from lifedeploy import __version__
from lifedeploy.artifact import Artifact
from lifedeploy.engines.device import DeviceEngine
from lifedeploy.errors import ArtifactError, UsageError
from lifedeploy.files import compact_json, write_text
from lifedeploy.serving import record as records
from lifedeploy.serving.served import Served
from lifedeploy.serving.triton import copy
from lifedeploy.targets.find import ModelFile
from lifedeploy.targets.target import target_of
from lifedeploy.text import printable

MODEL = "model"  # the folder of the engine in a package
_MOUNT = "/mnt/models"  # where KServe puts what STORAGE_URI names
_GIB = 1024**3
_LONGEST_LABEL = 53  # characters: KServe makes longer names of a service's
_SERVICE = """\
# {what}
#
# To fill in:
# - image: a container image of yours with Python, lifedeploy {version} and what lies in [kserve] of its extras, and the
#   runtime of the engine ({needs}). The one that `lifedeploy package --for docker` describes has all but kserve.
# - STORAGE_URI: where this folder is, as KServe reads it (pvc://, s3://, gs:// ...); it is mounted at {mount}. An image
#   that holds the folder itself needs no STORAGE_URI: then --package names the folder.
# Not measured: memory (a copy of the weights for each instance and batch size, and 1 GiB).
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service}
  annotations:
    # HTTP and gRPC are two ports, and Knative takes one: there, leave this line out, and the port that is not wanted.
    # Later versions of KServe call this mode Standard.
    serving.kserve.io/deploymentMode: RawDeployment
spec:
  predictor:
    containers:
      - name: kserve-container
        image: IMAGE:TAG
        command: ["python", "-m", "lifedeploy.serving.kserve"]
        # In a pod whoever asks comes from outside of the container: the one place for an address other than 127.0.0.1.
        args: {arguments}
        env:
          - name: PROTOCOL  # what protocolVersion is to a model of KServe's own runtimes
            value: v2
          - name: STORAGE_URI
            value: pvc://CLAIM/PATH
        ports:
          - name: http1
            containerPort: 8080
            protocol: TCP
          - name: h2c
            containerPort: 8081
            protocol: TCP
        readinessProbe:
          httpGet:
            path: {ready}
            port: 8080
        resources:
          requests: {{cpu: "{cores}", memory: {memory}Gi}}
          limits: {{cpu: "{cores}", memory: {memory}Gi}}
        securityContext:
          allowPrivilegeEscalation: false
          runAsNonRoot: true
"""
_CORES = 4  # of a container, where nothing else is said


def write(folder: Path, served: Served, backend: str, needs: dict[str, str]) -> tuple[str, ...]:
    """Write the package into ``folder``; its models: the one that takes prepared images, and the one that takes files.

    Raises:
        UsageError: the engine runs on a GPU, which no container of this kind has been tried with.
    """
    if issubclass(served.target.engine, DeviceEngine):
        raise UsageError(
            f"{served.artifact.path} runs on a GPU, and packages for KServe are for CPUs",
            hint="KServe also runs Triton: --for triton",
        )
    (folder / MODEL).mkdir()
    copy(served, folder / MODEL)
    write_text(folder / "inference_service.yaml", service(served, needs))
    return (served.name, images_name(served))


def images_name(served: Served) -> str:
    """What the model is called that takes image files."""
    return f"{served.name}_images"


def service(served: Served, needs: dict[str, str]) -> str:
    """The InferenceService, as YAML; whatever is quoted in it is JSON, which YAML reads too."""
    artifact, cores = served.artifact, max(_CORES, served.plan.instances)
    weights = sum(path.stat().st_size for path in artifact.files)
    copies = served.plan.instances * (len(served.plan.preferred) + 1)
    arguments = ["--package", _MOUNT, "--host", "0.0.0.0", "--http-port", "8080", "--grpc-port", "8081"]
    label = re.sub(r"[^a-z0-9]+", "-", served.name.lower()).strip("-")[:_LONGEST_LABEL].rstrip("-")
    if not label[:1].isalpha():
        label = f"model-{label}"[:_LONGEST_LABEL].rstrip("-")
    return _SERVICE.format(
        what=printable(f"{artifact.name}, {served.target.engine.name} {served.target.precision}"),
        version=__version__,
        needs=printable(", ".join(f"{name} {version}" for name, version in needs.items() if name != "lifedeploy")),
        mount=_MOUNT,
        service=label,
        arguments=compact_json([*arguments, "--cores", str(cores)]),
        ready=compact_json(f"/v2/models/{served.name}/ready"),
        cores=cores,
        memory=1 + -(-weights * copies // _GIB),
    )


def opened(folder: Path) -> Served:
    """What a package says is to be served, after every file of it was held against its hash.

    Raises:
        ArtifactError: it is no package for KServe, or damaged.
        EngineUnavailableError: its engine does not run here.
    """
    record = records.read(folder)
    if record.target != "kserve":
        raise ArtifactError(
            f"{folder}/ is a package for {record.target}; expected one for kserve",
            hint="lifedeploy package --for kserve",
        )
    records.check(folder, record)
    artifact = Artifact.read(folder / MODEL / "model.json")
    target = target_of(ModelFile.of(artifact))
    return Served(name=record.models[0], target=target, artifact=artifact, plan=record.plan, top=record.top)
