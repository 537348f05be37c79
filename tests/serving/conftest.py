"""Packages of the tiny model, and a real server on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.serving.triton import serving
from lifedeploy.artifact import Artifact, Workspace
from lifedeploy.data.samples import photo_folder
from lifedeploy.workflows.package import PackageRequest, package
from tests.once import made_once, shared_folder
from tests.serving import triton

# Photographs of the package by the classes of the tiny model.
PHOTOS = {"cat": "chelsea.jpg", "cup": "coffee.jpg", "rocket": "rocket.jpg"}


@dataclass(frozen=True)
class Packages:
    """A workspace, and what was packaged of it: ``tiny`` on OpenVINO, ``tiny_kept`` on ONNX Runtime."""

    folder: Path

    @property
    def export(self) -> Artifact:
        return Workspace(self.folder / "artifacts").latest_export()

    def engine(self, name: str) -> Path:
        return next(
            engine.manifest_path
            for engine in Workspace.engines_of(self.export)
            if engine.manifest.engine and engine.manifest.engine.name == name
        )

    @property
    def repositories(self) -> tuple[Path, Path]:
        return self.folder / "openvino", self.folder / "onnxruntime"

    @property
    def images(self) -> Path:
        """A folder of class folders."""
        return self.folder / "images"


@pytest.fixture(scope="session")
def packages(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copytree(exported, folder / "artifacts")
        workspace = Workspace(folder / "artifacts")
        request = PackageRequest(target="triton", out=folder / "openvino", engine="openvino", name="tiny", top=2)
        package(request, workspace)
        request = PackageRequest(
            target="triton", out=folder / "onnxruntime", engine="onnxruntime", backend="python", name="tiny_kept"
        )
        package(request, workspace)
        for name, photo in PHOTOS.items():
            (folder / "images" / name).mkdir(parents=True)
            shutil.copy(photo_folder() / photo, folder / "images" / name)

    return Packages(made_once(shared_folder(tmp_path_factory) / "packages", make))


@pytest.fixture(scope="session")
def server(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.Triton]:
    """A real server on both packages."""
    triton.require_environment()
    log = tmp_path_factory.mktemp("triton") / "log"
    with serving(log, *packages.repositories) as running:
        yield triton.Triton(**vars(running))
