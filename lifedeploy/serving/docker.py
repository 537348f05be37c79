"""What a container image is built from: this lifedeploy without torch, an engine, and the versions of both."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lifedeploy import __version__
from lifedeploy.engines.device import DeviceEngine
from lifedeploy.errors import UsageError
from lifedeploy.files import compact_json, write_text
from lifedeploy.serving import pins, wheel
from lifedeploy.serving.served import Served
from lifedeploy.serving.triton import copy
from lifedeploy.text import printable

_DOCKERFILE = """\
# An image of lifedeploy, without torch, for
# {what}
#
#   docker build -t {tag} .
#   docker run --rm {tag}
#   docker run --rm -v "$PWD:/images:ro" {tag} predict /images/cat.jpg --model {model} --top 5
#
# Nothing listens in it. For a server: lifedeploy package --for kserve, whose program runs here too, once kserve is
# installed beside the rest, with ENTRYPOINT ["python", "-m", "lifedeploy.serving.kserve"].
#
# The Python that the versions in requirements.txt were taken from.
FROM python:{python}-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

COPY requirements.txt {wheel} /tmp/lifedeploy/
# --no-deps: what lifedeploy and its engine need is pinned in requirements.txt, to the last of it.
RUN pip install --no-cache-dir -r /tmp/lifedeploy/requirements.txt \\
    && pip install --no-cache-dir --no-deps /tmp/lifedeploy/{wheel} \\
    && rm -r /tmp/lifedeploy \\
    && useradd --uid 10001 --create-home lifedeploy

COPY model {model}

USER 10001
WORKDIR /home/lifedeploy
ENTRYPOINT ["lifedeploy"]
CMD {command}
"""
_IGNORED = "# Of the package, what is no part of the image.\n.dockerignore\nDockerfile\nlifedeploy.json\n"


def write(folder: Path, served: Served, backend: str, needs: dict[str, str]) -> tuple[str, ...]:
    """Write what an image is built from into ``folder``; its one model.

    Raises:
        UsageError: the engine needs torch or a GPU, or a version cannot be pinned.
        ArtifactError: lifedeploy is not installed as it runs.
    """
    _require_small(served)
    versions = pins.pinned(served.target.engine)
    name = wheel.write(folder).name
    (folder / "model").mkdir()
    copy(served, folder / "model")
    listed = "".join(f"{distribution}=={version}\n" for distribution, version in versions.items())
    write_text(folder / "requirements.txt", f"# What lifedeploy {__version__} needs to run this engine.\n{listed}")
    write_text(folder / "Dockerfile", _dockerfile(served, name))
    write_text(folder / ".dockerignore", _IGNORED)
    return (served.name,)


def _require_small(served: Served) -> None:
    kind, path = served.target.engine, served.artifact.path
    if path.suffix == ".safetensors":
        raise UsageError(
            f"{path} runs in PyTorch, and containers of lifedeploy have none",
            hint="lifedeploy build-engine --engine onnxruntime builds what runs without",
        )
    if issubclass(kind, DeviceEngine):
        raise UsageError(
            f"{path} runs on a GPU, and the image that containers of lifedeploy are built on has no CUDA",
            hint="--for triton: its containers have",
        )


def _dockerfile(served: Served, name: str) -> str:
    model = f"/model/{served.name}"
    return _DOCKERFILE.format(
        what=printable(f"{served.artifact.name}, {served.target.engine.name} {served.target.precision}"),
        tag=re.sub(r"[^a-z0-9]+", "-", served.name.lower()).strip("-"),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        wheel=name,
        model=model,
        command=compact_json(["inspect", model]),
    )
